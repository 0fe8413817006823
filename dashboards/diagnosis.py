"""What a look at the queue means, in a sentence: pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dashboards.snapshot import WINDOW_S, Look, Snapshot, Worker
from vlac_queue.config import VlacConfig
from vlac_queue.control import start_line
from vlac_queue.texts import duration, latency, many, percent, size

#: "bad": answers do not come, come wrong, or soon will; "warning": works, and could be better; "ok".
Severity = Literal["bad", "warning", "ok"]
_ORDER = ("bad", "warning", "ok")

#: Parts of a limit (memory, budget) from which on it is near, and nearly reached.
_NEAR, _FULL = 0.8, 0.9
#: Busy part of the time from which on critics are what all wait for, and below which they wait for rollouts.
_BUSY, _IDLE = 0.9, 0.5
#: The former where jobs wait: load comes in bursts.
_BUSY_IN_BURSTS = 0.75
#: Share of failed answers from which on training suffers.
_FAILING = 0.1
#: Seconds without any answer, while jobs wait, after which the queue counts as stuck: with idle workers, and
#: with busy ones, whose batch may just take long.
_STUCK_S, _STUCK_BUSY_S = 15.0, 180.0
#: Seconds that a job may wait before it is worth a word.
_WAITS_S = 1.0
#: Busy part of the time that advice aims at, and seconds in which what waits should be worked off.
_AIM, _DRAIN_S = 0.8, 10.0


@dataclass(frozen=True)
class Diagnosis:
    """What a look means.

    Attributes:
        severity: how bad it is.
        kind: a name for scripts, such as "critic-bound"; docs/dashboard.md lists them.
        sentence: for people; what is, and what to do.
    """

    severity: Severity
    kind: str
    sentence: str


def judge(look: Look, *, url: str = VlacConfig.redis_url, queue: str = "vlac") -> tuple[Diagnosis, ...]:
    """All that there is to say, the worst first; never empty.

    Args:
        url, queue: where a worker would have to be started, without password.
    """
    if look.snapshot is None:
        return (Diagnosis("bad", "redis-away", look.error),)
    snapshot = look.snapshot
    flow = _flow(snapshot)
    found = [*_redis(snapshot), *_workers(snapshot, url, queue), *_answers(snapshot), *_training(snapshot)]
    found += [flow] if flow else []
    # sorted() keeps the order of equals, which is that of the checks.
    return tuple(sorted(found, key=lambda diagnosis: _ORDER.index(diagnosis.severity)))


def is_bad(diagnoses: tuple[Diagnosis, ...]) -> bool:
    """Whether a script should be told."""
    return diagnoses[0].severity == "bad"


def _redis(snapshot: Snapshot) -> Iterator[Diagnosis]:
    server, episodes = snapshot.redis, snapshot.episodes
    if server.max_bytes:
        used = server.used_bytes / server.max_bytes
        if used >= _NEAR:
            yield Diagnosis(
                "bad" if used >= _FULL else "warning",
                "redis-full",
                f"Redis at {percent(used)} of maxmemory ({size(server.max_bytes)}): raise it, or close episodes",
            )
        if server.policy != "noeviction":
            yield Diagnosis(
                "bad",
                "redis-evicts",
                f"Redis may evict frames ({server.policy}): config set maxmemory-policy noeviction",
            )
    if episodes.limit_bytes and episodes.frame_bytes >= _NEAR * episodes.limit_bytes:
        part = episodes.frame_bytes / episodes.limit_bytes
        yield Diagnosis(
            "bad" if part >= _FULL else "warning",
            "frames-full",
            f"frames at {percent(part)} of max_pending_bytes ({size(episodes.limit_bytes)}): "
            "close episodes, add workers or raise it",
        )


def _workers(snapshot: Snapshot, url: str, queue: str) -> Iterator[Diagnosis]:
    waiting = snapshot.queue.waiting
    lost = [worker for worker in snapshot.workers if worker.state == "lost"]
    if not snapshot.listening:
        waits = f", {_wait(waiting)}" if waiting else ""
        yield Diagnosis("bad", "no-workers", f"no workers{waits}: start one with {start_line(url, queue)}")
    elif snapshot.queue.suspended:
        yield Diagnosis(
            "bad" if waiting else "warning",
            "suspended",
            f"suspended: `rq suspend` holds all workers, {_wait(waiting)}: rq resume --url {url}",
        )
    if lost:
        yield Diagnosis("bad" if not snapshot.listening else "warning", "lost-worker", _lost(lost))
    for name, several in (("critic", "critics"), ("model", "models"), ("prompt", "prompts")):
        kinds = sorted({getattr(worker, name) for worker in snapshot.alive} - {""})
        if len(kinds) > 1:
            yield Diagnosis(
                "bad" if name == "critic" else "warning",
                "mixed-critics",
                f"workers answer with different {several}, whichever comes first: {', '.join(kinds)}",
            )
            break


def _lost(lost: list[Worker]) -> str:
    last = min(lost, key=lambda worker: worker.silent_s)
    where = f" on {last.host}" if last.host else ""
    since = f" {duration(last.silent_s)} ago" if last.silent_s else ""
    who = f"worker {last.name}{where} was" if len(lost) == 1 else f"{len(lost)} workers were"
    taken = sum(worker.taken for worker in lost)
    jobs = f", {many(taken, 'job')} with it" if taken else ""
    return f"{who} lost{since}{jobs}: see the log there, start it again"


def _answers(snapshot: Snapshot) -> Iterator[Diagnosis]:
    queries, failures = snapshot.rates.queries_in_window, snapshot.rates.failures_in_window
    if failures:
        since = snapshot.time - WINDOW_S
        last = next((f": {failed.error}" for failed in snapshot.failed if failed.error and failed.at > since), "")
        yield Diagnosis(
            "bad" if failures >= _FAILING * queries else "warning",
            "failing",
            f"{failures:,} of {many(queries, 'query')} failed within a minute{last}",
        )


def _training(snapshot: Snapshot) -> Iterator[Diagnosis]:
    if snapshot.fooled:
        yield Diagnosis("bad", "critic-fooled", f"the critic seems fooled, see docs/trust.md: {snapshot.fooled}")


def _flow(snapshot: Snapshot) -> Diagnosis | None:
    """What limits the answers: the critics, the rollouts, or something that went wrong."""
    rates, queue, alive = snapshot.rates, snapshot.queue, snapshot.alive
    if not snapshot.listening or queue.suspended:
        return None
    awake = [worker for worker in alive if worker.state not in ("asleep", "loading")]
    loading = sum(worker.state == "loading" for worker in alive)
    if not awake and loading:
        waits = f", {_wait(queue.waiting)}" if queue.waiting else ""
        severity: Severity = "warning" if queue.waiting else "ok"
        return Diagnosis(severity, "loading", f"loading: {many(loading, 'worker')} not ready yet{waits}")
    stuck_s = _STUCK_BUSY_S if any(worker.state == "busy" for worker in awake) else _STUCK_S
    if queue.waiting and min(rates.still_s or 0.0, queue.oldest_s or 0.0) > stuck_s:
        return Diagnosis(
            "bad",
            "stuck",
            f"stuck: {_wait(queue.waiting)}{_oldest(snapshot)}, no answer for {duration(rates.still_s or 0.0)}: "
            "see the workers' logs, run vlac-queue doctor",
        )
    if not awake and alive:
        who, wakes = ("the worker", "it") if len(alive) == 1 else (f"all {len(alive)} workers", "them")
        return Diagnosis("ok", "asleep", f"asleep: {who} gave the GPU memory back; a query wakes {wakes}")
    if rates.busy is None:
        jobs = many(queue.waiting, "job")
        if alive:
            return Diagnosis("ok", "measuring", f"measuring: {many(len(alive), 'worker')}, {jobs} waiting")
        plain = many(len(snapshot.plain), "plain worker")
        return Diagnosis("ok", "no-critic", f"{plain}, no critic yet: the first query loads it; {jobs} waiting")
    return _limit(snapshot, rates.busy)


def _limit(snapshot: Snapshot, part: float) -> Diagnosis:
    """What limits answers that come, while critics work `part` of the time."""
    waits_long = snapshot.queue.waiting > 0 and (snapshot.queue.oldest_s or 0.0) > _WAITS_S
    busy, oldest = f"workers {percent(part)} busy", _oldest(snapshot)
    if part >= (_BUSY_IN_BURSTS if waits_long else _BUSY):
        missing = missing_workers(snapshot)
        advice = f": add {many(missing, 'worker')}" if missing else ""
        return Diagnosis("warning", "critic-bound", f"critic-bound: {busy}{oldest}{advice}")
    if waits_long:
        decoding = snapshot.latency.get("decoding")
        slow = f", decoding takes {latency(decoding.p50_s)}" if decoding and decoding.p50_s else ""
        return Diagnosis("warning", "worker-bound", f"worker-bound: {busy}{oldest}{slow}: give workers more CPU")
    if not snapshot.rates.queries_per_s:
        return Diagnosis("ok", "idle", f"idle: {many(len(snapshot.alive), 'worker')} and no queries")
    if part < _IDLE:
        return Diagnosis("ok", "rollout-bound", f"rollout-bound: {busy}, critics wait for rollouts")
    return Diagnosis("ok", "balanced", f"balanced: {busy}")


def _oldest(snapshot: Snapshot) -> str:
    return f", oldest job {latency(snapshot.queue.oldest_s)}" if snapshot.queue.oldest_s is not None else ""


def missing_workers(snapshot: Snapshot) -> int:
    """How many more workers would keep up, 0 where that can't be reckoned.

    A worker's service rate is what it answers in a second of its critic's work: queries/s over busy. The load
    is what arrives, plus what waits by Little's law (arrival rate x waiting time), to be worked off within
    _DRAIN_S. Workers are enough when the load keeps them busy _AIM of the time: waiting grows without bound
    as that nears 1. Rollouts that wait ask less, so this is a lower bound; add, and look again.
    """
    rates, count = snapshot.rates, len([worker for worker in snapshot.alive if worker.busy is not None])
    if not rates.queries_per_s or not rates.busy or rates.arriving_per_s is None or not count:
        return 0
    of_one = rates.queries_per_s / (rates.busy * count)
    waiting = rates.arriving_per_s * (snapshot.queue.oldest_s or 0.0)
    load = rates.arriving_per_s + waiting / _DRAIN_S
    return max(1, math.ceil(load / (_AIM * of_one)) - count)


def _wait(jobs: int) -> str:
    return "1 job waits" if jobs == 1 else f"{jobs:,} jobs wait"
