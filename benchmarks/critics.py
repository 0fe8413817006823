"""Critics that cost nothing or a known time, so that a benchmark measures the queue. All of them sleep.

`VLAC_CRITIC=benchmarks.critics:InstantCritic`, and so on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from vlac_queue.config import VlacConfig
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery

#: Names a folder in which each worker notes when its critic was loaded and when it was first asked.
MARKS = "VLAC_BENCH_MARKS"


class InstantCritic:
    """Answers "not done" at once."""

    #: Seconds that a batch takes, and each row (query) of it.
    batch_s = 0.0
    row_s = 0.0

    def __init__(self, config: VlacConfig) -> None:
        self._asked = False

    def load(self) -> None:
        _mark("loaded")

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        if not self._asked:
            self._asked = True
            _mark("asked")
        if took := self.batch_s + self.row_s * len(queries):
            time.sleep(took)
        return [
            DoneVerdict(False, 0.0, query.frame) if query.kind == "done" else ValueVerdict((0.0,), ())
            for query in queries
        ]

    def offload(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


class ImageCritic(InstantCritic):
    """5 ms an image, however many are asked together: a critic that gains nothing by batching."""

    row_s = 0.005


class BatchCritic(InstantCritic):
    """50 ms a batch and 2 ms a row: as a GPU behaves while a batch does not fill it."""

    batch_s = 0.050
    row_s = 0.002


class SteadyCritic(InstantCritic):
    """50 ms a batch."""

    batch_s = 0.050


class RolloutCritic(InstantCritic):
    """60 ms a batch: the critic of benchmarks.overlap."""

    batch_s = 0.060


def _mark(what: str) -> None:
    """Notes the time in seconds of the monotonic clock, which all processes of a machine share."""
    if folder := os.environ.get(MARKS):
        with open(os.path.join(folder, f"{os.getpid()}.{what}"), "w") as file:
            file.write(repr(time.monotonic()))
