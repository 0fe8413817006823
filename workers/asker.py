"""The critic's thread: takes batches, asks the critic, hands the answers on; and puts it to sleep."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from vlac_queue.connection import RedisClock
from vlac_queue.errors import ProtocolError
from vlac_queue.messages import MAX_TRACEBACK_CHARS, Answer, CriticIdentity, Failure
from vlac_queue.texts import clean
from workers.batcher import Batcher
from workers.critics import Critic, CriticQuery
from workers.preparing import Prepared
from workers.verdicts import checked_verdict
from workers.watchdog import Watchdog

Result = TypeVar("Result")


@dataclass(frozen=True)
class Answered:
    """Answers to queries that the critic got together.

    Attributes:
        answers: each query with its answer; None where nobody waits for one.
        began, ended: when the critic took them and had answered, seconds on Redis' clock.
    """

    answers: Sequence[tuple[Prepared, Answer | None]]
    began: float
    ended: float


#: Seconds after which a query that waited is looked at again before the critic is: its episode may be closed.
_STALE_S = 1.0
#: Seconds after which an order to sleep is followed between two batches although queries wait.
_OVERDUE_S = 1.0
#: Most characters kept of what an error says.
_MAX_WORDS = 2000


@dataclass
class WorkerStats:
    """Totals since the worker started; published with every beat."""

    loads: int = 0
    jobs: int = 0
    rejected_jobs: int = 0
    queries: int = 0
    failures: int = 0
    batches: int = 0
    #: Seconds that the critic worked.
    busy_s: float = 0.0


class Asker:
    """Asks a critic, batch after batch, in one thread of its own.

    Args:
        critic: loaded; nobody else calls it meanwhile.
        batcher: gives the batches; closing it ends `run` after the batch at hand.
        clock: tells whether a query's deadline has passed.
        idle_offload_s: seconds without work until the critic is put to sleep; 0: never.
        deliver: takes each batch's answers.
        identity: who the critic is; told with each answer.
        still_open: those of some queries that still wait for an answer.
        watchdog: told when the critic begins and ends to work.
        stats: counts batches and the time they take.
        log: tells what the user should know.
    """

    def __init__(
        self,
        critic: Critic,
        batcher: Batcher[Prepared],
        clock: RedisClock,
        *,
        idle_offload_s: float,
        deliver: Callable[[Answered], None],
        identity: Callable[[], CriticIdentity],
        still_open: Callable[[Sequence[Prepared]], set[str]],
        watchdog: Watchdog,
        stats: WorkerStats,
        log: logging.Logger,
    ) -> None:
        self._critic = critic
        self._batcher = batcher
        self._clock = clock
        self._idle_s = idle_offload_s or None
        self._deliver = deliver
        self._identity = identity
        self._still_open = still_open
        self._watchdog = watchdog
        self._stats = stats
        self._log = log
        self._order = ""
        self._ordered_at = 0.0
        self._answering = False
        self._has_followed = threading.Event()
        #: The last order that was followed.
        self.followed = ""
        #: Whether the critic has given its accelerator memory back.
        self.asleep = False

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
        if self._answering and order.startswith("wake"):
            self.followed = order
            return True
        self._batcher.poke()
        return self._has_followed.wait(wait_s)

    def lies_in(self) -> bool:
        """Return whether a critic that is not loaded yet is to sleep: it does, then."""
        if self._order.startswith("sleep"):
            self.asleep, self.followed = True, self._order
        return self.asleep and self.followed == self._order

    def run(self) -> None:
        """Works until the batcher is closed, and closes the critic."""
        try:
            self._work()
        finally:
            self._critic.close()

    def _work(self) -> None:
        # A critic may use idle time (see `Critic`); how much there is to do is known after it was asked.
        work_ahead = getattr(self._critic, "work_ahead", lambda: False)
        more_ahead = False
        self.asleep = False
        while not self._batcher.closed:
            if self._order != self.followed and time.monotonic() > self._ordered_at + _OVERDUE_S:
                self._follow(self._order)
            batch = self._batcher.take(0 if more_ahead else None if self.asleep else self._idle_s)
            if batch:
                began, busy_s = self._clock.now(), self._stats.busy_s
                left_s = max(each.query.deadline for each in batch) - began
                self._answering = True
                answers = self._timed(partial(self._answers, batch), left_s)
                self._batcher.pace.serve(sum(each.images for each in batch), self._stats.busy_s - busy_s)
                self._stats.batches += 1
                self._deliver(Answered(answers, began, self._clock.now()))
                self.asleep = self._answering = False
                more_ahead = True
            elif self._batcher.closed:
                return
            elif self._order != self.followed:
                self._follow(self._order)
            elif more_ahead:
                more_ahead = self._timed(work_ahead)
            elif self._idle_s:
                self._log.info("idle for %.0f s", self._idle_s)
                self._sleep()

    def _answers(self, batch: Sequence[Prepared]) -> list[tuple[Prepared, Answer | None]]:
        wanted = self._wanted(batch)
        ids = {each.query.id for each in wanted}
        unwanted = [each for each in batch if each.query.id not in ids]
        return [*((each, None) for each in unwanted), *zip(wanted, self.ask(wanted), strict=True)]

    def _wanted(self, batch: Sequence[Prepared]) -> list[Prepared]:
        """Those that somebody still waits for: their deadline has not passed, their episode is not closed."""
        now, waited_since = self._clock.now(), time.monotonic() - _STALE_S
        timely = [each for each in batch if each.query.deadline >= now]
        stale = [each for each in timely if each.prepared_at < waited_since]
        if not stale:
            return timely
        still_open = self._still_open(stale)
        return [each for each in timely if each.prepared_at >= waited_since or each.query.id in still_open]

    def ask(self, batch: Sequence[Prepared]) -> list[Answer]:
        """One answer for each query; where the critic fails on a batch, each query is asked on its own."""
        if not batch:
            return []
        queries = [each.ask for each in batch if isinstance(each.ask, CriticQuery)]
        try:
            answers = list(self._critic.answer(queries))
            if len(answers) != len(queries):
                raise ProtocolError(f"the critic gave {len(answers)} answers to {len(queries)} queries.")
        except Exception as error:
            if len(batch) == 1:
                return [_failure(error)]
            self._log.warning(
                "the critic failed on a batch of %d (%s: %s); asking one by one",
                len(batch), type(error).__name__, _words(error),
            )  # fmt: skip
            return [answer for each in batch for answer in self.ask([each])]
        return [self._checked(each, answer) for each, answer in zip(batch, answers, strict=True)]

    def _checked(self, prepared: Prepared, answer: object) -> Answer:
        """The critic's answer in plain numbers, if it is one to this query; else a failure of this query alone."""
        if isinstance(answer, Exception):
            return _failure(answer)
        try:
            return checked_verdict(answer, prepared.query, self._identity())
        except Exception as error:  # a critic's objects may raise whatever they like where they are looked at
            name, words = type(self._critic).__qualname__, _words(error)
            if not isinstance(error, ProtocolError):
                words = f"{type(error).__name__}: {words}"
            return Failure(f"{name} gave a wrong answer to a {prepared.query.kind} query: {words}; correct it.")

    def _timed(self, work: Callable[[], Result], left_s: float = 0.0) -> Result:
        """Does `work`, for queries that are waited for that much longer."""
        started = time.monotonic()
        self._watchdog.begin(left_s)
        try:
            return work()
        finally:
            self._watchdog.end()
            self._stats.busy_s += time.monotonic() - started

    def _follow(self, order: str) -> None:
        verb = order.partition(" ")[0]
        if verb == "sleep":
            self._sleep()
        elif verb == "wake":
            self._wake()
        else:
            self._log.warning("no such order: %r", order)
        self.followed = order
        self._has_followed.set()

    def _sleep(self) -> None:
        if not self.asleep:
            self._log.info("the critic gives its accelerator memory back until the next query")
            self._critic.offload()
            self.asleep = True

    def _wake(self) -> None:
        if self.asleep:
            self._critic.wake()
            self.asleep = False
            self._log.info("the critic is back on the accelerator")


def _failure(error: BaseException) -> Failure:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    text = clean(text[-MAX_TRACEBACK_CHARS:], MAX_TRACEBACK_CHARS, keep="\n")
    return Failure(f"{type(error).__name__}: {_words(error)}"[:_MAX_WORDS], text)


def _words(error: BaseException) -> str:
    """What an error says, fit for a terminal; a critic's may fail even at that."""
    try:
        return clean(error, _MAX_WORDS, keep="\n")
    except Exception as failed:
        return f"(its text can't be made: {type(failed).__name__})"
