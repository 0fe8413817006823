"""Critics that cost nothing or a known time, so that a benchmark measures the queue. All of them sleep.

`VLAC_CRITIC=benchmarks.critics:InstantCritic`, and so on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlac_queue.config import VlacConfig
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery

#: Names a folder in which each worker writes when its critic was loaded, and when each batch began and ended, in
#: seconds of the monotonic clock, which all processes of a machine share.
MARKS = "BENCH_MARKS"


class InstantCritic:
    """Answers "not done" at once."""

    #: Seconds that a batch takes, and each row (query) of it.
    batch_s = 0.0
    row_s = 0.0

    def __init__(self, config: VlacConfig) -> None:
        folder = os.environ.get(MARKS)
        self._marks = open(Path(folder) / str(os.getpid()), "w", buffering=1) if folder else None  # noqa: SIM115

    def load(self) -> None:
        self._mark(time.monotonic())

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        started = time.monotonic()
        if took := self.batch_s + self.row_s * len(queries):
            time.sleep(took)
        self._mark(started, time.monotonic())
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

    def _mark(self, *times: float) -> None:
        if self._marks:
            self._marks.write(" ".join(map(repr, times)) + "\n")


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


@dataclass(frozen=True)
class Marks:
    """What a worker wrote: when its critic was loaded, and when each batch began and ended."""

    loaded: float
    batches: list[tuple[float, float]]


def read_marks(folder: str) -> list[Marks]:
    """Return the marks of every worker that was told this folder and has loaded its critic."""
    read = []
    for file in Path(folder).iterdir():
        # The last piece is empty, or not written out yet.
        lines = [[float(time) for time in line.split()] for line in file.read_text().split("\n")[:-1]]
        if lines:
            read.append(Marks(lines[0][0], [(begin, end) for begin, end in lines[1:]]))
    return read
