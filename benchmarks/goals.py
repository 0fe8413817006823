"""What the queue should reach in one run, and whether it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.compare import Rounds, over
from benchmarks.episodes import Grown, growth
from benchmarks.figures import Figure, figure, ratio
from benchmarks.overlap import Wall
from benchmarks.peers import OURS
from benchmarks.workers import CRITICS, Served

#: Least rate of the queue over each form of each peer.
_RATES = {
    "rq": 10.0,
    "rq-keys": 10.0,
    "celery": 4.0,
    "fastapi": 3.0,
    "fastapi-step": 3.0,
    "ray": 3.0,
    "ray-step": 3.0,
    "list": 1.5,
    "list-grouped": 1.5,
}
#: Most time of a single query over others'.
_SINGLES = {"redis": 3.0, "fastapi": 1.0}
#: Most time of a rollout over one without a critic, and most seconds of it after the last chunk.
_ROLLOUTS = {
    "2 workers, overlapped": (1.15, 1.5),
    "3 workers, overlapped": (1.05, 1.5),
    "2 workers, 9 references, overlapped": (1.25, 1.5),
}


@dataclass(frozen=True)
class Goal:
    """One figure and its bound.

    Attributes:
        what: the figure, in words.
        measured: over the rounds.
        bound: what its median should reach.
        at_least: whether it should be at least the bound, else at most.
    """

    what: str
    measured: Figure
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the median reaches the bound."""
        reached = self.measured.median
        return reached >= self.bound if self.at_least else reached <= self.bound


def of_peers(measured: Rounds, titles: Mapping[str, str]) -> list[Goal]:
    """Return goals of rates, latencies and the client's CPU time, for the peers that were measured."""
    kinds = (("queries/s", "queries_per_s", _RATES, True), ("single query", "single_p50_s", _SINGLES, False))
    goals = [
        Goal(f"{what} over {titles[name]}", over(measured, name, figure), bound, at_least)
        for what, figure, bounds, at_least in kinds
        for name, bound in bounds.items()
        if name in measured
    ]
    over_lz4 = ratio([each.client_s for each in measured[OURS]], [each.lz4_s for each in measured[OURS]])
    return [*goals, Goal("client CPU a frame over one lz4 of it", over_lz4, 1.3, at_least=False)]


def of_episodes(measured: Grown) -> Goal:
    """Return the goal of linear growth: the exponent of a step's time in the number of episodes."""
    return Goal("step time ~ episodes ^", figure([growth(measured)[1]]), 1.05, at_least=False)


def of_scaling(measured: Served) -> list[Goal]:
    """Return the goals of the most workers over one, for each critic that was measured."""
    counts = {count for _, count in measured}
    most, least = max(counts), min(counts)
    return [
        Goal(
            f"{most} workers over {least}, {title}",
            ratio(measured[critic, most], measured[critic, least]),
            7.5 / 8 * most / least,
            at_least=True,
        )
        for critic, title in CRITICS.items()
        if (critic, most) in measured
    ]


def of_rollouts(measured: Mapping[str, Sequence[Wall]]) -> list[Goal]:
    """Return the goals of wall times over the same without a critic, and of the wait for values at the end."""
    bare = [wall.seconds for wall in measured["no critic"]]
    goals = []
    for name, (most, most_after_s) in _ROLLOUTS.items():
        if walls := measured.get(name):
            over = ratio([wall.seconds for wall in walls], bare)
            after = figure([wall.after_s for wall in walls])
            goals += [
                Goal(f"rollout, {name}, over no critic", over, most, at_least=False),
                Goal(f"rollout, {name}: s after the last chunk", after, most_after_s, at_least=False),
            ]
    return goals
