"""Reads a queue from Redis, without changing anything there, in three round trips however much there is."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import Worker as RqWorker
from rq.registry import FailedJobRegistry
from rq.suspension import WORKERS_SUSPENDED

from dashboards.history import History
from dashboards.snapshot import (
    Episode,
    Episodes,
    Failed,
    Look,
    PlainWorker,
    QueueState,
    Reading,
    RedisState,
    Training,
    WorkerReading,
)
from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.connection import connect
from vlac_queue.control import WorkerInfo
from vlac_queue.credentials import DASHBOARD
from vlac_queue.faults import as_ours
from vlac_queue.keys import LIMIT_FIELD, TOTAL_FIELD, Keys
from vlac_queue.metrics import PHASES
from vlac_queue.texts import as_float, as_int, clean

#: Seconds until a silent Redis counts as away; shorter than elsewhere, since somebody looks at the screen.
_TIMEOUT_S = 2.0
#: Most open episodes that are told one by one.
EPISODES_SHOWN = 50
#: The same in recordings, for their size.
EPISODES_RECORDED = 20
#: Most failed queries that are remembered.
FAILURES_KEPT = 50
#: Most events read at a time; the stream keeps about as many.
_EVENTS_READ = 1000

#: Shown for an episode's task.
_NO_RIGHT = b"(this Redis user may not read it)"

_RQ_WORKER = RqWorker.redis_worker_namespace_prefix
_AUDIT = "audit/"
_PHASE_FIELDS = tuple((phase, f"latency_{phase}".encode()) for phase in PHASES)


class Reader:
    """Looks at one queue again and again.

    Raises:
        ConfigError: the URL can't be parsed.
    """

    def __init__(self, config: VlacConfig) -> None:
        self.url = redact_url(config.redis_url)
        self.keys = Keys(config.queue)
        self._history = History()
        self._seen = 0.0
        self._may_read_episodes = True
        self._last_event = b"-"
        self._failed: deque[Failed] = deque(maxlen=FAILURES_KEPT)
        # One more try right away: the server closes idle connections, and they all break with a restart.
        self._connection = connect(
            config.redis_url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),
        )

    def look(self, *, episodes: int = EPISODES_SHOWN) -> Look:
        """The queue now; a failure is part of the look.

        Args:
            episodes: most open episodes that are read one by one.
        """
        snapshot, error = None, ""
        try:
            reading = self.read(episodes=episodes)
            if reading.time < self._seen - 1:  # another server, or its clock was set back
                self._history = History()
            self._seen = reading.time
            snapshot = self._history.add(reading)
        except redis.exceptions.RedisError as failure:
            error = clean(as_ours(failure, self.url, DASHBOARD), 2000)
        return Look(time.time(), snapshot, error)

    def read(self, *, episodes: int = EPISODES_SHOWN) -> Reading:
        """What Redis holds.

        Raises:
            redis.RedisError: Redis can't be reached, or refuses a command.
        """
        keys = self.keys
        with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.time()
            for section in ("server", "clients", "memory"):
                pipeline.info(section)
            pipeline.llen(keys.rq_queue)
            pipeline.lindex(keys.rq_queue, 0)
            pipeline.zcard(FailedJobRegistry.key_template.format(keys.queue))
            pipeline.exists(WORKERS_SUSPENDED)
            pipeline.hmget(keys.sizes, TOTAL_FIELD, LIMIT_FIELD)
            pipeline.hgetall(keys.totals)
            pipeline.smembers(keys.workers)
            pipeline.smembers(keys.rq_workers)
            if self._last_event == b"-":
                pipeline.xrevrange(keys.events, count=_EVENTS_READ)
            else:
                pipeline.xrange(keys.events, min=b"(" + self._last_event, count=_EVENTS_READ)
            (
                (seconds, micros), server, clients, memory, waiting, oldest, failed, suspended, (total, limit),
                totals, names, registered, events,
            ) = pipeline.execute()  # fmt: skip
        now = seconds + micros / 1e6
        info = {**server, **clients, **memory}
        names = sorted(names)
        # A CriticWorker is RQ's too, under the same name.
        ours = {_RQ_WORKER.encode() + name for name in names}
        others = sorted(key for key in registered if key.startswith(_RQ_WORKER.encode()) and key not in ours)

        with self._connection.pipeline(transaction=False) as pipeline:
            # What expired is still listed until somebody pushes: count only what has not.
            pipeline.zcount(keys.open, f"({now}", "+inf")
            pipeline.hget(keys.rq_job(_decode(oldest or b"")), "enqueued_at")
            pipeline.zrange(
                keys.open, f"({now}", "+inf", byscore=True, withscores=True, offset=0,
                num=episodes,
            )  # fmt: skip
            for name in names:
                pipeline.hgetall(keys.worker(_decode(name)))
                pipeline.llen(keys.claims(_decode(name)))
            for key in others:
                pipeline.hmget(key, "birth", "death", "hostname", "pid", "state")
            opened, enqueued_at, untouched, *replies = pipeline.execute()
        of_workers, of_others = replies[: 2 * len(names)], replies[2 * len(names) :]
        self._read_events(events)
        workers = tuple(
            _worker(_decode(name), said, taken)
            for name, said, taken in zip(names, of_workers[0::2], of_workers[1::2], strict=True)
        )
        return Reading(
            time=now,
            redis=RedisState(
                version=clean(info.get("redis_version", "?")),
                used_bytes=as_int(info.get("used_memory")),
                max_bytes=as_int(info.get("maxmemory")),
                policy=clean(info.get("maxmemory_policy", "?")),
                clients=as_int(info.get("connected_clients")),
            ),
            queue=QueueState(
                waiting=waiting,
                oldest_s=_age_s(enqueued_at, now) if waiting else None,
                taken=sum(worker.taken for worker in workers),
                failed=failed,
                suspended=bool(suspended),
            ),
            episodes=Episodes(
                open=opened,
                frame_bytes=max(0, as_int(total)),
                limit_bytes=max(0, as_int(limit)),
                untouched=self._episodes(untouched, now),
            ),
            workers=workers,
            plain=_plain_workers(others, of_others, workers),
            training=_training(totals),
            failed=tuple(self._failed),
        )

    def _episodes(self, untouched: Sequence[tuple[bytes, float]], now: float) -> tuple[Episode, ...]:
        """The third round trip."""
        if not untouched:
            return ()
        told = untouched if self._may_read_episodes else ()
        with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.hmget(self.keys.sizes, [episode for episode, _ in untouched])
            for episode, _ in told:
                keys = self.keys.episode(_decode(episode))
                pipeline.hmget(keys.meta, "task", "ttl_s")
                pipeline.llen(keys.frames)
                pipeline.hlen(keys.queries)
            sizes, *replies = pipeline.execute(raise_on_error=False)
        for reply in (sizes, *replies):
            # A dashboard's user on Redis 6.2 can't be given this without the frames (vlac-queue acl).
            if isinstance(reply, redis.exceptions.NoPermissionError):
                self._may_read_episodes = False
            elif isinstance(reply, redis.exceptions.RedisError):
                raise reply
        if not self._may_read_episodes:
            replies = [(_NO_RIGHT, None), 0, 0] * len(untouched)
        return tuple(
            Episode(
                id=clean(episode),
                task=clean(task or b""),
                # It expires ttl_s after its last push or query.
                untouched_s=max(0.0, now - expires + as_int(ttl_s)) if ttl_s else 0.0,
                expires_s=max(0.0, expires - now),
                pushes=pushes,
                frame_bytes=as_int(size),
                queries=queries,
            )
            for (episode, expires), size, (task, ttl_s), pushes, queries in zip(
                untouched, sizes, replies[0::3], replies[1::3], replies[2::3], strict=True
            )
        )

    def _read_events(self, events: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
        """Remembers the failures among the events; the first time they come newest first."""
        if self._last_event == b"-":
            events = events[::-1]
        for event_id, fields in events:
            self._last_event = event_id
            failed = _failed(event_id, fields.get(b"e", b""))
            if failed is not None:
                self._failed.appendleft(failed)


def _worker(name: str, said: Mapping[bytes, bytes], taken: int) -> WorkerReading:
    if not said:
        return WorkerReading(clean(name), None, {}, taken)
    latency = {phase: said[key] for phase, key in _PHASE_FIELDS if key in said}
    return WorkerReading(clean(name), WorkerInfo.from_hash(name, said), latency, taken)


def _plain_workers(
    names: Sequence[bytes], replies: Sequence[Sequence[bytes | None]], workers: Sequence[WorkerReading]
) -> tuple[PlainWorker, ...]:
    """RQ's workers that live and neither are nor hold a critic."""
    parents = {worker.info.parent for worker in workers if worker.info}
    plain = []
    for key, (birth, death, host, pid, state) in zip(names, replies, strict=True):
        name = clean(key.removeprefix(_RQ_WORKER.encode()))
        # RQ forgets its dead minutes later; those that ended in order say so.
        if name in parents or birth is None or death is not None:
            continue
        plain.append(PlainWorker(name, clean(host or b""), as_int(pid), clean(state or b"?")))
    return tuple(plain)


def _failed(event_id: bytes, text: bytes) -> Failed | None:
    """A failed query out of an event; None for other events, and what is none."""
    try:
        event = json.loads(text)
        at = int(event_id.partition(b"-")[0]) / 1000
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or event.get("kind") != "failure":
        return None
    texts = {name: clean(event.get(name, "")) for name in ("worker", "episode", "task", "query", "error")}
    return Failed(at, frame=as_int(event.get("frame")), **texts)


def _training(totals: Mapping[bytes, bytes]) -> Training:
    said = {_decode(key): value for key, value in totals.items()}
    audit = {
        clean(name.removeprefix(_AUDIT)): _figure(value)
        for name, value in sorted(said.items())
        if name.startswith(_AUDIT)
    }
    return Training(
        episodes=as_int(said.get("episodes")),
        done=as_int(said.get("done")),
        masked=as_int(said.get("masked")),
        reward_sum=as_float(said.get("reward_sum")),
        values=as_int(said.get("values")),
        value_sum=as_float(said.get("value_sum")),
        audit=audit,
        audit_at=as_float(said.get("audit_at")),
    )


def _figure(value: bytes) -> float | None:
    """A figure of the audit; NaN there says that nothing of the kind happened."""
    try:
        number = float(value)
    except ValueError:
        return None
    return as_float(number) if math.isfinite(number) else None


def _age_s(enqueued_at: bytes | None, now: float) -> float | None:
    """Seconds since a time as RQ writes it, such as 2026-01-31T12:00:00.000000Z; by the clock of who wrote it."""
    try:
        when = datetime.strptime(_decode(enqueued_at or b""), "%Y-%m-%dT%H:%M:%S.%fZ")
    except ValueError:
        return None
    return max(0.0, now - when.replace(tzinfo=timezone.utc).timestamp())


def _decode(value: bytes) -> str:
    return value.decode(errors="replace")
