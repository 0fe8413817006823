"""What the queue should reach."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import goals
from benchmarks.compare import median_round
from benchmarks.figures import Figure
from benchmarks.goals import Goal
from benchmarks.measuring import Round
from benchmarks.overlap import Wall
from benchmarks.peers import OURS, PEERS

TITLES = {name: peer.title for name, peer in PEERS.items()}
ROUND = Round(
    queries_per_s=1000.0,
    step_p50_s=0.064,
    step_p99_s=0.080,
    single_p50_s=0.002,
    single_p99_s=0.004,
    client_s=0.0003,
    redis_s=0.0001,
    workers_s=0.0002,
    wire_bytes=20_000.0,
    lz4_s=0.0003,
    queries=6400,
)


def test_a_goal_is_met_from_its_bound_on() -> None:
    assert Goal("rate", Figure(3.0, 2.9, 3.1), 3.0, at_least=True).met
    assert not Goal("rate", Figure(2.99, 2.9, 3.1), 3.0, at_least=True).met
    assert Goal("wall", Figure(1.03, 1.0, 1.1), 1.03, at_least=False).met
    assert not Goal("wall", Figure(1.04, 1.0, 1.1), 1.03, at_least=False).met


def test_only_peers_that_were_measured_have_goals() -> None:
    slow = replace(ROUND, queries_per_s=90.0, single_p50_s=0.0005)
    by_name = {goal.what: goal for goal in goals.of_peers({OURS: [ROUND] * 3, "rq": [slow] * 3}, TITLES)}
    assert set(by_name) == {"queries/s over RQ, frames in jobs", "client CPU a frame over one lz4 of it"}
    assert by_name["queries/s over RQ, frames in jobs"].measured.median == pytest.approx(1000 / 90)
    assert all(goal.met for goal in by_name.values())


def test_a_single_query_may_take_three_round_trips() -> None:
    echo = replace(ROUND, single_p50_s=0.0006)
    (goal,) = [g for g in goals.of_peers({OURS: [ROUND], "redis": [echo]}, TITLES) if "single" in g.what]
    assert not goal.met and goal.bound == 3.0


def test_scaling_is_the_most_workers_over_the_least() -> None:
    served = {("ImageCritic", 1): [200.0] * 3, ("ImageCritic", 8): [1400.0, 1560.0, 1600.0]}
    (goal,) = goals.of_scaling(served)
    assert goal.measured == Figure(7.8, 7.0, 8.0) and goal.bound == 7.5 and goal.met


def test_the_median_of_bytes_that_nothing_counts_is_none() -> None:
    uncounted = replace(ROUND, wire_bytes=None)
    rates = [replace(uncounted, queries_per_s=rate) for rate in (900.0, 1000.0, 2000.0)]
    assert median_round(rates) == uncounted


def test_rollouts_are_compared_round_by_round() -> None:
    walls = {
        "no critic": [Wall(20.0, 0.0), Wall(40.0, 0.0)],
        "3 workers, overlapped": [Wall(21.0, 2.0), Wall(42.0, 1.0)],
    }
    over, after = goals.of_rollouts(walls)
    assert over.measured == Figure(1.05, 1.05, 1.05) and over.met
    assert after.measured.median == 1.5 and after.met
