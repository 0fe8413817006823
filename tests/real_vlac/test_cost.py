"""What the torch engine computes: frames and beginnings of prompts once, and no logits that nobody reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.real_vlac.conftest import TASK
from vlac_queue.frames import Frames
from workers.critics import CriticQuery
from workers.critics.vlac import VlacCritic

Load = Callable[..., VlacCritic]
#: Bytes of a frame's features in the tiny checkpoint: 256 tokens, 64 wide, float32.
FEATURES = 256 * 64 * 4


class Counted:
    """Counts what goes through the parts of a critic's model."""

    def __init__(self, critic: VlacCritic) -> None:
        self.frames, self.tokens, self.logits = 0, 0, 0
        model: Any = critic._model.gac.model  # type: ignore[union-attr]
        model.vision_model.register_forward_pre_hook(self._see)
        model.language_model.model.layers[0].register_forward_pre_hook(self._read)
        model.language_model.lm_head.register_forward_hook(self._say)

    def _see(self, module: Any, inputs: Any) -> None:
        self.frames += len(inputs[0])

    def _read(self, module: Any, inputs: Any) -> None:
        self.tokens += math.prod(inputs[0].shape[:2])

    def _say(self, module: Any, inputs: Any, logits: Any) -> None:
        self.logits = max(self.logits, logits.shape[1])


@pytest.fixture(autouse=True)
def torch_alone(engine: str) -> None:
    if engine != "pt":
        pytest.skip("vLLM has caches of its own")


def episodes(count: int, length: int) -> list[Frames]:
    """Frames of which no two are alike."""
    return list(np.random.default_rng(0).integers(0, 256, (count, length, 48, 64, 3), np.uint8))


def asked_as_a_rollout_does(critic: VlacCritic, shown: list[Frames], reference: Frames | None = None) -> list[Any]:
    """Asks of each frame of all episodes whether the task is done, then for the values."""
    answers = []
    for step in range(len(shown[0])):
        answers += critic.answer([CriticQuery("done", TASK, run[step : step + 1], step) for run in shown])
    for run in shown:
        answers += critic.answer([CriticQuery("value", TASK, run, len(run) - 1, reference=reference)])
    return answers


def test_each_frame_goes_through_the_vision_tower_once(load: Load, reference: Frames) -> None:
    critic = load(ref_num=3)
    counted = Counted(critic)
    shown = episodes(2, 3)
    asked_as_a_rollout_does(critic, shown)
    assert counted.frames == 2 * 3
    asked_as_a_rollout_does(critic, shown, reference)
    asked_as_a_rollout_does(critic, [run.copy() for run in shown], reference.copy())
    assert counted.frames == 2 * 3 + 3, "and the reference frames, once for all episodes"


@pytest.mark.parametrize("limit", [0, 5 * FEATURES])
def test_the_limit_holds_and_changes_no_answer(load: Load, reference: Frames, limit: int) -> None:
    shown = episodes(2, 3)
    small = load(ref_num=3, vision_cache_bytes=limit)
    answers = asked_as_a_rollout_does(small, shown, reference)
    assert answers == asked_as_a_rollout_does(load(ref_num=3), shown, reference)
    features = small._model._images  # type: ignore[union-attr]
    assert features.nbytes <= limit  # type: ignore[attr-defined]


def test_what_was_used_last_is_kept_longest(load: Load) -> None:
    critic = load(vision_cache_bytes=3 * FEATURES)
    counted = Counted(critic)
    a, b, c, d = episodes(1, 4)[0]

    def seen(*frames: Frames) -> int:
        before = counted.frames
        critic.answer([CriticQuery("done", TASK, frame[None], 0) for frame in frames])
        return counted.frames - before

    assert [seen(a, b, c), seen(a), seen(d), seen(c, a, d), seen(b)] == [3, 0, 1, 0, 1]


def test_memory_that_runs_out_gives_the_features_back(load: Load, run: Frames) -> None:
    critic = load()
    counted = Counted(critic)
    query = CriticQuery("value", TASK, run, len(run) - 1)
    (before,) = critic.answer([query])
    critic._model.free_memory()  # type: ignore[union-attr]
    assert critic.answer([query]) == [before]
    assert counted.frames == 2 * len(run)


def test_logits_and_the_last_mlp_are_computed_for_the_last_position_alone(load: Load, run: Frames) -> None:
    critic = load()
    counted = Counted(critic)
    last: list[int] = []
    mlp = critic._model.gac.model.language_model.model.layers[-1].mlp  # type: ignore[union-attr]
    mlp.register_forward_hook(lambda module, inputs, out: last.append(inputs[0].shape[1]))
    critic.answer([CriticQuery("done", TASK, run[:1], 0), CriticQuery("value", TASK, run, len(run) - 1)])
    assert counted.logits == 1
    assert set(last) == {1}


def test_rows_read_their_reference_frames_once(load: Load, run: Frames, reference: Frames) -> None:
    critic = load(ref_num=9)
    counted = Counted(critic)
    critic.answer([CriticQuery("value", TASK, run, len(run) - 1, reference=reference)])
    # 9 reference frames, the first frame, and the 5 pairs; words and what is said are fewer than an image each.
    images = 10 + 2 * 5
    assert images * 256 < counted.tokens < images * 256 + 10 * 256


def test_calls_read_on_from_the_reference_frames_of_the_call_before(
    load: Load, run: Frames, reference: Frames
) -> None:
    critic = load(ref_num=9, max_images=14)
    query = CriticQuery("value", TASK, run, len(run) - 1, reference=reference)
    (expected,) = load(ref_num=9).answer([query])
    counted = Counted(critic)
    assert critic.answer([query]) == [expected], "in three calls"
    images = 10 + 2 * 5
    assert images * 256 < counted.tokens < images * 256 + 10 * 256
    read = counted.tokens
    critic.answer([CriticQuery("done", TASK, run[:1], 0)])
    assert critic.answer([query]) == [expected]
    assert counted.tokens - read < read - 8 * 256, "a done query does not push them out"
    critic._model.free_memory()  # type: ignore[union-attr]
    before = counted.tokens
    assert critic.answer([query]) == [expected]
    assert counted.tokens - before == read


def test_the_likeliest_tokens_are_those_of_ms_swift() -> None:
    import torch
    from swift.llm import PtEngine

    from workers.critics.vlac.likeliest import likeliest

    steps = list(torch.randn(3, 4, 500, generator=torch.Generator().manual_seed(0)))
    said = torch.tensor([[0, 1, 2], [499, 3, 3], [7, 8, 9], [10, 20, 30]])
    assert likeliest(steps, said, 10) == PtEngine.preprocess_logits(steps, said, 10)


class Tuples:
    """A language model whose keys and values are tuples of tensors, as InternLM2's are."""

    def __init__(self) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(100, 32, 64, 2, 2, attn_implementation="eager")
        self._model = LlamaForCausalLM(config).eval()
        #: Tokens of each call.
        self.tokens: list[int] = []

    def forward(self, inputs_embeds: Any, attention_mask: Any, past_key_values: Any = None) -> Any:
        from transformers import DynamicCache

        self.tokens.append(inputs_embeds.shape[0] * inputs_embeds.shape[1])
        cache = DynamicCache() if past_key_values is None else DynamicCache.from_legacy_cache(past_key_values)
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "past_key_values": cache}
        said = self._model(**inputs, use_cache=True)
        return SimpleNamespace(logits=said.logits, past_key_values=cache.to_legacy_cache())


@pytest.fixture
def begun() -> tuple[Tuples, Callable[..., Any]]:
    """A model, and what asks it about rows that begin alike: what it says, and what it says without sharing."""
    import torch

    model = Tuples()
    whole = model.forward

    def ask(begins: Any, rows: int, ends: int = 20) -> tuple[Any, Any]:
        embeddings = torch.cat([begins.expand(rows, -1, -1), torch.randn(rows, ends, 32)], dim=1)
        inputs = {
            "inputs_embeds": embeddings,
            "attention_mask": torch.ones(embeddings.shape[:2], dtype=torch.long),
        }
        with torch.inference_mode():
            expected = whole(**inputs)
            model.tokens.clear()
            return model.forward(**inputs), expected

    return model, ask


def test_keys_and_values_in_tuples_are_shared_too(begun: tuple[Tuples, Callable[..., Any]]) -> None:
    import torch

    from workers.critics.vlac.prefix import SharedPrefix

    model, ask = begun
    SharedPrefix(model)
    shared, expected = ask(torch.randn(1, 300, 32), rows=5)
    assert model.tokens == [300, 5 * 20]
    assert torch.allclose(shared.logits[:, -1], expected.logits[:, -1], atol=1e-5)
    assert [keys.shape for keys, _ in shared.past_key_values] == [
        keys.shape for keys, _ in expected.past_key_values
    ]


def test_what_was_read_is_kept_for_the_calls_that_follow(begun: tuple[Tuples, Callable[..., Any]]) -> None:
    import torch

    from workers.critics.vlac.prefix import SharedPrefix

    model, ask = begun
    prefix = SharedPrefix(model)
    episode, other = torch.randn(1, 1200, 32), torch.randn(1, 1200, 32)
    short = torch.cat([episode[:, :40], torch.randn(1, 10, 32)], dim=1)  # as the system's words before a question
    longer = torch.cat([episode, torch.randn(1, 600, 32)], dim=1)
    for begins, rows, tokens in (
        (episode, 2, [1200, 2 * 20]),
        (episode, 2, [2 * 20]),
        (episode, 1, [20]),
        (short, 4, [4 * 70]),  # shares too little to be worth it
        (short, 40, [40 * 30]),  # goes on from what is kept
        (episode, 2, [2 * 20]),  # which is kept still
        (longer, 3, [600, 3 * 20]),
        (episode, 1, [20]),
        (other, 1, [1220]),
        (other, 3, [1200, 3 * 20]),
    ):
        said, expected = ask(begins, rows)
        assert model.tokens == tokens
        assert torch.allclose(said.logits[:, -1], expected.logits[:, -1], atol=1e-5)
    prefix.clear()
    ask(other, rows=1)
    assert model.tokens == [1220]
