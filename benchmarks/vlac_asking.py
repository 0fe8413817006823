"""VLAC's own code and the critic, asked the same: what runs in a process of its own, which alone imports torch."""

from __future__ import annotations

import functools
import importlib.util
import io
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlac_queue.config import VlacConfig
from vlac_queue.errors import VlacQueueError
from vlac_queue.frames import Frames
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticQuery
from workers.critics.vlac import VlacCritic
from workers.critics.vlac.model import VlacModel

#: On a CPU. One thread each, since threads that wait for one another take CPU time; nothing is compiled first.
_ON_CPU = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
#: Words of the model: a part of its weights like InternVL2-2B's, whose 92,553 belong to greater width and depth.
_VOCABULARY = 8500
#: VLAC's own name among the peers; the others are engines of the critic.
OWN = "GAC_model"


@dataclass(frozen=True, eq=False)
class Question:
    """Whether the task is done in each frame ("done"), or the value list over them ("value").

    Attributes:
        reference: frames of a successful run that are shown with each pair, or None.
    """

    kind: str
    task: str
    frames: Frames
    reference: Frames | None = None


@dataclass(frozen=True)
class Cost:
    """What a question cost and what was answered.

    Attributes:
        cpu_s: of the process.
        vision: images that went through the vision tower.
        tokens: through the language model, padding counted.
        answers: done scores, or pair scores.
    """

    cpu_s: float
    wall_s: float
    vision: int
    tokens: int
    answers: tuple[float, ...]


Ask = Callable[[Question], Sequence[float]]
_ask: Ask
_passes: Passes


class Passes:
    """Counts what goes through the parts of a model, on torch or on vLLM.

    Args:
        model: an InternVL2.
        runner: what runs it on vLLM. There the layers are compiled on a GPU, and hooks on them do nothing.
    """

    def __init__(self, model: Any, runner: Any = None) -> None:
        self.vision = self.tokens = 0
        model.vision_model.register_forward_pre_hook(self._see, with_kwargs=True)
        if runner is None:
            model.language_model.model.layers[0].register_forward_pre_hook(self._read)
        else:
            self._execute, runner.execute_model = runner.execute_model, self._step

    def _see(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.vision += len(args[0] if args else kwargs["pixel_values"])

    def _read(self, module: Any, args: tuple[Any, ...]) -> None:
        self.tokens += math.prod(args[0].shape[:2])

    def _step(self, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        self.tokens += scheduled.total_num_scheduled_tokens
        return self._execute(scheduled, *args, **kwargs)


def make_small(folder: Path, layers: int, width: int) -> None:
    """Write a checkpoint of InternVL2-2B's proportions; its vision tower is half as wide.

    Raises:
        ConfigError: there is none of that size.
    """
    from benchmarks.tiny_vlac import Large, make

    make(folder, large=Large(layers, width, vocab=_VOCABULARY))


def load(peer: str, config: VlacConfig, warm_up: Sequence[Question]) -> None:
    """Load VLAC's own model (OWN), or the critic on an engine; ask it something.

    Raises:
        ConfigError: something is missing.
    """
    global _ask, _passes
    if config.device == "cpu":
        os.environ.update(_ON_CPU)
    if peer == OWN:
        gac = own_model(config)
        _ask, _passes = functools.partial(_ask_own, gac), Passes(gac.model)
    else:
        model = VlacModel.load(config)
        critic = VlacCritic(config, model)
        critic.load()
        _ask = functools.partial(_ask_critic, critic)
        if peer == "vllm":
            runner = model.gac.engine.engine.model_executor.driver_worker.worker.model_runner
            _passes = Passes(runner.model, runner)
        else:
            _passes = Passes(model.gac.model)
    for question in warm_up:
        ask(question)


def own_model(config: VlacConfig) -> Any:
    """Return GAC_model as VLAC's examples use it, but for device, dtype, attention and length of answers."""
    import torch
    from evo_vlac.utils import model_utils
    from swift.llm import InferRequest, PtEngine, get_model_tokenizer, get_template
    from swift.plugin import InferStats

    # For ms-swift 3.8 and newer; before, a TemplateInputs is an InferRequest.
    model_utils.TemplateInputs = InferRequest
    on_gpu = config.device != "cpu"

    class OwnGac(model_utils.GAC_model):
        def init_model(self, path: str) -> None:
            self.model, tokenizer = get_model_tokenizer(
                path,
                model_type="internvl2",
                torch_dtype=torch.bfloat16 if on_gpu else torch.float32,
                device_map="cuda:0" if on_gpu else "cpu",
                # It always asks for flash_attn itself.
                attn_impl="flash_attn" if on_gpu and importlib.util.find_spec("flash_attn") else "eager",
            )
            self.template = get_template("internvl2", tokenizer)
            self.engine = PtEngine.from_model_template(self.model, self.template, max_batch_size=0)
            self.infer_stats = InferStats()

    gac = OwnGac(tag="critic")
    gac.init_model(config.model_path)
    gac.temperature, gac.top_k, gac.max_tokens = 0.5, 1, 16
    gac.set_config()
    gac.set_system_prompt()
    return gac


def ask(question: Question) -> Cost:
    """Ask what is loaded."""
    vision, tokens = _passes.vision, _passes.tokens
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    # GAC_model prints every answer.
    with redirect_stdout(None), redirect_stderr(io.StringIO()):
        answers = tuple(map(float, _ask(question)))
    return Cost(
        time.process_time() - cpu_s,
        time.perf_counter() - wall_s,
        _passes.vision - vision,
        _passes.tokens - tokens,
        answers,
    )


def _ask_own(gac: Any, question: Question) -> Sequence[float]:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in question.frames]
    if question.kind == "done":
        return list(gac.get_trajectory_done(task=question.task, image_list=pictures, rich=True))
    reference = question.reference
    shown = None if reference is None else [Image.fromarray(frame) for frame in reference]
    critics, _ = gac.get_trajectory_critic(task=question.task, image_list=pictures, ref_image_list=shown)
    return list(critics)


def _ask_critic(critic: VlacCritic, question: Question) -> Sequence[float]:
    frames, last = question.frames, len(question.frames) - 1
    if question.kind == "done":
        queries = [CriticQuery("done", question.task, frames[i : i + 1], i) for i in range(len(frames))]
    else:
        queries = [CriticQuery("value", question.task, frames, last, reference=question.reference)]
    scores: list[float] = []
    for answer in critic.answer(queries):
        if isinstance(answer, VlacQueueError):
            raise answer
        scores += [answer.score] if isinstance(answer, DoneVerdict) else _critics(answer)
    return scores


def _critics(answer: Any) -> Sequence[float]:
    assert isinstance(answer, ValueVerdict)
    return answer.critics
