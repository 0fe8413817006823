"""Claims: which jobs a worker has taken from the queue and not finished, so that none is lost with it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import redis
from redis.client import Pipeline
from rq import Worker
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry
from rq.results import Result

from vlac_queue.connection import Script, checked, exchange
from vlac_queue.faults import Fault, fault_of
from vlac_queue.jobs import FAILURE_TTL_S
from vlac_queue.keys import Keys
from vlac_queue.messages import MAX_JOB_BYTES
from vlac_queue.metrics import first_line
from workers.envelope import DataOnlySerializer
from workers.flow import JobQuery, TakenJob
from workers.log import LOG
from workers.stats import WorkerStats
from workers.store import ReadAhead, episode_read

#: Jobs at the front of the queue among which a worker chooses.
_LOOK_AT = 32
#: Seconds between two looks at the queue while Redis is full and refuses to be waited on.
_FULL_PAUSE_S = 0.1

_LUA = Path(__file__).with_name("lua")
_TAKE, _GIVE_BACK, _RECOVER, _SHARE = (
    Script.load(_LUA / f"{name}.lua") for name in ("take", "give_back", "recover", "share")
)


#: Ends the id of a copy of a job: the job's own, a dash, a number of two digits, and this.
COPY = "-copy"
#: All jobs, all but copies of jobs, or those of done queries alone.
Wants = Literal["all", "no copies", "done"]


class Claims:
    """The claims of one worker. Threads may share it; all errors are Redis' own.

    Args:
        connection: to Redis.
        keys: of the queue.
        worker: the worker's name.
        stats: counts the jobs that are rejected.
    """

    def __init__(self, connection: redis.Redis, keys: Keys, worker: str, stats: WorkerStats | None = None) -> None:
        self._connection = connection
        self._keys = keys
        self._worker = worker
        self._stats = stats or WorkerStats()
        #: The list of claimed job ids.
        self.key = keys.claims(worker)
        #: Id of the job that this worker lives in, which is its parent's to delete; "" where there is none.
        self.lives_in = ""

    def take(
        self, count: int, *, block_s: float, others: int = 0, patience: int = 0, wants: Wants = "all"
    ) -> list[TakenJob]:
        """Claim and read up to `count` jobs, waiting up to `block_s` seconds for the first (0: not at all).

        Args:
            others: how many other workers serve the queue; with none, jobs are taken in their order.
            patience: how many looks a job is left to another worker that knows its episode.
            wants: of which jobs; but what it waits for is any.
        """
        look_at = _LOOK_AT if others or wants == "done" else 1
        take = self._take_command(self._keys.rq_queue, count, look_at, 2 * others, patience, wants)
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

    def queries(self, job: TakenJob) -> list[JobQuery]:
        """Return the queries of a job that is ours to answer; any other has none, and is rejected or dropped."""
        if job.unfit:
            LOG.warning("Worker %s: dropped what is no job: %r", self._worker, job.id)
            self._stats.rejected_jobs += 1
            return []
        if job.data == b"":  # expired or deleted while it waited
            self._connection.lrem(self.key, 1, job.id)
            return []
        try:
            return job.queries()
        except Exception as error:  # whatever a stranger's job provokes must not end the worker
            self._reject(job.id, error)
            return []

    def take_alone(self) -> list[TakenJob]:
        """Claim and read one of the jobs that are tried alone, without waiting."""
        (taken,) = exchange(self._connection, [self._take_command(self._keys.alone, 1)])
        return [_taken(entry) for entry in checked(taken)]

    def trying(self, job_id: str, query_id: str) -> None:
        """Note which query of a job is tried now: the one to blame, should this worker die."""
        self._connection.hset(self._keys.rq_job(job_id), "trying", query_id)

    def spare(self, job_id: str, pipeline: Pipeline) -> None:
        """Add to `pipeline` what lets a spent job's other queries be tried alone, now that one was blamed."""
        pipeline.lrem(self.key, 0, job_id)
        pipeline.hset(self._keys.rq_job(job_id), mapping={"retries_left": 0, "status": "queued"})
        pipeline.hdel(self._keys.rq_job(job_id), "trying")
        pipeline.rpush(self._keys.alone, job_id)

    def add(self, job_ids: Collection[str]) -> None:
        """Claim jobs that came by another way, or whose claims Redis has lost."""
        self._connection.rpush(self.key, *job_ids)

    def give_back(self, job_ids: Collection[str] = ()) -> int:
        """Put claimed jobs (none given: all) back to the front of the queue; return how many."""
        keys = (self._keys.rq_queue, self.key, self._keys.alone)
        return int(self._connection.eval(_GIVE_BACK, len(keys), *keys, *job_ids))

    def share(self, job_ids: Sequence[str], copies: int) -> list[tuple[str, str]]:
        """Put copies of the first of some claimed jobs that has fewer on the queue: idle workers help with it.

        Returns:
            The ids of the copies made, each with its job's; none while jobs wait on the queue.
        """
        keys = (self._keys.rq_queue, *map(self._keys.rq_job, job_ids))
        made: Any = self._connection.eval(_SHARE, len(keys), *keys, COPY, min(copies, 99), *job_ids)
        return [(copy.decode(), job.decode()) for copy, job in made]

    def unshare(self, copies: Sequence[str]) -> None:
        """Take copies of a job that nobody took off the queue."""
        for copy in copies:
            if self._connection.lrem(self._keys.rq_queue, 1, copy):
                self._connection.delete(self._keys.rq_job(copy))

    def recover(self, worker: str) -> tuple[int, list[TakenJob]]:
        """Put the jobs of a dead worker back, each at the cost of a retry.

        Returns:
            How many went back, and the jobs without retries left, which are this worker's to fail now. A
            worker that lives after all keeps its jobs.
        """
        keys = self._keys
        names = (keys.rq_queue, keys.claims(worker), keys.workers, keys.worker(worker), self.key, keys.alone)
        reply: Any = self._connection.eval(_RECOVER, len(names), *names, worker, MAX_JOB_BYTES, self._worker)
        return reply[0], [_taken(entry) for entry in reply[1]]

    def finish(self, job_ids: Collection[str], pipeline: Pipeline) -> None:
        """Add to `pipeline` what finishes jobs: all their queries are answered."""
        for job_id in job_ids:
            pipeline.lrem(self.key, 0, job_id)
        if deleted := [self._keys.rq_job(job_id) for job_id in job_ids if job_id != self.lives_in]:
            pipeline.delete(*deleted)
        if job_ids:
            pipeline.hincrby(self._rq_worker, "successful_job_count", len(job_ids))

    def finish_now(self, job_id: str) -> None:
        """Finish a job."""
        with self._connection.pipeline(transaction=False) as pipeline:
            self.finish([job_id], pipeline)
            pipeline.execute()

    def _reject(self, job_id: str, error: Exception) -> None:
        """Fail a job that is not ours, where `rq info` shows it."""
        LOG.warning("Worker %s: rejected job %s: %s", self._worker, job_id, error)
        self._stats.rejected_jobs += 1
        job = Job(job_id, connection=self._connection, serializer=DataOnlySerializer)
        failed = FailedJobRegistry(self._keys.queue, connection=self._connection, serializer=DataOnlySerializer)
        with self._connection.pipeline() as pipeline:
            pipeline.lrem(self.key, 1, job_id)
            pipeline.hset(job.key, "status", JobStatus.FAILED.value)
            pipeline.hset(job.key, "exc_info", zlib.compress(str(error).encode()))
            pipeline.expire(job.key, FAILURE_TTL_S)
            pipeline.zadd(failed.key, {job_id: time.time() + FAILURE_TTL_S})
            Result.create_failure(
                job, FAILURE_TTL_S, exc_string=str(error), worker_name=self._worker, pipeline=pipeline
            )
            pipeline.hincrby(self._rq_worker, "failed_job_count", 1)
            # A stranger's keys of a wrong type must not end the worker.
            pipeline.execute(raise_on_error=False)

    @property
    def _rq_worker(self) -> str:
        return f"{Worker.redis_worker_namespace_prefix}{self._worker}"

    def _take_command(
        self,
        queue: str,
        count: int,
        look_at: int = 1,
        most_passed: int = 0,
        patience: int = 0,
        wants: Wants = "all",
    ) -> tuple[Any, ...]:
        who = (self._worker, self._keys.episode("").meta)
        how = (look_at, most_passed, patience, wants)
        return ("EVAL", _TAKE, 3, queue, self.key, self._keys.workers, count, MAX_JOB_BYTES, *who, *how)


def told_deaths(deaths: Sequence[tuple[str, float]]) -> str:
    """Return the workers that died with a job, and when, for people."""
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
