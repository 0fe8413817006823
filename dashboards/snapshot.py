"""The state of one queue at one moment, read from Redis without changing anything there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import redis
from rq import Worker
from rq.registry import FailedJobRegistry

from vlac_queue.keys import TOTAL_FIELD, WORKER_TTL_MS, Keys

#: Seconds without a heartbeat from which on a worker counts as silent; it beats every second.
SILENT_AFTER_S = 3.0
#: Most characters kept of a text from Redis.
_MAX_TEXT = 200

#: Whole numbers of a worker's hash, named as in CriticState.
_COUNTS = (
    "pid",
    "jobs",
    "rejected_jobs",
    "queries",
    "failures",
    "batches",
    "max_batch",
    "rss_bytes",
    "accelerator_bytes",
)
_TEXTS = ("host", "critic", "model", "engine", "parent")

_RQ_WORKER = Worker.redis_worker_namespace_prefix


@dataclass(frozen=True)
class RedisState:
    """The server.

    Attributes:
        version: such as "7.2.4".
        used_bytes: memory in use.
        max_bytes: its limit (maxmemory); 0 is none.
        policy: maxmemory-policy, what it does at the limit; anything but noeviction may lose frames.
        clients: connected clients, this one among them.
    """

    version: str
    used_bytes: int
    max_bytes: int
    policy: str
    clients: int

    @property
    def may_evict(self) -> bool:
        return self.max_bytes > 0 and self.policy != "noeviction"


@dataclass(frozen=True)
class QueueState:
    """Jobs and episodes.

    Attributes:
        name: the queue's.
        waiting: jobs that no worker has taken yet.
        oldest_s: seconds for which the first of them has waited; None where none waits (or none says since when).
        taken: jobs that workers have taken and not finished.
        failed: jobs that were rejected or failed lately, as `rq info` counts them.
        episodes: open episodes.
        frame_bytes: encoded frames of the open episodes, and of crashed ones until the next push purges them.
    """

    name: str
    waiting: int
    oldest_s: float | None
    taken: int
    failed: int
    episodes: int
    frame_bytes: int


@dataclass(frozen=True)
class CriticState:
    """One worker with a critic, as it described itself at its last heartbeat.

    Attributes:
        state: "loading", "idle", "busy"; "silent" (no heartbeat for SILENT_AFTER_S) or "gone" (it died, and
            what it had taken waits for another worker).
        critic: its critic's name; model and engine where it has them, else "".
        parent: the plain RQ worker that it lives in, or "".
        taken: jobs that it has taken and not finished.
        silent_s: seconds since its last heartbeat.
        uptime_s: seconds since it started.
        jobs, rejected_jobs, queries, failures, batches: totals since then; failures are among the queries.
        mean_batch: queries for each call of the critic; None before the first.
        busy: part of the time for which the critic worked, 0..1: since the snapshot before, or since the start.
        queries_per_s: since the snapshot before; None in the first one.
        rss_bytes, accelerator_bytes: memory in use.
        busy_s, beat: what the next snapshot computes busy and queries_per_s from.
    """

    name: str
    state: str
    host: str = ""
    pid: int = 0
    critic: str = ""
    model: str = ""
    engine: str = ""
    parent: str = ""
    taken: int = 0
    silent_s: float = 0.0
    uptime_s: float = 0.0
    jobs: int = 0
    rejected_jobs: int = 0
    queries: int = 0
    failures: int = 0
    batches: int = 0
    max_batch: int = 0
    mean_batch: float | None = None
    busy: float = 0.0
    queries_per_s: float | None = None
    rss_bytes: int = 0
    accelerator_bytes: int = 0
    busy_s: float = 0.0
    beat: float = 0.0


@dataclass(frozen=True)
class PlainWorker:
    """An RQ worker without a critic yet: it loads one with its first job."""

    name: str
    host: str
    pid: int
    state: str


@dataclass(frozen=True)
class Snapshot:
    """All of it.

    Attributes:
        time: seconds since 1970 on Redis' clock.
        queries_per_s: of all workers together; None where no worker has a rate yet.
    """

    time: float
    redis: RedisState
    queue: QueueState
    critics: tuple[CriticState, ...]
    plain: tuple[PlainWorker, ...]
    queries_per_s: float | None

    @property
    def listening(self) -> int:
        """Workers that live."""
        return len(self.plain) + sum(critic.state != "gone" for critic in self.critics)


def read_snapshot(connection: redis.Redis, keys: Keys, previous: Snapshot | None = None) -> Snapshot:
    """The state now, in two round trips.

    Args:
        connection: with decode_responses off.
        previous: the snapshot before, for the rates.

    Raises:
        redis.RedisError: Redis can't be reached, or refuses a command.
    """
    with connection.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.info()
        pipeline.llen(keys.rq_queue)
        pipeline.lindex(keys.rq_queue, 0)
        pipeline.zcard(FailedJobRegistry.key_template.format(keys.queue))
        pipeline.hget(keys.sizes, TOTAL_FIELD)
        pipeline.smembers(keys.workers)
        pipeline.smembers(keys.rq_workers)
        (seconds, micros), info, waiting, oldest, failed, frame_bytes, critics, registered = pipeline.execute()
    now = seconds + micros / 1e6
    critic_names = sorted(map(_decode, critics))
    rq_names = sorted(name for name in map(_decode, registered) if name.startswith(_RQ_WORKER))

    with connection.pipeline(transaction=False) as pipeline:
        # What expired is still listed until somebody pushes: count only what has not.
        pipeline.zcount(keys.open, f"({now}", "+inf")
        pipeline.hget(keys.rq_job(_decode(oldest or b"")), "enqueued_at")
        for name in critic_names:
            pipeline.hgetall(keys.worker(name))
            pipeline.pttl(keys.worker(name))
            pipeline.llen(keys.claims(name))
        for name in rq_names:
            pipeline.hgetall(name)
        episodes, enqueued_at, *replies = pipeline.execute()
    of_critics, of_rq = replies[: 3 * len(critic_names)], replies[3 * len(critic_names) :]

    before = {critic.name: critic for critic in previous.critics} if previous else {}
    described = [
        with_rates(_critic(name, fields, pttl_ms, taken), before.get(name))
        for name, fields, pttl_ms, taken in zip(
            critic_names, of_critics[0::3], of_critics[1::3], of_critics[2::3], strict=True
        )
        if fields or taken  # a name alone is what a worker that died idle leaves behind
    ]
    rates = [critic.queries_per_s for critic in described if critic.queries_per_s is not None]
    return Snapshot(
        time=now,
        redis=RedisState(
            version=_clean(info.get("redis_version", "?")),
            used_bytes=_int(info.get("used_memory")),
            max_bytes=_int(info.get("maxmemory")),
            policy=_clean(info.get("maxmemory_policy", "?")),
            clients=_int(info.get("connected_clients")),
        ),
        queue=QueueState(
            name=keys.queue,
            waiting=waiting,
            oldest_s=_age_s(enqueued_at, now) if waiting else None,
            taken=sum(critic.taken for critic in described),
            failed=failed,
            episodes=episodes,
            frame_bytes=max(0, _int(frame_bytes)),
        ),
        critics=tuple(described),
        plain=_plain_workers(rq_names, of_rq, described),
        queries_per_s=sum(rates) if rates or not described else None,
    )


def with_rates(critic: CriticState, previous: CriticState | None) -> CriticState:
    """The critic with busy and queries_per_s, from its totals now and in the snapshot before.

    The totals change with each heartbeat only, so the time between two of them counts and not the time
    between two snapshots; where there was none in between, the rates stay what they were.
    """
    uptime_s = max(critic.uptime_s, 1e-3)
    if critic.state == "gone":
        return replace(critic, queries_per_s=None)
    if previous is None or critic.pid != previous.pid or critic.queries < previous.queries or not previous.beat:
        return replace(critic, busy=_part(critic.busy_s / uptime_s), queries_per_s=None)
    elapsed_s = critic.beat - previous.beat
    if elapsed_s <= 0:
        return replace(critic, busy=previous.busy, queries_per_s=previous.queries_per_s)
    return replace(
        critic,
        busy=_part((critic.busy_s - previous.busy_s) / elapsed_s),
        queries_per_s=(critic.queries - previous.queries) / elapsed_s,
    )


def _critic(name: str, fields: Mapping[bytes, bytes], pttl_ms: int, taken: int) -> CriticState:
    if not fields:
        return CriticState(name=_clean(name), state="gone", taken=taken)
    silent_s = max(0.0, (WORKER_TTL_MS - pttl_ms) / 1000) if pttl_ms >= 0 else 0.0
    texts = {key: _clean(fields.get(key.encode(), b"")) for key in _TEXTS}
    counts = {key: _int(fields.get(key.encode())) for key in _COUNTS}
    batches = counts["batches"]
    return CriticState(
        name=_clean(name),
        state="silent" if silent_s > SILENT_AFTER_S else _clean(fields.get(b"state", b"?")),
        taken=taken,
        silent_s=round(silent_s, 3),
        uptime_s=_float(fields.get(b"uptime_s")),
        mean_batch=counts["queries"] / batches if batches else None,
        busy_s=_float(fields.get(b"busy_s")),
        beat=_float(fields.get(b"time")),
        **texts,  # type: ignore[arg-type]
        **counts,  # type: ignore[arg-type]
    )


def _plain_workers(
    names: Sequence[str], hashes: Sequence[Mapping[bytes, bytes]], critics: Sequence[CriticState]
) -> tuple[PlainWorker, ...]:
    """RQ's workers that live and neither are nor hold a critic."""
    known = {critic.name for critic in critics} | {critic.parent for critic in critics}
    plain = []
    for key, fields in zip(names, hashes, strict=True):
        name = _clean(key.removeprefix(_RQ_WORKER))
        # RQ forgets its dead minutes later; those that ended in order say so.
        if name in known or b"birth" not in fields or b"death" in fields:
            continue
        plain.append(
            PlainWorker(
                name=name,
                host=_clean(fields.get(b"hostname", b"")),
                pid=_int(fields.get(b"pid")),
                state=_clean(fields.get(b"state", b"?")),
            )
        )
    return tuple(plain)


def _age_s(enqueued_at: bytes | None, now: float) -> float | None:
    """Seconds since a time as RQ writes it, such as 2026-01-31T12:00:00.000000Z; by the clock of who wrote it."""
    try:
        when = datetime.strptime(_decode(enqueued_at or b""), "%Y-%m-%dT%H:%M:%S.%fZ")
    except ValueError:
        return None
    return max(0.0, now - when.replace(tzinfo=timezone.utc).timestamp())


def _part(value: float) -> float:
    return min(1.0, max(0.0, value))


def _decode(value: bytes) -> str:
    return value.decode(errors="replace")


def _clean(value: bytes | str) -> str:
    """Fit for a terminal: anybody who can write to Redis chose this text, escape sequences among them."""
    text = _decode(value) if isinstance(value, bytes) else str(value)
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_TEXT])


def _float(value: Any) -> float:
    """The number, or 0.0: a field that some other version leaves out must not hide all the rest."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _int(value: Any) -> int:
    return int(_float(value))
