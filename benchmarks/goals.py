"""What the queue should reach, as ratios in one run, and whether it does."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.compare import Rounds, latency_over, rate_over
from benchmarks.episodes import Asked, growth
from benchmarks.figures import Ratio, ratio
from benchmarks.peers import OURS
from benchmarks.workers import Served


@dataclass(frozen=True)
class Goal:
    """One figure and its bound.

    Attributes:
        what: the figure, in words.
        measured: its median over the rounds, and their extremes.
        bound: what it should reach.
        at_least: whether it should be at least the bound, else at most.
    """

    what: str
    measured: Ratio
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the median reaches the bound."""
        compare: Callable[[float, float], bool] = operator.ge if self.at_least else operator.le
        return compare(self.measured.median, self.bound)


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


def of_peers(measured: Rounds, titles: dict[str, str]) -> list[Goal]:
    """Rates, latencies and the client's CPU time, for the peers that were measured."""
    goals = [
        Goal(f"queries/s over {titles[name]}", rate_over(measured, OURS, name), bound, at_least=True)
        for name, bound in _RATES.items()
        if name in measured
    ]
    goals += [
        Goal(f"single query over {titles[name]}", latency_over(measured, OURS, name), bound, at_least=False)
        for name, bound in _SINGLES.items()
        if name in measured
    ]
    rounds = measured[OURS]
    over_lz4 = ratio([each.client_s for each in rounds], [each.lz4_s for each in rounds])
    return [*goals, Goal("client CPU a frame over one lz4 of it", over_lz4, 1.3, at_least=False)]


def of_episodes(measured: list[Asked]) -> list[Goal]:
    """Linear growth: the exponent of a step's time in the number of episodes."""
    _, exponent = growth(measured)
    return [Goal("step time ~ episodes ^", Ratio(exponent, exponent, exponent), 1.05, at_least=False)]


def of_scaling(measured: list[list[Served]], critics: dict[str, str]) -> list[Goal]:
    """The most workers over one, for each critic; `measured` is a list for each round."""
    most, least = (pick(each.workers for each in measured[0]) for pick in (max, min))
    goals = []
    for critic, title in critics.items():
        rates = [
            {each.workers: each.queries_per_s for each in served if each.critic == critic} for served in measured
        ]
        over = ratio([each[most] for each in rates], [each[least] for each in rates])
        what = f"{most} workers over {least}, {title}"
        goals.append(Goal(what, over, 7.5 / 8 * most / least, at_least=True))
    return goals


def of_rollouts(walls: Mapping[str, Sequence[tuple[float, float]]]) -> Goal:
    """Wall time of overlapped rollouts over the same without a critic."""
    over = ratio([wall for wall, _ in walls["overlapped"]], [wall for wall, _ in walls["no critic"]])
    return Goal("rollout with the critic, overlapped, over without", over, 1.03, at_least=False)


def of_values(what: str, values: list[float], bound: float, *, at_least: bool) -> Goal:
    """A figure that is no ratio of two rows: one value a round."""
    return Goal(what, ratio(values, [1.0] * len(values)), bound, at_least)
