"""Rates, latencies and lost workers, from readings one after the other."""

from __future__ import annotations

from typing import Any

import pytest

from dashboards.history import REMEMBER_LOST_S, History
from dashboards.snapshot import WINDOW_S, Snapshot
from tests.dashboards.redis_state import histogram
from vlac_queue.control import WorkerInfo
from vlac_queue.records import Episodes, QueueState, Reading, RedisState, Training, WorkerReading

_SERVER = RedisState("7.2.4", 1 << 20, 0, "noeviction", 3)
#: When the workers of these tests started.
_START = 1000.0


def at(
    time: float,
    *,
    latency: str | None = None,
    taken: int = 0,
    beat: float | None = None,
    name: str = "w1",
    **fields: Any,
) -> WorkerReading:
    """A worker that has just beaten."""
    beat = time if beat is None else beat
    said: dict[str, Any] = {"pid": 42, "state": "busy", "time": beat, "uptime_s": beat - _START, **fields}
    info = WorkerInfo(name, **said)
    return WorkerReading(name, info, {} if latency is None else {"total": latency.encode()}, taken)


def reading(time: float, *workers: WorkerReading, waiting: int = 0) -> Reading:
    taken = sum(worker.taken for worker in workers)
    queue = QueueState(waiting=waiting, taken=taken)
    return Reading(time, _SERVER, queue, Episodes(), workers, (), Training())


def seen(*readings: Reading) -> Snapshot:
    """The snapshot at the last of them."""
    history = History()
    for each in readings:
        snapshot = history.add(each)
    return snapshot


# Rates.


def test_one_look_tells_no_rate() -> None:
    snapshot = seen(reading(1010, at(1010, queries=100, busy_s=5.0)))
    (worker,) = snapshot.workers
    assert (worker.queries_per_s, worker.busy, worker.mean_batch) == (None, None, None)
    assert (snapshot.rates.queries_per_s, snapshot.rates.busy) == (None, None)


def test_rates_are_those_between_beats() -> None:
    snapshot = seen(
        reading(1010, at(1010, queries=100, batches=10, busy_s=5.0)),
        reading(1012, at(1012, queries=160, batches=14, busy_s=5.5)),
    )
    (worker,) = snapshot.workers
    assert (worker.queries_per_s, worker.batches_per_s, worker.mean_batch, worker.busy) == (30.0, 2.0, 15.0, 0.25)
    assert (snapshot.rates.queries_per_s, snapshot.rates.mean_batch, snapshot.rates.busy) == (30.0, 15.0, 0.25)


def test_a_look_between_two_beats_is_no_standstill() -> None:
    snapshot = seen(
        reading(1010, at(1010, queries=100)),
        reading(1012, at(1012, queries=160)),
        reading(1012.5, at(1012.5, beat=1012, queries=160)),
    )
    assert snapshot.workers[0].queries_per_s == 30.0


def test_rates_are_those_of_the_last_ten_seconds() -> None:
    looks = [reading(1010 + n, at(1010 + n, queries=100 * n if n < 20 else 2000)) for n in range(40)]
    assert seen(*looks[:15]).workers[0].queries_per_s == 100.0
    assert seen(*looks).workers[0].queries_per_s == 0.0


def test_a_long_batch_does_not_count_as_more_than_busy() -> None:
    assert seen(reading(1010, at(1010, busy_s=1)), reading(1011, at(1011, busy_s=9))).workers[0].busy == 1.0


@pytest.mark.parametrize("anew", [{"queries": 10}, {"queries": 200, "pid": 43}], ids=["totals fell", "new pid"])
def test_a_worker_that_started_anew_begins_at_zero(anew: dict[str, Any]) -> None:
    snapshot = seen(reading(1010, at(1010, queries=100)), reading(1012, at(1012, **anew)))
    assert snapshot.workers[0].queries_per_s is None
    assert snapshot.rates.queries_in_window == anew["queries"]


def test_the_rate_of_all_is_the_sum() -> None:
    first = [at(1010, name=name) for name in "ab"]
    second = [at(1012, name=name, queries=queries) for name, queries in (("a", 100), ("b", 20), ("c", 7))]
    snapshot = seen(reading(1010, *first), reading(1012, *second))
    assert [worker.queries_per_s for worker in snapshot.workers] == [50.0, 10.0, None]
    assert snapshot.rates.queries_per_s == 60.0


def test_sleeping_workers_do_not_make_the_others_look_idle() -> None:
    def both(time: float, busy_s: float) -> Reading:
        return reading(time, at(time, name="a", busy_s=busy_s), at(time, name="b", state="asleep"))

    assert seen(both(1010, 0.0), both(1012, 2.0)).rates.busy == 1.0


def test_what_arrives_is_what_is_answered_and_what_piles_up() -> None:
    def piling(time: float, waiting: int, answered: int) -> Reading:
        return reading(time, at(time, queries=answered, jobs=answered // 10), waiting=waiting)

    snapshot = seen(piling(1010, 0, 100), piling(1012, 4, 200))
    assert snapshot.rates.queries_per_s == 50.0
    assert snapshot.rates.arriving_per_s == 50.0 + 4 * 10 / 2  # ten queries a job


def test_failures_count_for_a_minute() -> None:
    def failing(time: float, queries: int, failures: int) -> Reading:
        return reading(time, at(time, queries=queries, failures=failures))

    looks = [failing(1010, 0, 0), failing(1011, 10, 3), failing(1012, 20, 3)]
    rates = seen(*looks).rates
    assert (rates.queries_in_window, rates.failures_in_window) == (20, 3)
    rates = seen(*looks, failing(1012 + WINDOW_S, 21, 3)).rates
    assert (rates.queries_in_window, rates.failures_in_window) == (11, 0)


def test_how_long_nothing_was_answered() -> None:
    looks = [reading(1010 + n, at(1010 + n, queries=min(n, 5))) for n in range(30)]
    assert seen(*looks[:6]).rates.still_s == 0.0
    assert seen(*looks).rates.still_s == 24.0


# Latencies.


def test_latency_is_that_of_what_was_answered_meanwhile() -> None:
    old, new = histogram(*[0.01] * 100), histogram(*[0.01] * 100, *[2.0] * 10)
    snapshot = seen(reading(1010, at(1010, latency=old)), reading(1012, at(1012, latency=new, queries=10)))
    times = snapshot.latency["total"]
    assert times.count == 10
    assert times.p50_s == pytest.approx(2.0, rel=0.2)
    assert snapshot.latency["waiting"].p50_s is None


def test_latencies_of_workers_add_up() -> None:
    def both(time: float, fast: str, slow: str) -> Reading:
        return reading(time, at(time, name="a", latency=fast), at(time, name="b", latency=slow))

    snapshot = seen(both(1010, "", ""), both(1012, histogram(*[0.01] * 97), histogram(*[5.0] * 3)))
    times = snapshot.latency["total"]
    assert times.count == 100
    assert times.p50_s == pytest.approx(0.01, rel=0.2)
    assert times.p95_s == pytest.approx(0.01, rel=0.2)
    assert times.p99_s == pytest.approx(5.0, rel=0.2)


def test_latencies_are_forgotten_after_a_minute() -> None:
    looks = [reading(1010, at(1010, latency="")), reading(1011, at(1011, latency=histogram(9.0)))]
    later = reading(1012 + WINDOW_S, at(1012 + WINDOW_S, latency=histogram(9.0, 0.1)))
    assert seen(*looks).latency["total"].p50_s == pytest.approx(9.0, rel=0.2)
    assert seen(*looks, later).latency["total"].count == 1
    assert seen(*looks, later).latency["total"].p50_s == pytest.approx(0.1, rel=0.2)


def test_latencies_of_a_worker_that_started_anew_count_from_its_start() -> None:
    before = at(1010, latency=histogram(*[9.0] * 50), queries=50)
    after = at(1012, latency=histogram(0.1, 0.1), queries=2, pid=43)
    times = seen(reading(1010, before), reading(1012, after)).latency["total"]
    assert times.count == 2
    assert times.p99_s == pytest.approx(0.1, rel=0.2)


def test_a_worker_that_began_while_we_looked_counts_from_its_start() -> None:
    fresh = WorkerReading(
        "w1", WorkerInfo("w1", pid=1, time=1012, uptime_s=1.5, queries=3), {"total": histogram(0.1).encode()}
    )
    snapshot = seen(reading(1010), reading(1012, fresh))
    assert (snapshot.latency["total"].count, snapshot.rates.queries_in_window) == (1, 3)


def test_many_workers_histograms_are_read_more_seldom_and_none_is_lost() -> None:
    history = History()
    for second in range(31):
        workers = [
            at(1010 + second, name=f"w{n}", latency=histogram(*[0.1] * second), queries=second) for n in range(100)
        ]
        snapshot = history.add(reading(1010 + second, *workers))
    assert snapshot.rates.queries_in_window == 100 * 30
    assert 100 * 25 <= snapshot.latency["total"].count <= 100 * 30


def test_damaged_histograms_are_left_out() -> None:
    snapshot = seen(reading(1010, at(1010, latency="")), reading(1012, at(1012, latency="not a histogram")))
    assert snapshot.latency["total"].count == 0


# Lost workers.


def test_a_worker_without_a_beat_is_lost() -> None:
    first = reading(1010, at(1010, taken=2, queries=1))
    assert seen(first).workers[0].state == "busy"
    silent = reading(1014, at(1014, beat=1010, taken=2, queries=1))
    assert [worker.state for worker in seen(first, silent).workers] == ["lost"]
    gone = reading(1018, WorkerReading("w1", None, {}, taken=2))
    (worker,) = seen(first, silent, gone).workers
    assert (worker.state, worker.taken, worker.silent_s, worker.queries_per_s) == ("lost", 2, 8.0, None)
    assert seen(first, silent, gone).listening == 0


def test_a_lost_worker_is_remembered_for_a_while() -> None:
    looks = [reading(1010, at(1010)), reading(1014, at(1014, beat=1010)), reading(1020)]
    (worker,) = seen(*looks).workers
    assert (worker.name, worker.state, worker.silent_s) == ("w1", "lost", 10.0)
    assert seen(*looks, reading(1021 + REMEMBER_LOST_S)).workers == ()


def test_a_worker_that_ends_in_order_is_not_lost() -> None:
    assert seen(reading(1010, at(1010)), reading(1011)).workers == ()


def test_a_name_alone_is_nobody() -> None:
    assert seen(reading(1010, WorkerReading("w1", None, {}, taken=0))).workers == ()
    (worker,) = seen(reading(1010, WorkerReading("w1", None, {}, taken=3))).workers
    assert (worker.state, worker.taken) == ("lost", 3)


def test_a_lost_worker_that_comes_back_works_again() -> None:
    snapshot = seen(
        reading(1010, at(1010, queries=5)), reading(1015, at(1015, beat=1010, queries=5)),
        reading(1016, at(1016, queries=11)), reading(1017, at(1017, queries=12)),
    )  # fmt: skip
    assert (snapshot.workers[0].state, snapshot.rates.queries_in_window) == ("busy", 7)
