"""What a worker gives back: answers written to Redis, and jobs finished with their last one."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import redis
from redis.client import Pipeline

from vlac_queue.connection import RedisClock, exchange
from vlac_queue.faults import Fault, fault_of
from vlac_queue.keys import Keys
from vlac_queue.messages import CriticIdentity, Failure, Query, encode_answer
from vlac_queue.metrics import PHASES, Histogram, first_line, publish_event
from workers.asker import Answered, WorkerStats
from workers.critics import CriticQuery
from workers.store import WorkerStore
from workers.trouble import Trouble

#: Seconds to wait after a failed connection.
_PAUSE_S = 0.5
#: Seconds for which a stopping worker goes on trying to write its last answers, all of them together.
_LAST_ANSWERS_S = 3.0
#: Faults for which answers, and what finishes their jobs, are kept and tried again.
_FINISHED_FOR = (Fault.AWAY, Fault.REFUSED)
_KEPT_FOR = (*_FINISHED_FOR, Fault.FULL, Fault.DENIED)
#: Failures published as events between two beats; what is more is counted only.
_EVENTS_A_BEAT = 10


class OpenJobs:
    """The jobs at work here, and how many of their queries have no answer yet; threads may share it."""

    def __init__(self) -> None:
        self._queries: dict[str, int] = {}
        self._lock = threading.Lock()
        #: Set while there are none.
        self.none = threading.Event()

    def __bool__(self) -> bool:
        return bool(self._queries)

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the jobs."""
        with self._lock:
            return frozenset(self._queries)

    def left(self, job_id: str) -> int:
        """Queries of a job without an answer."""
        return self._queries.get(job_id, 0)

    def add(self, job_ids: Iterable[str]) -> None:
        """One more query of each of these jobs; a job stands in there once for each."""
        with self._lock:
            self.none.clear()
            for job_id in job_ids:
                self._queries[job_id] = self._queries.get(job_id, 0) + 1

    def last(self, job_ids: Sequence[str]) -> list[str]:
        """Those jobs that one answer for each of `job_ids` would finish."""
        with self._lock:
            left = {job_id: self._queries[job_id] for job_id in job_ids if job_id in self._queries}
        finished = []
        for job_id in job_ids:
            if job_id in left:  # else others have it: they thought this worker dead
                left[job_id] -= 1
                if left[job_id] == 0:
                    finished.append(job_id)
        return finished

    def answered(self, job_ids: Iterable[str]) -> None:
        """One answer less to wait for, of each of these jobs."""
        with self._lock:
            for job_id in job_ids:
                if job_id in self._queries:
                    self._queries[job_id] -= 1
                    # Not simply those that `last` named: a copy of the job may have come meanwhile.
                    if self._queries[job_id] == 0:
                        del self._queries[job_id]
            self._tell()

    def drop(self, job_ids: Iterable[str]) -> None:
        """Forgets jobs, whatever is left of them."""
        with self._lock:
            for job_id in job_ids:
                self._queries.pop(job_id, None)
            self._tell()

    def _tell(self) -> None:
        if not self._queries:
            self.none.set()


class Replies:
    """Writes answers, in a thread of its own while the critic works on.

    Args:
        connection: to Redis.
        keys, store, clock: of the queue.
        worker: the worker's name.
        jobs: the jobs at work.
        stats: counts jobs, queries and failures.
        log: tells what the user should know.
        finish: adds to a pipeline what finishes jobs.
    """

    def __init__(
        self,
        connection: redis.Redis,
        keys: Keys,
        store: WorkerStore,
        clock: RedisClock,
        *,
        worker: str,
        jobs: OpenJobs,
        stats: WorkerStats,
        log: logging.Logger,
        finish: Callable[[Sequence[str], Pipeline], None],
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._store = store
        self._clock = clock
        self._worker = worker
        self._jobs = jobs
        self._stats = stats
        self._log = log
        self._finish = finish
        # Without a limit: from a Redis that takes no answers, no jobs are taken either.
        self._waiting: queue.SimpleQueue[Answered | None] = queue.SimpleQueue()
        self._gives_up_at: float | None = None
        self._trouble = Trouble(log, worker, "answers", connection)
        self._events_left = _EVENTS_A_BEAT
        #: Who answers.
        self.critic = CriticIdentity()
        #: Where the time of all queries went, by phase.
        self.latency = {phase: Histogram() for phase in PHASES}
        #: First line of the last failure, and when it was (seconds since 1970 on Redis' clock).
        self.last_error = ("", 0.0)

    def deliver(self, answered: Answered) -> None:
        """Takes answers, from any thread, and never waits."""
        self._waiting.put(answered)

    def run(self) -> None:
        """Writes what is delivered, until closed; then it waits for a Redis that is away only a little longer."""
        while (answered := self._waiting.get()) is not None:
            while not self._written(answered):
                if self._gives_up_at is not None and time.monotonic() > self._gives_up_at:
                    self._log.error("Worker %s: stops with answers unwritten; others will give them", self._worker)
                    return
                time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Ends `run` once everything delivered is written, or some seconds later."""
        self._gives_up_at = time.monotonic() + _LAST_ANSWERS_S
        self._waiting.put(None)

    def new_beat(self) -> None:
        """Allows for some more failures to be published."""
        self._events_left = _EVENTS_A_BEAT

    def fail(self, queries: Sequence[Query], failure: Failure, pipeline: Pipeline) -> None:
        """Adds to `pipeline` the same failure as answer to queries."""
        answers = [(query, encode_answer(query.id, failure, self.critic)) for query in queries]
        for command in self._store.answer(answers, self._worker):
            pipeline.execute_command(*command)

    def _written(self, answered: Answered) -> bool:
        try:
            wrong = self._write(answered)
        except redis.RedisError as error:
            self._trouble.met(error)
            return False
        self._trouble.met(wrong[0]) if wrong else self._trouble.over()
        return True

    def _write(self, answered: Answered) -> list[redis.RedisError]:
        """Writes answers, and finishes the jobs whose last ones they are; doing it again changes nothing.

        Returns:
            Errors that do not pass, of a client's keys of a wrong type, say: the answers of others are written.
        """
        texts: list[tuple[Query, str]] = []
        ttl_s = None
        for prepared, answer in answered.answers:
            if answer is not None:
                texts.append((prepared.query, encode_answer(prepared.query.id, answer, self.critic)))
                ttl_s = max(ttl_s or 0, prepared.ttl_s or 0) or None
        job_ids = [prepared.job for prepared, _ in answered.answers]
        finished = self._jobs.last(job_ids)
        answers = list(self._store.answer(texts, self._worker, ttl_s=ttl_s))

        def commands() -> Iterator[tuple[Any, ...]]:
            yield from answers
            # Made while the answers are on their way.
            with self._connection.pipeline(transaction=False) as pipeline:
                self._finish(finished, pipeline)
                self._publish_failures(answered, pipeline)
                yield from (words for words, _ in pipeline.command_stack)

        replies = exchange(self._connection, commands())
        wrong = [(index, reply) for index, reply in enumerate(replies) if isinstance(reply, redis.RedisError)]
        for index, error in wrong:
            # A full Redis takes answers (see store.py) and no counters, which nobody waits for; and a worker
            # waits for its rights.
            fault = fault_of(error)
            if fault in (_KEPT_FOR if index < len(answers) else _FINISHED_FOR):
                raise error
        self._measure(answered)
        self._jobs.answered(job_ids)
        self._stats.jobs += len(finished)
        self._stats.queries += len(texts)
        self._stats.failures += sum(isinstance(answer, Failure) for _, answer in answered.answers)
        return [error for _, error in wrong]

    def _measure(self, answered: Answered) -> None:
        """Where the time of queries went, now that their answers are written."""
        written = self._clock.now()
        count = 0
        for prepared, answer in answered.answers:
            if answer is not None:
                count += 1
                since_asked = answered.began - prepared.query.asked
                self.latency["waiting"].observe(since_asked - prepared.decoding_s)
                self.latency["decoding"].observe(prepared.decoding_s)
                self.latency["total"].observe(written - prepared.query.asked)
        if count:
            self.latency["critic"].observe(answered.ended - answered.began, count)
            self.latency["answering"].observe(written - answered.ended, count)

    def _publish_failures(self, answered: Answered, pipeline: Pipeline) -> None:
        for prepared, answer in answered.answers:
            if isinstance(answer, Failure):
                error = first_line(answer.message)
                self.last_error = (error, self._clock.now())
                if self._events_left > 0:
                    self._events_left -= 1
                    query = prepared.query
                    self._log.warning("Worker %s: query %s failed: %s", self._worker, query.id, error)
                    event = {
                        "kind": "failure",
                        "worker": self._worker,
                        "episode": query.episode,
                        "task": prepared.ask.task if isinstance(prepared.ask, CriticQuery) else "",
                        "query": query.kind,
                        "frame": query.frame,
                        "error": error,
                    }
                    publish_event(self._keys, event, pipeline)
