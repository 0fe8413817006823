"""Our jobs as RQ knows them: written by a script together with their queries, in one round trip.

RQ would save a job in some ten commands of its own. The fields are RQ's, made by RQ once; only what differs from
job to job is filled in here, so `rq info`, plain workers and RQ's clean-up see jobs like any other.
"""

from __future__ import annotations

import itertools
import json
import pickle
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import redis
from rq import Queue, Retry
from rq.job import JobStatus
from rq.utils import utcformat

from vlac_queue.config import VlacConfig
from vlac_queue.keys import Keys
from vlac_queue.messages import JOB_FUNCTION, Query, encode_job
from vlac_queue.texts import many

#: Most queries of a job whose frames are sent along when a worker takes it.
_MOST_AHEAD = 64

#: Seconds that a failed job stays for `rq info` to show.
FAILURE_TTL_S = 3600


@dataclass(frozen=True)
class NewJob:
    """A job to be written: its id and all fields of its hash, name after name and value."""

    id: str
    fields: tuple[str | bytes | int, ...]


class JobMaker:
    """Makes the jobs of one client. The connection is not used, RQ merely wants one."""

    def __init__(self, config: VlacConfig, connection: redis.Redis) -> None:
        job = Queue(config.queue, connection=connection).create_job(
            JOB_FUNCTION,
            args=("",),
            # RQ's alarm and its parent process would kill a work-horse that stays; the queries have a deadline
            # of their own.
            timeout=-1,
            result_ttl=0,
            failure_ttl=FAILURE_TTL_S,
            retry=Retry(max=config.retries) if config.retries else None,
        )
        self._common = {
            **job.to_dict(),
            "origin": config.queue,
            "status": JobStatus.QUEUED.value,
            "ttl": config.episode_ttl_s,
        }
        self._keys = Keys(config.queue)
        # Unique like a UUID, without the system call that each one costs.
        self._unique, self._numbers = uuid.uuid4().hex[:22], itertools.count()
        self._most_queries = config.max_batch

    def make(self, queries: Sequence[tuple[Query, str]]) -> list[NewJob]:
        """The jobs that carry queries (asked at once), up to max_batch in each.

        Args:
            queries: each with the worker that knows its episode's frames, or "".
        """
        size = self._most_queries
        return [self._make(queries[start : start + size]) for start in range(0, len(queries), size)]

    def _make(self, asked: Sequence[tuple[Query, str]]) -> NewJob:
        queries = [query for query, _ in asked]
        now = utcformat(datetime.fromtimestamp(queries[0].asked, timezone.utc))
        envelope: tuple[Any, ...] = (JOB_FUNCTION, None, (encode_job(queries),), {})
        fields = {
            **self._common,
            "created_at": now,
            "enqueued_at": now,
            "description": many(len(queries), "query"),
            # Who may be quickest: it is preferred where several wait (workers/claims.py).
            "prefers": asked[0][1],
            # RQ compresses it, and reads it as it is as well: it is short, and this is quicker on both sides.
            "data": pickle.dumps(envelope, protocol=pickle.HIGHEST_PROTOCOL),
        }
        if len(queries) <= _MOST_AHEAD:
            # What a worker asks for next, in plain sight of the script that takes the job.
            ahead = [(query.episode, query.id, query.batch) for query in queries if query.kind == "done"]
            fields["ahead"] = json.dumps(ahead, separators=(",", ":"))
        words = tuple(word for field in fields.items() for word in field)
        return NewJob(self._keys.job_id(f"{self._unique}{next(self._numbers):010x}"), words)
