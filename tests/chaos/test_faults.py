"""Each of these faults by itself; the others of faults.py have tests of their own, or are drawn by `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Table
from tests.chaos.faults import FAULTS, harm
from tests.chaos.stage import CAN_SHIFT, staged

_TIMES = {
    "misconf": 3,
    "no_replicas": 3,
    "busy": 3,
    "wrong_types": 2,
    "claims_lost": 3,
    "queue_emptied": 3,
    "clock_back": 2,
    "critic_exits": 3,
    "critic_vanishes": 3,
    "asleep": 3,
    "hungry": 2,
    "forked": 3,
    "interrupted": 10,
    "redis_frozen": 3,
    "keys_gone": 10,
}
_NEEDS_CLOCK = pytest.mark.skipif(not CAN_SHIFT, reason="libfaketime is missing: apt-get install faketime")
_FORGETS = ("keys_gone", "clock_back", "queue_emptied")


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=_NEEDS_CLOCK if FAULTS[key].shifts_clock else ()) for key in _TIMES]
)
def test_fault(key: str, tmp_path: Path, table: Table) -> None:
    with staged(tmp_path, seed=key, workers=2) as stage:
        load = stage.rolls(rollouts=2)
        recovered = []
        for _ in range(_TIMES[key]):
            stage.asks()
            since = harm(stage, key)
            stage.staff()
            recovered.append(stage.recovered_s(since))
        stage.finish()
        table.add(FAULTS[key].name, _TIMES[key], load, recovered, wire=key not in _FORGETS)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_writes_refused_for_longer_than_anybody_is_remembered(tmp_path: Path, table: Table) -> None:
    """Signs of life of clients and workers expire meanwhile; no worker ends."""
    with staged(tmp_path, seed="long", workers=2) as stage:
        load, there = stage.rolls(rollouts=2), stage.alive()
        stage.asks()
        stage.least_s = 65.0
        since = harm(stage, "misconf")
        recovered = stage.recovered_s(since)
        stage.finish()
        assert stage.alive() == there
        table.add("Redis refuses writes for 65 s", 1, load, [recovered])
