"""The critic's thread: takes batches, asks the critic, hands the answers on; and puts it to sleep."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import redis
from msgspec import structs
from rq.exceptions import StopRequested

from vlac_queue.errors import CriticFailed, ProtocolError
from vlac_queue.messages import DoneVerdict, Failure
from vlac_queue.texts import clean
from workers.claims import Claims
from workers.critics import Critic, CriticQuery, PairCritic
from workers.flow import Answered, JobQuery, Prepared, Reply
from workers.log import LOG
from workers.pairs import PairWork
from workers.replies import Replies
from workers.shared import Shared
from workers.store import WorkerStore
from workers.verdicts import checked_answer, failure_of, words
from workers.watchdog import Watchdog

Result = TypeVar("Result")

#: Seconds after which a query that waited is looked at again before the critic is: its episode may be closed.
_STALE_S = 1.0
#: Seconds after which an order to sleep is followed between two batches although queries wait.
_OVERDUE_S = 1.0


class Asker:
    """Asks a critic, batch after batch, in one thread of its own.

    Args:
        shared: holds the batcher, which gives the batches; closing it ends `run` after the batch at hand.
        critic: nobody else calls it.
        store: tells which queries still wait for an answer.
        replies: takes each batch's answers.
        claims: the worker's.
    """

    def __init__(
        self, shared: Shared, critic: Critic, store: WorkerStore, replies: Replies, claims: Claims
    ) -> None:
        self.critic = critic
        #: Scores pairs of frames, where the critic's value lists are made of them.
        self.pairs = PairWork(shared, critic, store, claims) if isinstance(critic, PairCritic) else None
        #: Told when the critic begins and ends to work.
        self.watchdog = Watchdog(shared.config.timeout_s, shared.config.batch_limit_s)
        #: The last order that was followed.
        self.followed = ""
        #: Whether the critic is being loaded; whether it has given its accelerator memory back; and whether it is
        #: asked something.
        self.loading = self.asleep = self.asks = False
        #: Whether pairs are being claimed, scored and kept.
        self.at_pairs = False
        self._shared = shared
        self._store = store
        self._replies = replies
        self._batcher = shared.batcher
        self._clock = shared.clock
        self._stats = shared.stats
        # Seconds without work until the critic is put to sleep; None: never.
        self._idle_s = shared.config.idle_offload_s or None
        self._order = ""
        self._ordered_at = 0.0
        self._has_followed = threading.Event()

    def order(self, order: str, wait_s: float) -> bool:
        """Have the critic sleep ("sleep ID") or wake ("wake ID"), once for each ID.

        It sleeps once nothing waits, or between two batches where queries keep coming; the next one wakes it.
        To be called from any thread, and as often as the order is seen.

        Returns:
            Whether it is a new one and was followed within `wait_s` seconds.
        """
        if order == self._order:
            return False
        self._has_followed.clear()
        self._ordered_at = time.monotonic()
        self._order = order
        # Looked at after `_order` is set: should the batch end meanwhile, the critic's thread finds the order.
        if self.asks and order.startswith("wake"):
            self.followed = order
            return True
        self._batcher.poke()
        return self._has_followed.wait(wait_s)

    def lies_in(self) -> bool:
        """Return whether a critic that is not loaded yet is to sleep: it does, then."""
        if self._order.startswith("sleep"):
            self.asleep, self.followed = True, self._order
        return self.asleep and self.followed == self._order

    def load(self, waiting: Sequence[JobQuery]) -> None:
        """Load the critic, before the thread begins.

        Args:
            waiting: the queries of the job that this worker lives in; where loading fails, they do.

        Raises:
            CriticFailed: it can't be loaded.
        """
        name, critic = self._shared.name, self._shared.config.critic
        started = time.monotonic()
        LOG.info("Worker %s: loading critic %s", name, critic)
        self.loading = True
        try:
            self.critic.load()
            prompt = clean(getattr(self.critic, "prompt_hash", ""))
        except StopRequested:
            raise
        except Exception as error:
            failure = Failure(f"the critic could not be loaded: {error}", traceback.format_exc())
            self._replies.fail_now(waiting, failure)
            raise CriticFailed(f"the critic {critic!r} could not be loaded: {error}") from error
        finally:
            self.loading = False
        self._stats.loads += 1
        self._stats.critic = structs.replace(self._stats.critic, prompt=prompt)
        LOG.info("Worker %s: critic %s loaded in %.1f s", name, critic, time.monotonic() - started)

    def run(self) -> None:
        """Work until the batcher is closed, and close the critic."""
        try:
            self._work()
        finally:
            self.critic.close()

    def _work(self) -> None:
        self.asleep = False
        worked = time.monotonic()
        while not self._batcher.closed:
            if self._order != self.followed and time.monotonic() > self._ordered_at + _OVERDUE_S:
                self._follow(self._order)
            pairs = self.pairs is not None and self.pairs.ready(asleep=self._no_work_ahead)
            orders = self._order != self.followed
            batch = self._batcher.take(0 if pairs or orders else self._patience_s(worked))
            if self.pairs:
                batch = self.pairs.take(batch)
            if batch:
                self._answer(batch)
                if self.pairs and self.pairs.has_lists:  # done queries without end must not keep lists waiting
                    self._score_pairs(self.pairs)
            elif self._batcher.closed:
                return
            elif self._order != self.followed and not (self.pairs and self.pairs.has_lists):
                self._follow(self._order)
                continue
            elif self.pairs and (pairs or self.pairs.has_lists):
                self._score_pairs(self.pairs)
            elif self._idle_s and not self.asleep and time.monotonic() >= worked + self._idle_s:
                LOG.info("idle for %.0f s", self._idle_s)
                self._sleep()
                continue
            else:
                continue
            worked = time.monotonic()

    def _patience_s(self, worked: float) -> float | None:
        """Return for how long to wait for a batch: until the critic may sleep, if it may."""
        sleeps_in_s = None
        if self._idle_s and not self.asleep:
            sleeps_in_s = max(0.0, worked + self._idle_s - time.monotonic())
        looks_in_s = self.pairs.looks_in_s if self.pairs else None
        return min((each for each in (sleeps_in_s, looks_in_s) if each is not None), default=None)

    @property
    def _no_work_ahead(self) -> bool:
        return self.asleep or self._shared.alone

    def _answer(self, batch: Sequence[Prepared]) -> None:
        began, busy_s = self._clock.now(), self._stats.busy_s
        wanted = self._wanted(batch)
        ids = {each.query.id for each in wanted}
        replies = [Reply(each) for each in batch if each.query.id not in ids]
        if wanted:
            left_s = max(each.query.deadline for each in wanted) - began
            replies += self._timed(partial(self.ask, wanted), left_s)
            self._batcher.pace.serve(sum(each.images for each in wanted), self._stats.busy_s - busy_s)
            self._stats.batches += 1
        self._replies.deliver(Answered(replies, began, self._clock.now()))

    def _score_pairs(self, pairs: PairWork) -> None:
        self.at_pairs = True
        left_s = max((each.query.deadline for each in pairs.values), default=0.0) - self._clock.now()
        for valued in pairs.work(partial(self._timed, left_s=left_s), asleep=self._no_work_ahead):
            replies = [
                self._checked(each, valued.answer) if valued.wanted else Reply(each) for each in valued.asked
            ]
            self._replies.deliver(Answered(replies, valued.since, self._clock.now()))
        self.at_pairs = False

    def _wanted(self, batch: Sequence[Prepared]) -> list[Prepared]:
        """Return those that somebody waits for: their deadline has not passed, their episode is not closed."""
        now, waited_since = self._clock.now(), time.monotonic() - _STALE_S
        timely = [each for each in batch if each.query.deadline >= now]
        stale = [each for each in timely if each.prepared_at < waited_since]
        if not stale:
            return timely
        try:
            still_open = self._store.still_open([each.query for each in stale])
        except redis.RedisError:  # nobody knows: all are answered
            return timely
        return [each for each in timely if each.prepared_at >= waited_since or each.query.id in still_open]

    def ask(self, batch: Sequence[Prepared]) -> list[Reply]:
        """Return one answer for each query; where the critic fails on a batch, each query is asked on its own."""
        if not batch:
            return []
        queries = [each.ask for each in batch if isinstance(each.ask, CriticQuery)]
        try:
            answers = list(self.critic.answer(queries))
            if len(answers) != len(queries):
                raise ProtocolError(f"the critic gave {len(answers)} answers to {len(queries)} queries.")
        except Exception as error:
            if len(batch) == 1:
                return [self._failed(batch[0], failure_of(error))]
            LOG.warning(
                "the critic failed on a batch of %d (%s: %s); asking one by one",
                len(batch), type(error).__name__, words(error),
            )  # fmt: skip
            return [reply for each in batch for reply in self.ask([each])]
        return [self._checked(each, answer) for each, answer in zip(batch, answers, strict=True)]

    def _checked(self, prepared: Prepared, answer: object) -> Reply:
        """Return the critic's answer, if it is one to this query; else a failure of this query alone."""
        if isinstance(answer, Exception):
            return self._failed(prepared, failure_of(answer))
        try:
            reply = Reply(prepared, checked_answer(answer, prepared.query, self._stats.critic))
            if self.pairs and isinstance(answer, DoneVerdict):
                self.pairs.seen(prepared.query, done=bool(answer.done))
            return reply
        except Exception as error:  # a critic's objects may raise whatever they like where they are looked at
            name, why = type(self.critic).__qualname__, words(error)
            if not isinstance(error, ProtocolError):
                why = f"{type(error).__name__}: {why}"
            failure = Failure(f"{name} gave a wrong answer to a {prepared.query.kind} query: {why}; correct it.")
            return self._failed(prepared, failure)

    def _failed(self, prepared: Prepared, failure: Failure) -> Reply:
        return Reply.failed(prepared, failure, self._stats.critic)

    def _timed(self, work: Callable[[], Result], left_s: float = 0.0) -> Result:
        """Do `work`, which asks the critic, for queries that are waited for that much longer."""
        started = time.monotonic()
        self.asks = True
        self.watchdog.begin(left_s)
        try:
            return work()
        finally:
            self.watchdog.end()
            self.asleep = self.asks = False
            self._stats.busy_s += time.monotonic() - started

    def _follow(self, order: str) -> None:
        verb = order.partition(" ")[0]
        if verb == "sleep":
            self._sleep()
        elif verb == "wake":
            self._wake()
        else:
            LOG.warning("no such order: %r", order)
        self.followed = order
        self._has_followed.set()

    def _sleep(self) -> None:
        if not self.asleep:
            LOG.info("the critic gives its accelerator memory back until the next query")
            self.critic.offload()
            self.asleep = True

    def _wake(self) -> None:
        if self.asleep:
            self.critic.wake()
            self.asleep = False
            LOG.info("the critic is back on the accelerator")
