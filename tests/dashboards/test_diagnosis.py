"""The diagnosis: what is said of each state of a queue, and how bad it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dashboards.diagnosis import is_bad, judge, missing_workers
from dashboards.snapshot import Look, Rates, Snapshot
from tests.dashboards.states import (
    AT,
    CRITIC_BOUND,
    FAILED,
    GIB,
    LOOKS,
    NO_WORKERS,
    ROLLOUT_BOUND,
    TROUBLED,
    URL,
    worker,
)
from vlac_queue.records import Episodes, PlainWorker, QueueState


def first(snapshot: Snapshot | None, error: str = "", **place: Any) -> tuple[str, str, str]:
    diagnosis = judge(Look(AT, snapshot, error), **{"url": URL, **place})[0]
    return diagnosis.severity, diagnosis.kind, diagnosis.sentence


def kinds(snapshot: Snapshot) -> list[str]:
    return [diagnosis.kind for diagnosis in judge(Look(AT, snapshot))]


def changed(snapshot: Snapshot = ROLLOUT_BOUND, **fields: Any) -> Snapshot:
    """With other fields of its queue, rates and workers, or of the snapshot itself."""
    for name in ("queue", "rates", "redis", "episodes"):
        if isinstance(fields.get(name), dict):
            fields[name] = replace(getattr(snapshot, name), **fields[name])
    return replace(snapshot, **fields)


def test_critics_that_can_not_keep_up() -> None:
    assert first(CRITIC_BOUND) == (
        "warning", "critic-bound", "critic-bound: workers 98 % busy, oldest job 4.10 s: add 4 workers",
    )  # fmt: skip


def test_load_that_comes_in_bursts() -> None:
    bursts = changed(CRITIC_BOUND, rates={"busy": 0.8})
    assert first(bursts)[1] == "critic-bound"
    assert first(changed(bursts, queue={"oldest_s": 0.5}))[1] == "balanced"


def test_critics_that_wait_for_rollouts() -> None:
    assert first(ROLLOUT_BOUND) == (
        "ok", "rollout-bound", "rollout-bound: workers 12 % busy, critics wait for rollouts",
    )  # fmt: skip


def test_neither_waits_for_the_other() -> None:
    assert first(changed(rates={"busy": 0.7}))[1:] == ("balanced", "balanced: workers 70 % busy")


def test_nobody_asks() -> None:
    assert first(changed(rates=Rates(0.0, 0.0, 0.0, None, 0.0, 50.0)))[1:] == (
        "idle", "idle: 4 workers and no queries",
    )  # fmt: skip


def test_jobs_that_wait_though_critics_are_free() -> None:
    snapshot = changed(queue={"waiting": 9, "oldest_s": 3.0})
    assert first(snapshot) == (
        "warning", "worker-bound",
        "worker-bound: workers 12 % busy, oldest job 3.00 s, decoding takes 4.2 ms: give workers more CPU",
    )  # fmt: skip


def test_no_workers_says_how_to_start_one() -> None:
    severity, kind, sentence = first(NO_WORKERS)
    assert (severity, kind) == ("bad", "no-workers")
    assert sentence == f"no workers, 3 jobs wait: start one with VLAC_REDIS_URL={URL} vlac-queue worker"


def test_one_is_not_many() -> None:
    one = changed(TROUBLED, rates={"queries_in_window": 1, "failures_in_window": 1}, failed=FAILED[:1])
    sentences = [diagnosis.sentence for diagnosis in judge(Look(AT, one))]
    assert "1 of 1 query failed within a minute: ValueError: the model said 'banana0'" in sentences
    waiting = changed(NO_WORKERS, queue={"waiting": 1, "oldest_s": 12.0})
    assert first(waiting)[2].startswith("no workers, 1 job waits: start one")


def test_an_error_of_long_ago_is_not_blamed_for_a_failure_of_now() -> None:
    since = changed(TROUBLED, failed=(replace(FAILED[0], at=AT - 300),))
    failing = next(diagnosis for diagnosis in judge(Look(AT, since)) if diagnosis.kind == "failing")
    assert failing.sentence == "31 of 2,550 queries failed within a minute"


def test_redis_is_away() -> None:
    assert first(None, "Redis at x can't be reached (refused)") == (
        "bad", "redis-away", "Redis at x can't be reached (refused)",
    )  # fmt: skip


@pytest.mark.parametrize(("part", "severity"), [(0.79, None), (0.85, "warning"), (0.91, "bad")])
def test_redis_near_its_memory(part: float, severity: str | None) -> None:
    diagnoses = judge(Look(AT, changed(redis={"used_bytes": int(part * 4 * GIB)})))
    found = [diagnosis for diagnosis in diagnoses if diagnosis.kind == "redis-full"]
    assert [diagnosis.severity for diagnosis in found] == ([severity] if severity else [])
    if severity == "bad":
        assert found[0].sentence == "Redis at 91 % of maxmemory (4.0 GiB): raise it, or close episodes"


def test_a_policy_that_loses_frames_is_bad_only_with_a_limit() -> None:
    assert first(changed(redis={"policy": "allkeys-lru"}))[:2] == ("bad", "redis-evicts")
    assert "redis-evicts" not in kinds(changed(redis={"policy": "allkeys-lru", "max_bytes": 0}))


def test_frames_near_their_budget() -> None:
    episodes = Episodes(3, frame_bytes=95, limit_bytes=100)
    assert first(changed(episodes=episodes))[:2] == ("bad", "frames-full")
    assert "frames-full" not in kinds(changed(episodes=replace(episodes, limit_bytes=0)))


def test_failing_queries() -> None:
    few = changed(rates={"failures_in_window": 3}, failed=FAILED)
    assert first(few) == (
        "warning", "failing", "3 of 1,200 queries failed within a minute: ValueError: the model said 'banana0'",
    )  # fmt: skip
    assert first(changed(rates={"failures_in_window": 120}))[:2] == ("bad", "failing")
    assert "failing" not in kinds(ROLLOUT_BOUND)


def test_a_lost_worker() -> None:
    lost = worker(9, state="lost", silent_s=17.0, taken=4)
    severity, kind, sentence = first(changed(workers=(*ROLLOUT_BOUND.workers, lost)))
    assert (severity, kind) == ("warning", "lost-worker")
    assert sentence == (
        "worker gpu-9-4242-ab19 on gpu-9 was lost 17 s ago, 4 jobs with it: see the log there, start it again"
    )
    alone = judge(Look(AT, changed(workers=(lost,))))
    assert [diagnosis.kind for diagnosis in alone] == ["no-workers", "lost-worker"]
    assert is_bad(alone)


def test_a_queue_that_is_stuck() -> None:
    waits = {"waiting": 5, "oldest_s": 40.0}
    stuck = changed(queue=waits, rates={"queries_per_s": 0.0, "still_s": 20.0})
    assert first(stuck)[:2] == ("bad", "stuck")
    assert "no answer for 20 s" in first(stuck)[2]
    # A batch may take long.
    busy = tuple(replace(each, state="busy") for each in stuck.workers)
    assert first(changed(stuck, workers=busy))[1] != "stuck"
    longer = changed(stuck, workers=busy, queue={"oldest_s": 400.0}, rates={"still_s": 400.0})
    assert first(longer)[1] == "stuck"


def test_suspended_workers() -> None:
    snapshot = changed(queue={"suspended": True, "waiting": 2})
    assert first(snapshot)[:2] == ("bad", "suspended")
    assert f"rq resume --url {URL}" in first(snapshot)[2]
    assert first(changed(queue={"suspended": True}))[:2] == ("warning", "suspended")


def test_workers_that_sleep_load_or_have_no_critic_yet() -> None:
    def all_are(state: str, **fields: Any) -> Snapshot:
        workers = tuple(worker(n, state=state, busy=0.0) for n in range(3))
        return changed(workers=workers, rates={"busy": None}, **fields)

    assert first(all_are("asleep"))[:2] == ("ok", "asleep")
    assert "all 3 workers" in first(all_are("asleep"))[2]
    assert first(all_are("loading")) == ("ok", "loading", "loading: 3 workers not ready yet")
    assert first(all_are("loading", queue={"waiting": 2}))[0] == "warning"
    assert first(all_are("idle"))[1] == "measuring"
    plain = changed(workers=(), plain=(PlainWorker("p", "h", 1, "idle"),), rates=Rates())
    assert first(plain)[:2] == ("ok", "no-critic")


def test_workers_that_answer_differently() -> None:
    other = replace(ROLLOUT_BOUND.workers[0], critic="reference")
    severity, kind, sentence = first(changed(workers=(*ROLLOUT_BOUND.workers, other)))
    assert (severity, kind) == ("bad", "mixed-critics")
    assert "reference, vlac" in sentence
    other = replace(ROLLOUT_BOUND.workers[0], prompt="ffff")
    assert first(changed(workers=(*ROLLOUT_BOUND.workers, other)))[:2] == ("warning", "mixed-critics")


def test_the_worst_comes_first() -> None:
    diagnoses = judge(LOOKS["troubled"])
    order = [("bad", "warning", "ok").index(diagnosis.severity) for diagnosis in diagnoses]
    assert order == sorted(order)
    assert [diagnosis.kind for diagnosis in diagnoses] == [
        "redis-full", "redis-evicts", "lost-worker", "failing", "critic-bound",
    ]  # fmt: skip


@pytest.mark.parametrize("name", LOOKS)
def test_there_is_always_a_diagnosis(name: str) -> None:
    diagnoses = judge(LOOKS[name])
    assert diagnoses
    assert all(diagnosis.sentence.isprintable() for diagnosis in diagnoses)
    assert is_bad(diagnoses) == (diagnoses[0].severity == "bad")


# How many workers.


def test_workers_that_are_missing_follow_from_load_and_service_rate() -> None:
    # 4 workers, each 25 queries/s when it works; 100 arrive and nothing waits: 100 / (0.8 x 25) = 5.
    at_limit = changed(
        CRITIC_BOUND, queue=QueueState(), rates=Rates(100.0, 10.0, 100.0, 10.0, 1.0, 0.1),
        workers=tuple(worker(n, busy=1.0) for n in range(4)),
    )  # fmt: skip
    assert missing_workers(at_limit) == 1
    # Twice as much arrives: 10.
    assert missing_workers(changed(at_limit, rates={"arriving_per_s": 200.0})) == 6
    # 10 s of it wait, to be worked off within 10 s: as much again.
    assert missing_workers(changed(at_limit, queue={"waiting": 100, "oldest_s": 10.0})) == 6


def test_unknown_rates_give_no_advice() -> None:
    assert missing_workers(changed(CRITIC_BOUND, rates=Rates(busy=0.98))) == 0
    assert first(changed(CRITIC_BOUND, rates=Rates(busy=0.98)))[2].endswith("oldest job 4.10 s")


def test_a_troubled_queue_is_bad() -> None:
    assert is_bad(judge(Look(AT, TROUBLED)))
    assert not is_bad(judge(Look(AT, CRITIC_BOUND)))
