"""`TaskCritic`: a stand-in critic that does what the task's text says; real workers load it by VLAC_CRITIC."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlac_queue.config import VlacConfig
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery

NAME = "tests.workers.critics:TaskCritic"


class TaskCritic:
    """Scores a frame by its top left red value / 255, unless the task says otherwise.

    "hold FILE"  waits until FILE exists (and makes FILE.begun)
    "refuse"     answers with an exception
    "explode"    raises for the whole batch
    "lie"        answers with a value to a done query
    "one"        answers done=1
    "seven"      answers a score of 7
    "array"      answers with numpy's numbers and arrays
    "nan"        answers a score that is not a number
    "kill"       kills its process
    "count"      scores the number of queries in its batch / 1000
    """

    def __init__(self, config: VlacConfig) -> None:
        pass

    def load(self) -> None:
        if os.environ.get("TASK_CRITIC_BROKEN"):
            raise RuntimeError("the weights are incomplete: download them again")

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        if any(query.task == "explode" for query in queries):
            raise RuntimeError("the batch exploded")
        return [self._answer(query, len(queries)) for query in queries]

    def offload(self) -> None:
        Path("offloaded").touch()

    def wake(self) -> None:
        Path("woken").touch()

    def close(self) -> None:
        pass

    def _answer(self, query: CriticQuery, batch: int) -> CriticAnswer:
        word, _, argument = query.task.partition(" ")
        if word == "hold":
            Path(argument + ".begun").touch()
            while not Path(argument).exists():
                time.sleep(0.01)
        if word == "refuse":
            return ValueError("the model said 'banana'")
        if word == "lie":
            return ValueVerdict((1.0,), ())
        if word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        score = {"nan": float("nan"), "seven": 7.0, "count": batch / 1000}.get(
            word, float(query.frames[-1, 0, 0, 0]) / 255
        )
        if word == "array" and query.kind == "done":
            return DoneVerdict(np.bool_(False), np.float32(0.5), np.int64(query.frame))  # type: ignore[arg-type]
        if word == "array":
            return ValueVerdict(np.array([50.0]), np.array([]))  # type: ignore[arg-type]
        if word == "one":
            return DoneVerdict(1, score, query.frame)  # type: ignore[arg-type]
        if query.kind == "done":
            return DoneVerdict(score > query.done_threshold, score, query.frame)
        values = 100.0 * query.frames[:, 0, 0, 0].astype(np.float64) / 255
        return ValueVerdict(tuple(map(float, values)), tuple(map(float, np.diff(values))))


def frame(red: int, side: int = 8) -> np.ndarray:
    """uint8 (side,side,3), all black but for the red value that TaskCritic scores."""
    made = np.zeros((side, side, 3), np.uint8)
    made[0, 0, 0] = red
    return made


class SlowToLoad(TaskCritic):
    """Is loaded once the file "weights" is there."""

    def load(self) -> None:
        while not Path("weights").exists():
            time.sleep(0.01)


class Busy(TaskCritic):
    """Takes 0.3 s for a batch."""

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        time.sleep(0.3)
        return super().answer(queries)


class Unspeakable(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoFloat(float):
    """Can't be made plain."""

    def __float__(self) -> float:
        raise ValueError("no number")


class Odd(TaskCritic):
    """Answers with what only a broken critic would; the hash of its prompts is none."""

    prompt_hash = b"\x1b12"

    def _answer(self, query: CriticQuery, batch: int) -> CriticAnswer:
        if query.task == "raise":
            raise Unspeakable
        odd: dict[str, CriticAnswer] = {
            "float": DoneVerdict(True, NoFloat(0.5), query.frame),
            "unspeakable": Unspeakable(),
            "escapes": ValueError("\x1b[31m red"),
        }
        return odd.get(query.task) or super()._answer(query, batch)
