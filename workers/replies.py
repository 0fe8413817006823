"""What a worker gives back: answers written to Redis, and jobs finished with their last one."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from typing import Any

import redis
from redis.client import Pipeline

from vlac_queue.connection import exchange
from vlac_queue.faults import Fault, fault_of
from vlac_queue.messages import Failure, Query, encode_answer
from vlac_queue.metrics import first_line, publish_event
from vlac_queue.texts import many
from workers.claims import Claims, told_deaths
from workers.critics import CriticQuery
from workers.flow import Answered, JobQuery, Reply, TakenJob
from workers.log import LOG
from workers.shared import Shared
from workers.store import WorkerStore

#: Seconds to wait after a failed connection.
_PAUSE_S = 0.5
#: Seconds for which a stopping worker goes on trying to write its last answers, all of them together.
_LAST_ANSWERS_S = 3.0
#: Faults for which answers, and what finishes their jobs, are kept and tried again.
_FINISHED_FOR = (Fault.AWAY, Fault.REFUSED)
_KEPT_FOR = (*_FINISHED_FOR, Fault.FULL, Fault.DENIED)
#: Failures published as events between two beats; what is more is counted only.
_EVENTS_A_BEAT = 10


class Replies:
    """Writes answers, in a thread of its own while the critic works on.

    Args:
        shared: what the worker's threads share.
        store: the episodes.
        claims: the worker's.
    """

    def __init__(self, shared: Shared, store: WorkerStore, claims: Claims) -> None:
        self._shared = shared
        self._store = store
        self._claims = claims
        self._jobs = shared.jobs
        # Without a limit: from a Redis that takes no answers, no jobs are taken either.
        self._waiting: queue.SimpleQueue[Answered | None] = queue.SimpleQueue()
        self._gives_up_at: float | None = None
        self._trouble = shared.trouble("answers")
        self._events_left = _EVENTS_A_BEAT

    def deliver(self, answered: Answered) -> None:
        """Take answers, from any thread, and never wait."""
        self._waiting.put(answered)

    def run(self) -> None:
        """Write what is delivered, until closed; then wait for a Redis that is away only a little longer."""
        while (answered := self._waiting.get()) is not None:
            while not self._written(answered):
                if self._gives_up_at is not None and time.monotonic() > self._gives_up_at:
                    LOG.error("Worker %s: stops with answers unwritten; others will give them", self._shared.name)
                    return
                time.sleep(_PAUSE_S)

    def close(self) -> None:
        """End `run` once everything delivered is written, or some seconds later."""
        self._gives_up_at = time.monotonic() + _LAST_ANSWERS_S
        self._waiting.put(None)

    def new_beat(self) -> None:
        """Allow for some more failures to be published."""
        self._events_left = _EVENTS_A_BEAT

    def fail_now(self, queries: Sequence[JobQuery], failure: Failure) -> None:
        """Answer all queries of a job with `failure`, and finish it."""
        with self._shared.connection.pipeline(transaction=False) as pipeline:
            self._fail(queries, failure, pipeline)
            self._claims.finish({job for job, _ in queries}, pipeline)
            pipeline.execute()

    def bury(self, job: TakenJob, queries: Sequence[JobQuery]) -> None:
        """Fail the query that was tried when the last worker died, or all of them where none was tried alone."""
        blamed = [each for each in queries if each.query.id == job.trying] or queries
        failure = Failure(
            f"{many(len(job.deaths), 'worker')} died while they had this query: {told_deaths(job.deaths)}; it is "
            "not tried again. See their logs."
        )
        LOG.error("Worker %s: failed: %s: %s", self._shared.name, many(len(blamed), "query"), failure.message)
        if len(blamed) == len(queries):
            self.fail_now(queries, failure)
            return
        with self._shared.connection.pipeline(transaction=False) as pipeline:
            self._fail(blamed, failure, pipeline)
            self._claims.spare(job.id, pipeline)
            pipeline.execute()

    def _fail(self, queries: Sequence[JobQuery], failure: Failure, pipeline: Pipeline) -> None:
        critic = self._shared.stats.critic
        answers = [(query, encode_answer(query.id, failure, critic)) for _, query in queries]
        for command in self._store.answer(answers, self._shared.name):
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
        """Write answers, and finish the jobs whose last ones they are; doing it again changes nothing.

        Returns:
            Errors that do not pass, of a client's keys of a wrong type, say: the answers of others are written.
        """
        job_ids = [reply.to.job for reply in answered.replies]
        finished = self._jobs.last(job_ids)
        texts: list[tuple[Query, str]] = [(reply.to.query, reply.text) for reply in answered.replies if reply.text]
        ttl_s = max((reply.to.ttl_s or 0 for reply in answered.replies if reply.text), default=0) or None
        answers = list(self._store.answer(texts, self._shared.name, ttl_s=ttl_s))

        def commands() -> Iterator[tuple[Any, ...]]:
            yield from answers
            # Made while the answers are on their way.
            with self._shared.connection.pipeline(transaction=False) as pipeline:
                self._claims.finish(finished, pipeline)
                for reply in answered.replies:
                    if reply.failure:
                        self._publish_failure(reply, pipeline)
                yield from (words for words, _ in pipeline.command_stack)

        replies = exchange(self._shared.connection, commands())
        wrong = [(index, reply) for index, reply in enumerate(replies) if isinstance(reply, redis.RedisError)]
        for index, error in wrong:
            # A full Redis takes answers (lua/answer.lua) and no counters, which nobody waits for; and a worker
            # waits for its rights.
            if fault_of(error) in (_KEPT_FOR if index < len(answers) else _FINISHED_FOR):
                raise error
        self._shared.stats.count(answered, len(finished), self._shared.clock.now())
        self._jobs.answered(job_ids)
        return [error for _, error in wrong]

    def _publish_failure(self, reply: Reply, pipeline: Pipeline) -> None:
        query, ask = reply.to.query, reply.to.ask
        self._shared.stats.failed(reply.failure, self._shared.clock.now())
        if self._events_left <= 0:
            return
        self._events_left -= 1
        error = first_line(reply.failure)
        LOG.warning("Worker %s: query %s failed: %s", self._shared.name, query.id, error)
        event = {
            "kind": "failure",
            "worker": self._shared.name,
            "episode": query.episode,
            "task": ask.task if isinstance(ask, CriticQuery) else "",
            "query": query.kind,
            "frame": query.frame,
            "error": error,
        }
        publish_event(self._shared.keys, event, pipeline)
