"""Read a queue from Redis, for dashboards, the doctor and lists alike, without changing anything there."""

from __future__ import annotations

import json
import math
from collections import ChainMap, deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import redis
from redis.client import Pipeline
from rq import Worker as RqWorker
from rq.registry import FailedJobRegistry
from rq.suspension import WORKERS_SUSPENDED

from vlac_queue.control import WorkerInfo
from vlac_queue.keys import LIMIT_FIELD, TOTAL_FIELD, Keys
from vlac_queue.metrics import PHASES
from vlac_queue.records import (
    Episode,
    Episodes,
    Failed,
    PlainWorker,
    QueueState,
    Reading,
    RedisState,
    Training,
    WorkerReading,
)
from vlac_queue.texts import as_float, as_int, clean

#: Most open episodes that are told one by one.
EPISODES_SHOWN = 50
#: Most failed queries that are remembered.
FAILURES_KEPT = 50
#: Most events read at a time; the stream keeps about as many.
_EVENTS_READ = 1000

#: Shown for an episode's task.
_NO_RIGHT = b"(this Redis user may not read it)"

_RQ_WORKER = RqWorker.redis_worker_namespace_prefix.encode()
_AUDIT = "audit/"
_PHASE_FIELDS = tuple((phase, f"latency_{phase}".encode()) for phase in PHASES)


class QueueReader:
    """Reads one queue again and again, in three round trips however much there is.

    Args:
        connection: to Redis.
        keys: of the queue.
        partly: whether parts that Redis does not tell this user are left out, and named in `Reading.refused`;
            otherwise, and if it does not tell who works, that is an error.
    """

    def __init__(self, connection: redis.Redis, keys: Keys, *, partly: bool = False) -> None:
        self.keys = keys
        self._connection = connection
        self._partly = partly
        self._may_read_episodes = True
        self._last_event = b"-"
        self._failed: deque[Failed] = deque(maxlen=FAILURES_KEPT)

    def read(self, *, episodes: int = EPISODES_SHOWN) -> Reading:
        """Return what Redis holds of the queue.

        Args:
            episodes: most open episodes that are read one by one, the longest untouched first.

        Raises:
            redis.RedisError: Redis can't be reached, or refuses a command.
        """
        with self._connection.pipeline(transaction=False) as pipeline:
            self._ask_queue(pipeline)
            clock, names, registered, *info, totals, events, oldest, waiting, failed, suspended = self._told(
                pipeline, needed=3
            )
        now, names = _seconds(clock), sorted(names)
        # A CriticWorker is RQ's too, under the same name.
        ours = {_RQ_WORKER + name for name in names}
        others = sorted(key for key in registered if key.startswith(_RQ_WORKER) and key not in ours)
        self._note_failures(events or ())
        with self._connection.pipeline(transaction=False) as pipeline:
            self._ask_episodes(pipeline, now, episodes)
            self._ask_workers(pipeline, names, others)
            pipeline.hget(self.keys.rq_job(_decode(oldest or b"")), "enqueued_at")
            opened, limits, listed, *replies, enqueued_at = self._told(pipeline)
        of_workers, of_others = replies[: 2 * len(names)], replies[2 * len(names) :]
        taken = of_workers[1::2]
        workers = tuple(map(_worker, names, of_workers[0::2], taken))
        told = {"waiting": waiting, "failed": failed, "suspended": suspended, "taken": None not in taken or None}
        jobs = sum(worker.taken for worker in workers)
        return Reading(
            time=now,
            redis=_server(info),
            queue=QueueState(waiting or 0, _age_s(enqueued_at, now), jobs, failed or 0, bool(suspended)),
            episodes=self._episodes(now, opened, limits, listed),
            workers=workers,
            plain=_plain_workers(others, of_others, workers),
            training=outcomes(totals or {}),
            failed=tuple(self._failed),
            refused=frozenset(name for name, count in told.items() if count is None),
        )

    def episodes(self, most: int) -> Episodes:
        """Return the open episodes alone, those touched last first; `most` of them one by one.

        Raises:
            redis.RedisError: Redis can't be reached, or refuses a command.
        """
        now = _seconds(self._connection.time())
        with self._connection.pipeline(transaction=False) as pipeline:
            self._ask_episodes(pipeline, now, most, latest=True)
            return self._episodes(now, *self._told(pipeline))

    def _told(self, pipeline: Pipeline, needed: int = 0) -> list[Any]:
        """Return the replies; if `partly`, None for what is not for this user and not among the first `needed`."""
        if not self._partly:
            return pipeline.execute()
        replies = pipeline.execute(raise_on_error=False)
        for place, reply in enumerate(replies):
            if isinstance(reply, redis.exceptions.NoPermissionError) and place >= needed:
                replies[place] = None
            elif isinstance(reply, Exception):
                raise reply
        return replies

    def _ask_queue(self, pipeline: Pipeline) -> None:
        keys = self.keys
        pipeline.time()
        pipeline.smembers(keys.workers)
        pipeline.smembers(keys.rq_workers)
        for section in ("server", "clients", "memory"):
            pipeline.info(section)
        pipeline.hgetall(keys.totals)
        if self._last_event == b"-":
            pipeline.xrevrange(keys.events, count=_EVENTS_READ)
        else:
            pipeline.xrange(keys.events, min=b"(" + self._last_event, count=_EVENTS_READ)
        pipeline.lindex(keys.rq_queue, 0)
        pipeline.llen(keys.rq_queue)
        # The registry's own count would clean it up, and so change it.
        pipeline.zcard(FailedJobRegistry.key_template.format(keys.queue))
        pipeline.exists(WORKERS_SUSPENDED)

    def _ask_workers(self, pipeline: Pipeline, names: Sequence[bytes], others: Sequence[bytes]) -> None:
        for name in map(_decode, names):
            pipeline.hgetall(self.keys.worker(name))
            pipeline.llen(self.keys.claims(name))
        for key in others:
            pipeline.hmget(key, "birth", "death", "hostname", "pid", "state")

    def _ask_episodes(self, pipeline: Pipeline, now: float, most: int, *, latest: bool = False) -> None:
        # What expired is still listed until somebody pushes: count only what has not.
        first, last = ("+inf", f"({now}") if latest else (f"({now}", "+inf")
        pipeline.zcount(self.keys.open, f"({now}", "+inf")
        pipeline.hmget(self.keys.sizes, TOTAL_FIELD, LIMIT_FIELD)
        pipeline.zrange(
            self.keys.open, first, last, desc=latest, byscore=True, withscores=True, offset=0, num=most
        )

    def _episodes(
        self,
        now: float,
        opened: int | None,
        limits: Sequence[bytes | None] | None,
        listed: Sequence[tuple[bytes, float]] | None,
    ) -> Episodes:
        total, limit = limits or (None, None)
        one_by_one = self._each_episode(listed, now) if listed else ()
        return Episodes(opened or 0, max(0, as_int(total)), max(0, as_int(limit)), one_by_one)

    def _each_episode(self, listed: Sequence[tuple[bytes, float]], now: float) -> tuple[Episode, ...]:
        """Return a third round trip's episodes."""
        told = listed if self._may_read_episodes else ()
        with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.hmget(self.keys.sizes, [episode for episode, _ in listed])
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
            replies = [(_NO_RIGHT, None), 0, 0] * len(listed)
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
                listed, sizes, replies[0::3], replies[1::3], replies[2::3], strict=True
            )
        )

    def _note_failures(self, events: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
        """Remember the failures among the events; the first time they come newest first."""
        if self._last_event == b"-":
            events = events[::-1]
        for event_id, fields in events:
            self._last_event = event_id
            failed = failure_in(event_id, fields.get(b"e", b""))
            if failed is not None:
                self._failed.appendleft(failed)


def _server(sections: Sequence[Mapping[str, Any] | None]) -> RedisState:
    info: Mapping[str, Any] = ChainMap(*(dict(section or {}) for section in sections))
    return RedisState(
        version=clean(info.get("redis_version", "?")),
        used_bytes=as_int(info.get("used_memory")),
        max_bytes=as_int(info.get("maxmemory")),
        policy=clean(info.get("maxmemory_policy", "?")),
        clients=as_int(info.get("connected_clients")),
    )


def _worker(name: bytes, said: Mapping[bytes, bytes] | None, taken: int | None) -> WorkerReading:
    text = _decode(name)
    info = WorkerInfo.from_hash(text, said) if said else None
    latency = {phase: said[key] for phase, key in _PHASE_FIELDS if key in said} if said else {}
    return WorkerReading(clean(text), info, latency, taken or 0)


def _plain_workers(
    keys: Sequence[bytes], replies: Sequence[Sequence[bytes | None] | None], workers: Sequence[WorkerReading]
) -> tuple[PlainWorker, ...]:
    """Return RQ's workers that live and neither are nor hold a critic."""
    parents = {worker.info.parent for worker in workers if worker.info}
    plain = []
    for key, reply in zip(keys, replies, strict=True):
        birth, death, host, pid, state = reply or [None] * 5
        name = clean(key.removeprefix(_RQ_WORKER))
        # RQ forgets its dead minutes later; those that ended in order say so.
        if name in parents or birth is None or death is not None:
            continue
        plain.append(PlainWorker(name, clean(host or b""), as_int(pid), clean(state or b"?")))
    return tuple(plain)


def failure_in(event_id: bytes, text: bytes) -> Failed | None:
    """Return a failed query out of an event; None for other events, and what is none."""
    try:
        event = json.loads(text)
        at = int(event_id.partition(b"-")[0]) / 1000
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or event.get("kind") != "failure":
        return None
    texts = {name: clean(event.get(name, "")) for name in ("worker", "episode", "task", "query", "error")}
    return Failed(at, frame=as_int(event.get("frame")), **texts)


def outcomes(totals: Mapping[bytes, bytes]) -> Training:
    """Return what the hash of totals says of training."""
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
        audited=as_int(said.get("audited")),
        contradicted=as_int(said.get("contradicted")),
        audit=audit,
        audit_at=as_float(said.get("audit_at")),
    )


def _figure(value: bytes) -> float | None:
    """Return a figure of the audit; NaN there says that nothing of the kind happened."""
    try:
        number = float(value)
    except ValueError:
        return None
    return as_float(number) if math.isfinite(number) else None


def _age_s(enqueued_at: bytes | None, now: float) -> float | None:
    """Return the seconds since a time of RQ, such as 2026-01-31T12:00:00.000000Z; by the clock of who wrote it."""
    try:
        when = datetime.strptime(_decode(enqueued_at or b""), "%Y-%m-%dT%H:%M:%S.%fZ")
    except ValueError:
        return None
    return max(0.0, now - when.replace(tzinfo=timezone.utc).timestamp())


def _decode(value: bytes) -> str:
    return value.decode(errors="replace")


def _seconds(clock: tuple[int, int]) -> float:
    seconds, micros = clock
    return seconds + micros / 1e6
