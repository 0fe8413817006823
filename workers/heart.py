"""The beating thread: says that the worker lives, hears orders, and takes over what dead workers had."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis
from rq import SimpleWorker
from rq.exceptions import StopRequested
from rq.suspension import WORKERS_SUSPENDED
from rq.worker import WorkerStatus

from vlac_queue.faults import passes
from vlac_queue.keys import EVERYBODY, WORKER_TTL_MS
from vlac_queue.texts import many
from workers import memory
from workers.asker import Asker
from workers.claims import Claims
from workers.log import LOG, shown
from workers.replies import Replies
from workers.restart import restart
from workers.shared import Shared

#: Seconds between two beats, and so between two looks for dead workers.
BEAT_S = 1.0
#: Seconds to wait after a failed connection.
_REDIS_PAUSE_S = 0.5
#: Seconds for which a beat waits until the critic has followed an order.
_FOLLOWS_S = 0.2
#: Most bytes of an order that are read.
_MOST_ORDER_BYTES = 100
#: Most characters of a worker's name.
_MOST_NAME_CHARS = 512


@dataclass(frozen=True)
class Parent:
    """The RQ worker whose work-horse a worker lives in.

    Attributes:
        name: of that worker.
        pid: of this process's parent when it began.
        same_process: whether that worker runs its jobs in its own process (SimpleWorker) instead of forking.
    """

    name: str
    pid: int
    same_process: bool


class Heart:
    """Beats once a second.

    Args:
        shared: what the worker's threads share.
        claims: the worker's.
        replies: answers the queries that may not be tried again.
        asker: follows orders; its critic is watched.
        rq: the worker as RQ knows it.
    """

    def __init__(self, shared: Shared, claims: Claims, replies: Replies, asker: Asker, rq: SimpleWorker) -> None:
        self._shared = shared
        self._connection = shared.connection
        self._keys = shared.keys
        self._claims = claims
        self._replies = replies
        self._asker = asker
        self._rq = rq
        #: The worker around this one, if there is one.
        self.parent: Parent | None = None
        #: Whether `rq suspend` was given; whether jobs wait to be tried alone.
        self.suspended, self.alone_waits = False, False
        #: Whether this process may begin anew where the critic hangs or has lost its accelerator.
        self.restarts = False
        self.trouble, self.leaving = shared.trouble("heartbeat"), shared.trouble("leaving its jobs")
        # What did not agree at the last beat: claims that nobody here knew of, and jobs at hand without a claim.
        self._unknown: frozenset[str] = frozenset()
        self._unclaimed: frozenset[str] = frozenset()
        self._beats = 0
        self._started = time.monotonic()

    def say_started(self) -> None:
        """Say that this worker is there, before RQ does."""
        key = self._keys.worker(self._shared.name)
        self._connection.hset(key, mapping={"state": WorkerStatus.STARTED.value, "life": self._shared.life})
        self._connection.pexpire(key, WORKER_TTL_MS)

    def once_served(self, work: Callable[[], object]) -> None:
        """Do `work`, again while Redis refuses it for now; when a worker is made, it has found Redis there."""
        refused = False
        while True:
            try:
                work()
                return self.trouble.over() if refused else None
            except redis.ResponseError as error:
                if not passes(error):
                    raise
                if self._shared.stopping.is_set():
                    raise StopRequested from error
                self.trouble.met(error)
                refused = True
                time.sleep(_REDIS_PAUSE_S)

    def run(self) -> None:
        """Beat until the worker is over."""
        while not self._shared.over.wait(BEAT_S):
            if where := self._asker.watchdog.look(BEAT_S):
                self._end_hung(where)
            # What batches needed is free again, but glibc keeps it; a look where nothing is takes 0.2 ms.
            memory.give_back()
            try:
                wrong = self.beat()
                self.hear()
                self.trouble.met(wrong[0]) if wrong else self.trouble.over()
            except redis.RedisError as error:
                self.trouble.met(error)
            except Exception as error:
                self._shared.fail(error, "the heartbeat failed")
                return

    def hear(self) -> None:
        """Tell the critic's thread the last order to this worker, or to all (`vlac-queue workers`)."""
        name = self._shared.name
        own, general = cast("list[bytes | None]", self._connection.hmget(self._keys.orders, [name, EVERYBODY]))
        if order := own or general:
            text = order[:_MOST_ORDER_BYTES].decode(errors="replace")
            if self._asker.order(text, _FOLLOWS_S):  # who gave it waits to see that
                self._connection.hset(self._keys.worker(name), mapping=self._description(self._status()))

    def beat(self) -> list[redis.RedisError]:
        """Say that this worker lives, learn what it should know, and find dead workers.

        Returns:
            Errors that do not pass, of keys that are of a wrong type, say: what else there is to do is done.
        """
        self._replies.new_beat()
        mine = self._shared.jobs.ids
        replies = self._exchange_news()
        wrong = [reply for reply in replies if isinstance(reply, redis.RedisError)]
        for error in filter(passes, replies[:6]):
            raise error
        known = [None if isinstance(reply, redis.RedisError) else reply for reply in replies[:6]]
        names, suspended, was_there, claimed, alone, parent_stops = known
        self.suspended, self.alone_waits = bool(suspended), bool(alone)
        if claimed is not None:
            claims = frozenset(job.decode(errors="replace") for job in claimed)
            self._check_claims(mine, claims, lapsed=self._beats > 0 and was_there == 0)
        self._beats += 1
        if self.parent and not self._shared.stopping.is_set() and (parent_stops or self._orphaned()):
            LOG.info("Worker %s: its parent %s stops, stopping too", self._shared.name, self.parent.name)
            self._shared.stop()
        others = sorted(self._known(names or ()) - {self._shared.name})
        self._shared.others = len(others)
        return wrong + self.recover(others)

    def recover(self, names: Sequence[str]) -> list[redis.RedisError]:
        """Take over what dead workers had; return errors that do not pass, each of one of them."""
        if not names:
            return []
        wrong = []
        with self._connection.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.exists(self._keys.worker(name))
            alive = pipeline.execute()
        for name, lives in zip(names, alive, strict=True):
            try:
                if not lives:
                    self._take_over(name)
            except redis.RedisError as error:
                if passes(error):
                    raise
                wrong.append(error)
        return wrong

    def leave(self) -> None:
        """Give unfinished jobs back and take this worker off the lists; else others find them."""
        name = self._shared.name
        try:
            given_back = self._claims.give_back()
            with self._connection.pipeline() as pipeline:
                pipeline.srem(self._keys.workers, name)
                pipeline.delete(self._keys.worker(name))
                pipeline.execute()
            if given_back:
                LOG.info("Worker %s: gave %s back to the queue", name, many(given_back, "job"))
        except redis.RedisError as error:
            self.leaving.met(error)

    def die(self) -> None:
        """Have others take its jobs over at once, at the cost of a retry: one of them may be what is wrong."""
        try:
            self._connection.delete(self._keys.worker(self._shared.name), self._rq.key)
        except redis.RedisError as error:
            self.leaving.met(error)

    def restart_if_possible(self) -> None:
        """Begin anew in the place of this process, where it may."""
        if self.restarts:
            LOG.warning("Worker %s: starts anew", self._shared.name)
            restart()

    def _exchange_news(self) -> list[Any]:
        """Write that this worker lives; the first six replies, which may be errors, are what it reads before."""
        name, rq = self._shared.name, self._rq
        worker_key = self._keys.worker(name)
        parent = self.parent.name if self.parent else ""
        state = self._status()
        with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.smembers(self._keys.workers)
            pipeline.exists(WORKERS_SUSPENDED)
            pipeline.exists(worker_key)
            pipeline.lrange(self._claims.key, 0, -1)
            pipeline.llen(self._keys.alone)
            pipeline.hget(f"{rq.redis_worker_namespace_prefix}{parent}", "shutdown_requested_date")
            pipeline.hset(rq.key, mapping={**rq.serialize(), "state": state})
            pipeline.pexpire(rq.key, WORKER_TTL_MS)
            pipeline.sadd(rq.redis_workers_keys, rq.key)
            pipeline.sadd(self._keys.rq_workers, rq.key)
            pipeline.sadd(self._keys.workers, name)
            pipeline.hset(worker_key, mapping={**self._description(state), "life": self._shared.life})
            pipeline.pexpire(worker_key, WORKER_TTL_MS)
            return pipeline.execute(raise_on_error=False)

    def _check_claims(self, mine: frozenset[str], claimed: frozenset[str], *, lapsed: bool) -> None:
        """Make claims and what is at hand agree: a reply was lost, Redis lost the claims, or others thought this
        worker dead.

        Args:
            mine: jobs at hand before `claimed` was read.
            claimed: this worker's claims.
            lapsed: whether others may have taken its jobs over since the last beat.
        """
        shared = self._shared
        unknown = claimed - mine - shared.jobs.ids
        # A job may be just on its way from the claims to here: only what is unknown twice is lost.
        lost, self._unknown = unknown & self._unknown, unknown
        if lost:
            LOG.warning("Worker %s: lost on the way: %s", shared.name, many(len(lost), "job"))
            self._claims.give_back(lost)
        unclaimed = mine - claimed
        if lapsed:
            if unclaimed:
                shared.batcher.remove(lambda each: each.job in unclaimed)
                shared.jobs.drop(unclaimed)
                LOG.warning(
                    "Worker %s: was thought dead; %d of its jobs went to others", shared.name, len(unclaimed)
                )
            unclaimed = frozenset()
        # Answers may be just on their way, or jobs to here: as above.
        evicted, self._unclaimed = unclaimed & self._unclaimed, unclaimed
        if evicted:
            LOG.warning("Worker %s: Redis lost the claims of %d jobs; made again", shared.name, len(evicted))
            self._claims.add(evicted)

    def _take_over(self, name: str) -> None:
        given_back, spent = self._claims.recover(name)
        if given_back or spent:
            LOG.warning(
                "Worker %s: worker %s died; %d of its jobs go to others, %d have no retries left",
                self._shared.name, name, given_back, len(spent),
            )  # fmt: skip
        for job in spent:
            if queries := self._claims.queries(job):
                self._replies.bury(job, queries)

    def _known(self, names: Collection[bytes]) -> set[str]:
        """Return names of workers, as text; what can be none is taken off the list."""
        known = set()
        for name in names:
            text = name.decode(errors="replace")
            if text.encode() == name and text.isprintable() and len(text) <= _MOST_NAME_CHARS:
                known.add(text)
            else:
                LOG.warning("Worker %s: this is no worker's name: %s", self._shared.name, shown(name))
                self._connection.srem(self._keys.workers, name)
        return known

    def _status(self) -> str:
        return (WorkerStatus.BUSY if self._shared.jobs else WorkerStatus.IDLE).value

    def _description(self, state: str) -> Any:
        return self._shared.stats.described(
            self._shared.config,
            name=self._shared.name,
            host=self._rq.hostname or "",
            state="loading" if self._asker.loading else "asleep" if self._asker.asleep else state,
            parent=self.parent.name if self.parent else "",
            order=self._asker.followed,
            uptime_s=round(time.monotonic() - self._started, 1),
            time=self._shared.clock.now(),
        )

    def _orphaned(self) -> bool:
        return self.parent is not None and not self.parent.same_process and os.getppid() != self.parent.pid

    def _end_hung(self, where: str) -> None:
        """End this process: its critic hangs in a batch."""
        LOG.critical(
            "Worker %s: the critic has worked on a batch for more than %.0f s (batch_limit_s); it hangs here:\n%s",
            self._shared.name, self._asker.watchdog.limit_s, where,
        )  # fmt: skip
        self._shared.stopping.set()  # or it would take again what is given back now
        self.die()
        if self._rq.scheduler:
            self._rq.stop_scheduler()
        self.restart_if_possible()
        os._exit(1)
