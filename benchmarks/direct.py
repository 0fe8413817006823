"""The critic vlac called directly: what `benchmarks.gpu` runs in another process, which alone imports torch."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from benchmarks.workloads import simulator, stamped
from vlac_queue.config import VlacConfig
from vlac_queue.errors import ConfigError
from vlac_queue.messages import DoneVerdict
from workers.critics import CriticQuery
from workers.critics.vlac import VlacCritic

_TASK = "open the drawer"
#: Batches to warm up, and least batches measured, however long they take.
_WARM_UP, _LEAST = 2, 3

_critic: VlacCritic
#: Number frames, so that none comes again.
_steps = count()


@dataclass(frozen=True)
class Gpu:
    """The device: its name and its memory in bytes, 0 for a CPU."""

    name: str
    total_bytes: int


@dataclass(frozen=True)
class Direct:
    """What was measured.

    Attributes:
        images_per_s: of frames never seen before.
        known_images_per_s: of frames whose features the critic keeps, so that they cost language only.
        peak_bytes: most that torch's allocator reserved on the GPU.
        max_images: most images of a call at the end: below VLAC_MAX_IMAGES where memory ran out.
    """

    images_per_s: float
    known_images_per_s: float
    failed: int
    peak_bytes: int
    max_images: int


def look(device: str) -> Gpu:
    """Return the device "cuda" (the first GPU) or "cpu".

    Raises:
        ConfigError: torch sees no GPU.
    """
    import torch

    if device == "cpu":
        return Gpu("CPU", 0)
    if not torch.cuda.is_available():
        raise ConfigError(
            "torch sees no GPU, and this benchmark is about one: run it on a GPU host. To try the script itself: "
            "--device cpu --layers 2 --width 128 --batches 1,2 --seconds 2 --frames 3"
        )
    properties = torch.cuda.get_device_properties(0)
    return Gpu(properties.name, properties.total_memory)


def make_checkpoint(folder: Path, layers: int, width: int) -> None:
    """Make the checkpoint where the folder is empty or not there.

    Raises:
        ConfigError: it holds something else, or can't be made of that size.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        from benchmarks.tiny_vlac import Large, make

        make(folder, large=Large(layers, width))
        return
    try:
        config = json.loads((folder / "config.json").read_text())
        sizes = config["llm_config"]["num_hidden_layers"], config["llm_config"]["hidden_size"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder} holds no checkpoint; remove it, or give another folder.") from None
    ours = "tiny_vlac" in config.get("auto_map", {}).get("AutoConfig", "")
    if ours and sizes != (layers, width):
        raise ConfigError(
            f"{folder} holds a checkpoint of {sizes[0]} layers of width {sizes[1]}, and this run needs {layers} "
            f"of width {width}; remove it, or give another folder."
        )


def load(config: VlacConfig) -> None:
    """Load the critic, and put its weights into host memory."""
    global _critic
    _critic = VlacCritic(config)
    _critic.load()
    _critic.offload()


def unload() -> None:
    """Free the critic."""
    _critic.close()


def measure_direct(batch: int, seconds: float) -> Direct:
    """Ask batch after batch for about `seconds` seconds, and then as long about frames that the critic knows."""
    import torch

    _critic.wake()
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    images_per_s, failed = _rate(batch, seconds, new=True)
    known_images_per_s, failed_too = _rate(batch, seconds, new=False)
    peak = torch.cuda.max_memory_reserved() if on_gpu else 0
    max_images = _critic.max_images
    _critic.offload()
    return Direct(images_per_s, known_images_per_s, failed + failed_too, peak, max_images)


def _rate(batch: int, seconds: float, *, new: bool) -> tuple[float, int]:
    """Return images/s after some batches to warm up, and failed queries.

    Args:
        new: whether all frames are others than ever before; else the batch is always the same.
    """
    failed, asked, step = 0, 0, next(_steps)
    started = now = 0.0
    while asked < _WARM_UP + _LEAST or now - started < seconds:
        if asked == _WARM_UP:
            started = time.monotonic()
        step = next(_steps) if new else step
        frames = [stamped(frame, step, i) for i, frame in enumerate(simulator().step(step, batch))]
        answers = _critic.answer([CriticQuery("done", _TASK, frame[None], step) for frame in frames])
        now = time.monotonic()
        failed += sum(not isinstance(answer, DoneVerdict) for answer in answers)
        asked += 1
    return (asked - _WARM_UP) * batch / (now - started), failed
