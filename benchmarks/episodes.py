"""What a query costs as more episodes ask at once, by workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from statistics import median

from benchmarks.figures import Line, exponent, interleaved, line
from benchmarks.measuring import Round, measure_apart

#: Episodes that ask at once, by workload: more of them for the slope.
_COUNTS = {"simulator": (8, 16, 32, 64, 128, 256, 512), "photographs": (8, 64, 512)}
#: The rounds by workload and by the number of episodes that ask at once.
Grown = Mapping[tuple[str, int], Sequence[Round]]


def measure(most: int, rounds: int, seconds: float) -> Grown:
    """Measure up to `most` episodes; without photographs where nothing reads them."""
    workloads = [workload for workload in _COUNTS if workload == "simulator" or find_spec("av")]
    cases = [(workload, count) for workload in workloads for count in _COUNTS[workload] if count <= most]
    rows = {case: partial(measure_apart, "vlac-queue", *case, seconds) for case in cases}
    return interleaved("episodes", rows, rounds)


def step_seconds(measured: Grown, workload: str) -> dict[int, float]:
    """Return a step's seconds by the number of episodes: all time over all steps, so that none is left out."""
    return {
        count: median(count / each.queries_per_s for each in rounds)
        for (name, count), rounds in measured.items()
        if name == workload
    }


def growth(measured: Grown) -> tuple[Line, float]:
    """Return the line through the simulator's steps, and the exponent of episodes (1: linear)."""
    seconds = step_seconds(measured, "simulator")
    counts, times = list(seconds), list(seconds.values())
    return line(counts, times), exponent(counts, times)
