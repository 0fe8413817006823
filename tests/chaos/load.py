"""Rollouts under harm: they know what each outcome must be, and keep account of each query."""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import redis

from tests.conftest import until
from vlac_queue import CriticClient, Outcome, RolloutGate, VlacConfig
from vlac_queue.client import Pending
from vlac_queue.frames import Frames
from vlac_queue.messages import Failure
from vlac_queue.store import EpisodeStore

#: Side of the pictures, in pixels.
SIDE = 16
#: What TaskCritic's score (red / 255) must exceed to mean done.
THRESHOLD = 0.9


@dataclass(frozen=True)
class Script:
    """One episode, made from a seed: what it shows at each step, and how it must end."""

    seed: tuple[int, ...]
    steps: int

    @cached_property
    def reds(self) -> list[int]:
        """The red value that each step shows, 0..255; half of the episodes are done at some step."""
        chance = np.random.default_rng(self.seed)
        reds = chance.integers(0, 229, self.steps).tolist()
        if chance.random() < 0.5:
            reds[int(chance.integers(self.steps))] = 255
        return reds

    def frame(self, step: int) -> Frames:
        """uint8 (SIDE,SIDE,3): a noise that stays, and the step's red value. Steps count from 1."""
        made = np.random.default_rng(self.seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        made[0, 0, 0] = self.reds[step - 1]
        return made

    def outcome(self) -> tuple[int, bool, float | None, bool]:
        """finish_step, done, reward and masked of an undisturbed run."""
        for step, red in enumerate(self.reds, 1):
            if red / 255 > THRESHOLD:
                return step, True, 1.0, False
        return self.steps, False, 100.0 * self.reds[-1] / 255 / 100.0, False


def ending(outcome: Outcome) -> tuple[int, bool, float | None, bool]:
    return outcome.finish_step, outcome.done, outcome.reward, outcome.masked


#: Client id -> query id -> stream entries that held an answer to it.
_ON_WIRE: dict[str, dict[str, set[bytes]]] = {}


class WatchedClient(CriticClient):
    """A client that notes every query asked, every answer that came over the wire, and every one taken in."""

    def __init__(self, config: VlacConfig) -> None:
        super().__init__(config)
        self.asked: list[Pending[Any]] = []
        #: Query id -> stream entries that held an answer to it.
        self.on_wire = _ON_WIRE[self.id] = {}

    def ask_done_many(self, episodes: Any) -> Any:
        return self._note(super().ask_done_many(episodes))

    def ask_value_many(self, episodes: Any) -> Any:
        return self._note(super().ask_value_many(episodes))

    def ask_again(self, pendings: Any) -> Any:
        return self._note(super().ask_again(pendings))

    def observe_each(self, pushes: Any) -> Any:
        return self._note(super().observe_each(pushes))

    def _note(self, asked: Sequence[Any]) -> Any:
        self.asked += [each for each in asked if isinstance(each, Pending)]
        return asked


def _counting(resolve: Callable[..., None]) -> Callable[..., None]:
    """Has each Pending count how often an answer was taken in for it."""

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        self.resolutions = getattr(self, "resolutions", 0) + 1
        resolve(self, *args, **kwargs)

    return counted


def _noting(read: Callable[..., Any]) -> Callable[..., Any]:
    """Has the answers noted that come over the wire."""

    def noted(self: Any, client: str, *args: Any, **kwargs: Any) -> Any:
        news = read(self, client, *args, **kwargs)
        for entry_id, answers, _ in news if client in _ON_WIRE else ():
            for query_id in answers:
                _ON_WIRE[client].setdefault(query_id, set()).add(entry_id)
        return news

    return noted


EpisodeStore.read_answers = _noting(EpisodeStore.read_answers)  # type: ignore[method-assign]
Pending.resolve = _counting(Pending.resolve)  # type: ignore[method-assign]


@dataclass
class Account:
    """What became of the queries of some rollouts.

    Attributes:
        queries, lost: asked, and not answered.
        failed: failed with a reason that the harm permits (see `Load`); not among the lost.
        doubled, doubled_on_wire: answers that came twice: to a caller, and over the wire.
        rounds: rounds that have ended.
        masked: episodes that such a query took out of training.
        times: (asked, answered) of each query, seconds on time.monotonic; answered is inf where it was lost.
        wrong: outcomes that are not those of an undisturbed run.
        errors: what ended a rollout early.
    """

    queries: int = 0
    lost: int = 0
    failed: int = 0
    doubled: int = 0
    doubled_on_wire: int = 0
    rounds: int = 0
    masked: int = 0
    times: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def recovered_s(self, since: float) -> float:
        """Seconds from `since` until the queries open then, or else the first asked afterwards, were answered."""
        open_then = [end for begin, end in self.times if begin <= since < end]
        later = [end for begin, end in sorted(self.times) if begin > since]
        return max(open_then or later[:1], default=float("inf")) - since


class Load:
    """Rollouts in threads of their own, round after round, each with a client of its own.

    Args:
        url: of Redis.
        rollouts, episodes, steps: how many threads, episodes in each round, and steps of each.
        rounds: how many; None goes on until `finish`.
        pause_s: seconds that the policy and the simulator take for a step.
        permits: what a failure says that the harm permits; such episodes are masked. Empty: none is.
        settings: further settings of the clients.
    """

    def __init__(
        self,
        url: str,
        *,
        rollouts: int = 1,
        episodes: int = 8,
        steps: int = 6,
        rounds: int | None = None,
        pause_s: float = 0.02,
        permits: str = "",
        **settings: Any,
    ) -> None:
        on_failure = "mask" if permits else "raise"
        self.config = VlacConfig(**{"redis_url": url, "timeout_s": 120.0, "on_failure": on_failure, **settings})
        self.rollouts, self.episodes, self.steps, self.rounds = rollouts, episodes, steps, rounds
        self.pause_s = pause_s
        self.account = Account()
        #: Ids of the clients.
        self.clients: set[str] = set()
        self._permits = re.compile(permits or r"(?!)")
        self._stop = threading.Event()
        self._lock = threading.Lock()
        # Whether rounds may begin, and the rollouts that wait until they may.
        self._go = threading.Event()
        self._go.set()
        self._resting: set[int] = set()
        # Rounds that each rollout has ended.
        self._rounds = [0] * rollouts
        self._open: dict[int, list[Pending[Any]]] = {}
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(rollouts)]

    def start(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def finish(self, seconds: float = 240) -> Load:
        """Has the rounds at hand end, and waits for them."""
        self._stop.set()
        self._go.set()
        return self.join(seconds)

    def join(self, seconds: float = 240) -> Load:
        """Waits for the last round."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "a rollout does not end"
        return self

    def pause(self) -> None:
        """Returns once the rounds at hand have ended; no other begins until `resume`."""
        self._go.clear()
        self._until(lambda: len(self._resting) == self.rollouts)

    def resume(self) -> None:
        """Lets rounds begin again."""
        self._go.set()

    def open_queries(self) -> int:
        """How many queries wait for their answers now."""
        return sum(not pending.answered for asked in list(self._open.values()) for pending in list(asked))

    def rounds_pass(self) -> None:
        """Returns once each rollout has ended a round that it began after now."""
        before = list(self._rounds)
        self._until(lambda: all(now >= then + 2 for now, then in zip(self._rounds, before, strict=True)))

    def asks(self) -> None:
        """Returns once each rollout has ended a round, and a query waits for its answer."""
        self._until(lambda: all(self._rounds) and self.open_queries())

    def recovered_s(self, since: float) -> float:
        return self.account.recovered_s(since)

    def forget_times(self) -> None:
        """Forgets when queries were asked and answered: what a long run need not keep."""
        with self._lock:
            self.account.times.clear()

    def _until(self, condition: Callable[[], Any]) -> None:
        # As long as queries are waited for, and then some: how long it took is measured, not asserted here.
        try:
            until(lambda: self.account.errors or condition(), 2 * self.config.timeout_s)
        except AssertionError as error:
            raise AssertionError(f"rounds ended: {self._rounds}; open: {self._told()}") from error
        assert not self.account.errors, self.account.errors

    def _told(self) -> list[str]:
        """Of each rollout, a query that waits, and where its job is."""
        told = []
        with redis.Redis.from_url(self.config.redis_url) as connection:
            for asked in list(self._open.values()):
                for pending in [pending for pending in list(asked) if not pending.answered][:1]:
                    fields = ("status", "worker_name", "retries_left", "deaths")
                    job = connection.hmget(f"rq:job:{pending.job}", *fields)
                    told.append(f"{pending.query}, job {pending.job}: {job}")
        return told

    def _run(self, rollout: int) -> None:
        try:
            with WatchedClient(self.config) as client:
                self.clients.add(client.id)
                self._open[rollout] = client.asked
                number = 0
                while not self._stop.is_set() and (self.rounds is None or number < self.rounds):
                    self._round(client, [Script((rollout, number, i), self.steps) for i in range(self.episodes)])
                    number += 1
                    self._rounds[rollout] = number
                    self._rest(rollout)
        except Exception:
            self.account.errors.append(traceback.format_exc())

    def _rest(self, rollout: int) -> None:
        if not self._go.is_set():
            self._resting.add(rollout)
            self._go.wait()
            self._resting.discard(rollout)

    def _round(self, client: WatchedClient, scripts: Sequence[Script]) -> None:
        with RolloutGate(client, [f"task {i}" for i in range(len(scripts))]) as gate:
            active = set(range(len(scripts)))
            for step in range(1, self.steps + 1):
                if active:
                    gate.observe(step, {i: scripts[i].frame(step) for i in active})
                    active -= gate.finished()
                    self._stop.wait(self.pause_s) if not self._stop.is_set() else time.sleep(self.pause_s)
            outcomes = gate.settle()
            client.wait(client.asked)
        asked, client.asked[:] = list(client.asked), []
        account = self.account
        with self._lock:
            account.rounds += 1
            for pending in asked:
                self._count(pending)
            account.doubled_on_wire += sum(len(entries) > 1 for entries in client.on_wire.values())
            client.on_wire.clear()
            for outcome, script in zip(outcomes, scripts, strict=True):
                if outcome.masked and self._permits.search(outcome.error):
                    account.masked += 1
                elif ending(outcome) != script.outcome():
                    account.wrong.append(f"{ending(outcome)} instead of {script.outcome()}: {outcome.error}")

    def _count(self, pending: Pending[Any]) -> None:
        account, answer = self.account, pending.answer
        answered = pending.answered and not isinstance(answer, Exception | Failure)
        failed = isinstance(answer, Failure) and bool(self._permits.search(answer.message))
        account.queries += 1
        account.failed += failed
        account.lost += not (answered or failed)
        account.doubled += getattr(pending, "resolutions", 0) > 1
        end = pending.asked_at + pending.latency_s if answered or failed else float("inf")
        account.times.append((pending.asked_at, end))


@dataclass
class Row:
    """A line of the table: what harm was done how often, and what became of the queries."""

    fault: str
    times: int
    queries: int
    lost: int
    doubled: int
    recover_s: list[float]


def check(accounts: Sequence[Account], *, wire: bool = True) -> tuple[int, int, int]:
    """Asserts the invariant: nothing lost, nothing twice, outcomes those of an undisturbed run.

    Args:
        wire: whether a second answer must not even be written; false where Redis forgot that it had the first.

    Returns:
        Queries, lost, doubled.
    """
    for account in accounts:
        assert not account.errors, account.errors
        assert not account.wrong, account.wrong[:3]
        assert account.rounds > 0
        assert (account.lost, account.doubled) == (0, 0)
        assert not wire or account.doubled_on_wire == 0
    queries = sum(account.queries for account in accounts)
    assert queries > 0
    return queries, sum(each.lost for each in accounts), sum(each.doubled for each in accounts)
