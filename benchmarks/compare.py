"""All peers in interleaved rounds, and what the queue is over each of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.figures import Figure, interleaved, ratio
from benchmarks.measuring import ApartError, Round, measure_apart
from benchmarks.peers import OURS

Rounds = Mapping[str, Sequence[Round]]


def compare(names: Sequence[str], episodes: int, rounds: int, seconds: float) -> tuple[Rounds, dict[str, str]]:
    """Measure peers with `episodes` frames asked about at once, each for `seconds` in each round.

    Returns:
        The rounds of each peer that came through all of them, and why each of the others did not.

    Raises:
        ApartError: ours failed.
    """
    failed: dict[str, str] = {}

    def measure(name: str) -> Round | None:
        # Once more where it failed, as what takes long to come up may on a busy machine.
        for last in (False, True):
            try:
                return None if name in failed else measure_apart(name, "simulator", episodes, seconds)
            except ApartError as error:
                if last and name == OURS:
                    raise
                if last:
                    failed[name] = str(error)
        return None

    measured = interleaved("peers", {name: partial(measure, name) for name in names}, rounds)
    return {name: [r for r in measured[name] if r] for name in names if name not in failed}, failed


def median_round(rounds: Sequence[Round]) -> Round:
    """Return the median of each figure."""
    columns = {name: [asdict(one)[name] for one in rounds] for name in asdict(rounds[0])}
    medians: dict[str, Any] = {
        name: None if None in values else statistics.median(values) for name, values in columns.items()
    }
    return Round(**medians)


def over(measured: Rounds, name: str, figure: str) -> Figure:
    """Return a figure of ours, a Round's, over that of the peer `name`."""
    ours, theirs = ([getattr(one, figure) for one in measured[peer]] for peer in (OURS, name))
    return ratio(ours, theirs)
