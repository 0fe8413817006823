"""What a query costs as more episodes ask at once, by workload."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.figures import Line, exponent, line
from benchmarks.measuring import Round, measure_apart

#: Episodes that ask at once; those at which every workload is measured, and more of them for the slope.
MAIN_COUNTS = (8, 64, 512)
SLOPE_COUNTS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Asked:
    """One round of the queue with `episodes` episodes that ask at once."""

    workload: str
    episodes: int
    round: Round


def measure(
    counts: Sequence[tuple[str, int]], *, rounds: int, seconds: float, advance: Callable[[], None]
) -> list[Asked]:
    """Each (workload, episodes) once a round."""
    measured = []
    for _ in range(rounds):
        for workload, episodes in counts:
            measured.append(Asked(workload, episodes, measure_apart("vlac-queue", workload, episodes, seconds)))
            advance()
    return measured


def step_seconds(measured: Sequence[Asked], workload: str) -> dict[int, float]:
    """Seconds of a step by the number of episodes: all time over all steps, so that no step is left out."""
    chosen: dict[int, list[float]] = {}
    for each in measured:
        if each.workload == workload:
            chosen.setdefault(each.episodes, []).append(each.episodes / each.round.queries_per_s)
    return {count: statistics.median(seconds) for count, seconds in sorted(chosen.items())}


def growth(measured: Sequence[Asked], workload: str = "simulator") -> tuple[Line, float]:
    """The line `seconds of a step = fixed + each * episodes`, and the exponent of episodes (1: linear)."""
    seconds = step_seconds(measured, workload)
    counts, times = list(seconds), list(seconds.values())
    return line(counts, times), exponent(counts, times)
