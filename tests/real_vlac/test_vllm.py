"""What vLLM does by itself: stopping early, keeping what a call has left, caching."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.real_vlac.conftest import TASK
from vlac_queue.errors import ConfigError, CriticFailed
from vlac_queue.frames import Frames
from vlac_queue.messages import ValueVerdict
from workers.critics import CriticQuery
from workers.critics.vlac import VlacCritic

Load = Callable[..., VlacCritic]


@pytest.fixture(autouse=True)
def only_vllm(engine: str) -> None:
    if engine != "vllm":
        pytest.skip("about vLLM")


def value_query(run: Frames, **fields: Any) -> CriticQuery:
    return CriticQuery("value", TASK, run, len(run) - 1, **fields)


def engine_of(critic: VlacCritic) -> Any:
    assert critic._model is not None
    return critic._model.gac.engine


def encoded(critic: VlacCritic) -> list[int]:
    """How many images each pass of the vision tower encodes, from now on."""
    counts: list[int] = []
    tower = engine_of(critic).inner_model.vision_model
    tower.register_forward_hook(
        lambda module, args, kwargs, out: counts.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return counts


@pytest.mark.parametrize("room", [1, 2])
def test_an_answer_for_which_there_is_no_room_is_never_a_number(load: Load, run: Frames, room: int) -> None:
    """The pair's answer has three tokens: a sign, a number, the end."""
    critic = load()
    chat, seen = critic._model.gac.chat, []  # type: ignore[union-attr]

    def noted(requests: Any) -> Any:
        responses, seconds = chat(requests)
        seen.extend(responses)
        return responses, seconds

    critic._model.gac.chat = noted  # type: ignore[union-attr]
    query = value_query(run[:2])
    (whole,) = critic.answer([query])
    assert isinstance(whole, ValueVerdict)
    padding = "x" * (engine_of(critic).max_model_len - seen[-1].usage.prompt_tokens - room)
    (cut,) = critic.answer([replace(query, task=TASK + padding)])
    assert seen[-1].usage.completion_tokens == room
    assert isinstance(cut, CriticFailed) and f"cut off at {room} tokens" in str(cut)


def test_a_prompt_that_is_too_long_fails_alone(load: Load, run: Frames) -> None:
    critic = load(ref_num=2)
    queries = [CriticQuery("done", task, run[:1], 0) for task in (TASK, "open it " * 400, "close it")]
    first, failed, last = critic.answer(queries)
    assert isinstance(failed, CriticFailed)
    assert [first, last] == load(ref_num=2).answer([queries[0], queries[2]])
    assert not engine_of(critic).engine.has_unfinished_requests()


@pytest.mark.parametrize("part", ["vision_model", "language_model.model.norm"])
def test_after_an_error_within_a_step_the_same_rows_are_answered_rightly(
    load: Load, run: Frames, reference: Frames, part: str
) -> None:
    queries = [value_query(run), value_query(run, reference=reference)]
    expected = load().answer(queries)
    critic = load()
    breaks = [True]

    def broken(module: Any, *rest: Any) -> None:
        if breaks:
            breaks.pop()
            raise ValueError("broken")

    handle = engine_of(critic).inner_model.get_submodule(part).register_forward_pre_hook(broken)
    with pytest.raises(ValueError, match="broken"):
        critic._model.complete(critic._rows(critic._model, queries[1]))  # type: ignore[arg-type, union-attr]
    assert not breaks
    handle.remove()
    assert critic.answer(queries) == expected


def test_images_that_were_shown_are_not_encoded_again(load: Load, run: Frames, reference: Frames) -> None:
    critic = load(ref_num=4)
    counts = encoded(critic)
    critic.answer([CriticQuery("done", TASK, run[i : i + 1], i) for i in range(6)])
    assert sum(counts) == 6
    critic.answer([value_query(run)])
    assert sum(counts) == 6
    critic.answer([value_query(run, reference=reference)])
    assert sum(counts) == 6 + 4


def test_the_reference_frames_of_pairs_are_computed_once(load: Load, run: Frames, reference: Frames) -> None:
    critic = load()
    tokens: list[int] = []
    norm = engine_of(critic).inner_model.language_model.model.norm
    norm.register_forward_hook(lambda module, inputs, out: tokens.append(len(inputs[0])))
    critic.answer([value_query(run, reference=reference)])
    # Nine reference frames and the first frame once; then two frames and some words for each pair.
    assert 256 * (10 + 5 * 2) < sum(tokens) < 256 * (10 + 5 * 6)
    first = sum(tokens)
    critic.answer([value_query(run[::-1], reference=reference)])
    assert sum(tokens) - first < first - 256 * 8


def test_reference_prompts_fit_one_step_and_the_settings_can_be_chosen(load: Load) -> None:
    scheduler = engine_of(load(ref_num=11)).engine.vllm_config.scheduler_config
    assert scheduler.max_num_batched_tokens == scheduler.encoder_cache_size == 64 * 256
    chosen = '{"max_num_batched_tokens": 4096, "num_gpu_blocks_override": 256, "enforce_eager": true}'
    engine = engine_of(load(engine_args=chosen)).engine.vllm_config
    assert engine.scheduler_config.max_num_batched_tokens == 4096
    assert engine.cache_config.enable_prefix_caching


def test_an_argument_that_vllm_does_not_know_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match="no_such_thing"):
        load(engine_args='{"no_such_thing": 1}')


def test_closed_it_is_gone_and_can_be_loaded_again(load: Load, run: Frames) -> None:
    critic = load()
    expected = critic.answer([value_query(run)])
    weights = weakref.ref(engine_of(critic).inner_model)
    critic.close()
    assert weights() is None
    assert load().answer([value_query(run)]) == expected
