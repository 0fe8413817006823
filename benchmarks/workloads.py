"""What is asked about: frames of many episodes, a step after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from vlac_queue.commands.demo.rollouts import load_rollouts
from vlac_queue.frames import Frames

_PHOTOGRAPHS = Path(__file__).parents[1] / "tests" / "real_vlac" / "photographs"
#: Steps of an episode: a LIBERO episode has 512 environment steps, in chunks of 8.
EPISODE_STEPS = 64


@dataclass(frozen=True, eq=False)
class Workload:
    """Frames to ask about.

    Attributes:
        name: what they show and their size.
        runs: uint8 (T,H,W,3) each; episode i plays run i (modulo their number), over and over.
    """

    name: str
    runs: Sequence[Frames]

    def step(self, index: int, episodes: int) -> list[Frames]:
        """The frame of each of `episodes` episodes at step `index`; uint8 (H,W,3)."""
        chosen = (self.runs[i % len(self.runs)] for i in range(episodes))
        return [run[index % len(run)] for run in chosen]


def stamped(frame: Frames, *numbers: int) -> Frames:
    """Return a copy with the numbers in its first pixels: for a critic that knows contents, another frame."""
    copy = frame.copy()
    marks = np.array(numbers, np.uint32).view(np.uint8)
    copy.reshape(-1)[: len(marks)] = marks
    return copy


@cache
def simulator() -> Workload:
    """The recorded Meta-World rollouts: a fixed camera, 256x256."""
    return Workload("simulator 256x256", [rollout.frames for rollout in load_rollouts()])


@cache
def photographs() -> Workload:
    """Photographs of a robot at 640x480, four of 320x240 in each.

    They are put side by side and not enlarged, so that they pack no better than photographs do.
    """
    from vlac_queue.commands.score.reading import open_clip

    single = list(open_clip(_PHOTOGRAPHS).frames)
    frames = [
        _mosaic([single[(start + 3 * part) % len(single)] for part in range(4)]) for start in range(len(single))
    ]
    return Workload("photographs 640x480", [np.stack(frames)])


def _mosaic(parts: Sequence[Frames]) -> Frames:
    """Four pictures of one size in two rows."""
    return np.concatenate([np.concatenate(parts[:2], axis=1), np.concatenate(parts[2:], axis=1)], axis=0)


WORKLOADS = {"simulator": simulator, "photographs": photographs}
