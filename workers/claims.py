"""Claims: which jobs a worker has taken from the queue and not finished, so that none is lost with it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import redis
from redis.client import Pipeline

from vlac_queue.connection import Script, checked, exchange
from vlac_queue.faults import Fault, fault_of
from vlac_queue.keys import Keys
from vlac_queue.messages import MAX_JOB_BYTES
from vlac_queue.metrics import first_line
from workers.store import ReadAhead, episode_read

#: Jobs at the front of the queue among which a worker chooses.
_LOOK_AT = 32
#: Seconds between two looks at the queue while Redis is full and refuses to be waited on.
_FULL_PAUSE_S = 0.1

_LUA = Path(__file__).with_name("lua")
_TAKE, _GIVE_BACK, _RECOVER = (Script.load(_LUA / f"{name}.lua") for name in ("take", "give_back", "recover"))


@dataclass(frozen=True)
class TakenJob:
    """A job as it stands on Redis.

    Attributes:
        id: the RQ job's id.
        data: its envelope, not unpacked; b"" where the job is gone, None where it exceeds MAX_JOB_BYTES.
        unfit: whether it is no job at all (an id that RQ does not make, a key of a wrong type); dropped already.
        spent: whether workers died with it more often than it may be tried again.
        deaths: the workers that died with it, and when (seconds since 1970 on Redis' clock).
        trying: id of the query that was tried alone last, or "".
        ahead: what was read along with the job, by query id.
    """

    id: str
    data: bytes | None
    unfit: bool = False
    spent: bool = False
    deaths: tuple[tuple[str, float], ...] = ()
    trying: str = ""
    ahead: Mapping[str, ReadAhead] = field(default_factory=dict, repr=False)


class Claims:
    """The claims of one worker. Threads may share it; all errors are Redis' own."""

    def __init__(self, connection: redis.Redis, keys: Keys, worker: str) -> None:
        self._connection = connection
        self._keys = keys
        self._worker = worker
        #: The list of claimed job ids.
        self.key = keys.claims(worker)

    def take(self, count: int, *, block_s: float, others: int = 0) -> list[TakenJob]:
        """Claims and reads up to `count` jobs, waiting up to `block_s` seconds for the first (0: not at all).

        Args:
            others: how many other workers serve the queue; with none, jobs are taken in their order.
        """
        look_at = _LOOK_AT if others else 1
        take = self._take_command(self._keys.rq_queue, count, look_at, 2 * others)
        if not block_s:
            return [_taken(entry) for entry in checked(exchange(self._connection, [take])[0])]
        wait = ("BLMOVE", self._keys.rq_queue, f"{self.key}:next", "LEFT", "RIGHT", str(block_s))
        waited, taken = exchange(self._connection, [wait, take])
        if isinstance(waited, redis.RedisError) and fault_of(waited) is Fault.FULL:
            if not taken:
                time.sleep(_FULL_PAUSE_S)
        else:
            checked(waited)
        return [_taken(entry) for entry in checked(taken)]

    def take_alone(self) -> list[TakenJob]:
        """Claims and reads one of the jobs that are tried alone, without waiting."""
        (taken,) = exchange(self._connection, [self._take_command(self._keys.alone, 1)])
        return [_taken(entry) for entry in checked(taken)]

    def trying(self, job_id: str, query_id: str) -> None:
        """Notes which query of a job is tried now: the one to blame, should this worker die."""
        self._connection.hset(self._keys.rq_job(job_id), "trying", query_id)

    def spare(self, job_id: str, pipeline: Pipeline) -> None:
        """Adds to `pipeline` what lets a spent job's other queries be tried alone, now that one was blamed."""
        pipeline.lrem(self.key, 0, job_id)
        pipeline.hset(self._keys.rq_job(job_id), mapping={"retries_left": 0, "status": "queued"})
        pipeline.hdel(self._keys.rq_job(job_id), "trying")
        pipeline.rpush(self._keys.alone, job_id)

    def add(self, job_ids: Collection[str]) -> None:
        """Claims jobs that came by another way, or whose claims Redis has lost."""
        self._connection.rpush(self.key, *job_ids)

    def give_back(self, job_ids: Collection[str] = ()) -> int:
        """Puts claimed jobs (none given: all) back to the front of the queue; how many."""
        keys = (self._keys.rq_queue, self.key, self._keys.alone)
        return int(self._connection.eval(_GIVE_BACK, len(keys), *keys, *job_ids))

    def recover(self, worker: str) -> tuple[int, list[TakenJob]]:
        """Puts the jobs of a dead worker back, each at the cost of a retry.

        Returns:
            How many went back, and the jobs without retries left, which are this worker's to fail now. A
            worker that lives after all keeps its jobs.
        """
        keys = self._keys
        names = (keys.rq_queue, keys.claims(worker), keys.workers, keys.worker(worker), self.key, keys.alone)
        reply: Any = self._connection.eval(_RECOVER, len(names), *names, worker, MAX_JOB_BYTES, self._worker)
        return reply[0], [_taken(entry) for entry in reply[1]]

    def _take_command(self, queue: str, count: int, look_at: int = 1, most_passed: int = 0) -> tuple[Any, ...]:
        words = (count, MAX_JOB_BYTES, self._worker, self._keys.episode("").meta, look_at, most_passed)
        return ("EVAL", _TAKE, 3, queue, self.key, self._keys.workers, *words)


def history(deaths: Sequence[tuple[str, float]]) -> str:
    """The workers that died with a job, and when, for people."""
    return ", ".join(
        f"{first_line(name)} at {datetime.fromtimestamp(when, timezone.utc):%H:%M:%S} UTC" for name, when in deaths
    )


def _taken(entry: list[Any]) -> TakenJob:
    job_id, state, *fields = entry
    name = job_id.decode(errors="replace")
    if state != b"ok":
        return TakenJob(name, None if state == b"large" else b"", unfit=state == b"unfit")
    data, left, deaths, trying, *ahead = fields
    died = [_death(text) for text in deaths.decode(errors="replace").split()]
    # What is no number was counted down no further: it is spent at the first death.
    spent = bool(died) and not (left.isdigit())
    return TakenJob(
        name,
        data,
        spent=spent,
        deaths=tuple(died),
        trying=trying.decode(errors="replace"),
        ahead=dict(map(_read_ahead, ahead[0] if ahead else ())),
    )


def _read_ahead(entry: list[Any]) -> tuple[str, ReadAhead]:
    episode, query_id, index, meta, _, batch = entry
    name = query_id.decode(errors="replace")
    return name, ReadAhead(episode.decode(errors="replace"), index, episode_read(meta, [name], [batch]))


def _death(text: str) -> tuple[str, float]:
    name, _, when = text.rpartition("@")
    return name, float(when) if when.isdigit() and len(when) < 12 else 0.0
