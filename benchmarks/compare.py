"""All peers in interleaved rounds, and what the queue is over each of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.figures import Ratio, ratio
from benchmarks.measuring import ApartError, Round, measure_apart
from benchmarks.peers import OURS, Peer

Rounds = Mapping[str, Sequence[Round]]


def compare(
    peers: Sequence[Peer], *, episodes: int, rounds: int, seconds: float, advance: Callable[[], None]
) -> tuple[dict[str, list[Round]], dict[str, str]]:
    """Measures every peer once a round: what else the machine does falls on all alike.

    Returns:
        The rounds of each peer that came through all of them, and why each of the others did not.

    Args:
        peers: those to measure.
        episodes: frames asked about at once.
        rounds: how many rounds.
        seconds: time to measure each peer in each round.
        advance: called after each measurement.
    """
    measured: dict[str, list[Round]] = {peer.name: [] for peer in peers}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name in list(measured):
            try:
                measured[name].append(_measure(name, episodes, seconds))
            except ApartError as error:
                # The others' figures are good without it; ours are what all of this is about.
                if name == OURS:
                    raise
                failed[name] = str(error)
                del measured[name]
            advance()
    return measured, failed


def _measure(name: str, episodes: int, seconds: float) -> Round:
    """One round of a peer; once more where it failed, as what takes long to come up may on a busy machine."""
    try:
        return measure_apart(name, "simulator", episodes, seconds)
    except ApartError:
        return measure_apart(name, "simulator", episodes, seconds)


def median_round(rounds: Sequence[Round]) -> Round:
    """The median of each figure."""
    each = [asdict(one) for one in rounds]
    medians: dict[str, Any] = {}
    for name in each[0]:
        values = [figures[name] for figures in each]
        medians[name] = None if None in values else statistics.median(values)
    return Round(**medians)


def rate_over(measured: Rounds, ours: str, theirs: str) -> Ratio:
    """Queries per second of `ours` over `theirs`."""
    return ratio([r.queries_per_s for r in measured[ours]], [r.queries_per_s for r in measured[theirs]])


def latency_over(measured: Rounds, ours: str, theirs: str) -> Ratio:
    """Median time of a single query of `ours` over `theirs`."""
    return ratio([r.single_p50_s for r in measured[ours]], [r.single_p50_s for r in measured[theirs]])
