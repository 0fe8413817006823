"""Rollouts under harm: they know what each outcome must be, and keep account of each query."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tests.conftest import until
from vlac_queue import CriticClient, Outcome, RolloutGate, VlacConfig
from vlac_queue.client import Pending
from vlac_queue.frames import Frames
from vlac_queue.messages import Failure

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


class WatchedClient(CriticClient):
    """A client that notes every query asked, every answer that came over the wire, and every one taken in."""

    def __init__(self, config: VlacConfig) -> None:
        super().__init__(config)
        self.asked: list[Pending[Any]] = []
        #: Query id -> stream entries that held an answer to it.
        self.on_wire: dict[str, set[bytes]] = {}
        self._read_answers = self._store.read_answers
        self._store.read_answers = self._noted  # type: ignore[method-assign]

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

    def _noted(self, *args: Any, **kwargs: Any) -> Any:
        news = self._read_answers(*args, **kwargs)
        for entry_id, answers, _ in news:
            for query_id in answers:
                self.on_wire.setdefault(query_id, set()).add(entry_id)
        return news


def _counting(resolve: Callable[..., None]) -> Callable[..., None]:
    """Has each Pending count how often an answer was taken in for it."""

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        self.resolutions = getattr(self, "resolutions", 0) + 1
        resolve(self, *args, **kwargs)

    return counted


Pending._resolve = _counting(Pending._resolve)  # type: ignore[method-assign]


@dataclass
class Account:
    """What became of the queries of some rollouts.

    Attributes:
        queries, lost: asked, and not answered.
        doubled, doubled_on_wire: answers that came twice: to a caller, and over the wire.
        rounds: rounds that have ended.
        times: (asked, answered) of each query, seconds on time.monotonic; answered is inf where it was lost.
        wrong: outcomes that are not those of an undisturbed run.
        errors: what ended a rollout early.
    """

    queries: int = 0
    lost: int = 0
    doubled: int = 0
    doubled_on_wire: int = 0
    rounds: int = 0
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
        **settings: Any,
    ) -> None:
        self.config = VlacConfig(**{"redis_url": url, "timeout_s": 60.0, **settings})
        self.rollouts, self.episodes, self.steps, self.rounds = rollouts, episodes, steps, rounds
        self.pause_s = pause_s
        self.account = Account()
        #: Ids of the clients.
        self.clients: set[str] = set()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._begun: set[int] = set()
        self._open: dict[int, list[Pending[Any]]] = {}
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(rollouts)]

    def start(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def finish(self, seconds: float = 120) -> Load:
        """Has the rounds at hand end, and waits for them."""
        self._stop.set()
        return self.join(seconds)

    def join(self, seconds: float = 120) -> Load:
        """Waits for the last round."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self.account.errors.append(f"rollouts did not end within {seconds} s")
        return self

    def open_queries(self) -> int:
        """How many queries wait for their answers now."""
        return sum(not pending.answered for asked in list(self._open.values()) for pending in list(asked))

    def rounds_pass(self, seconds: float = 90) -> None:
        """Returns once each rollout has ended a round that it began after now."""
        before = self.account.rounds
        self._until(lambda: self.account.rounds >= before + 2 * self.rollouts, seconds)

    def asks(self) -> None:
        """Returns once each rollout has ended a round, and a query waits for its answer."""
        self._until(lambda: len(self._begun) == self.rollouts and self.open_queries())

    def recovered_s(self, since: float) -> float:
        return self.account.recovered_s(since)

    def _until(self, condition: Callable[[], Any], seconds: float = 20) -> None:
        until(lambda: self.account.errors or condition(), seconds)
        assert not self.account.errors, self.account.errors

    def _run(self, rollout: int) -> None:
        try:
            with WatchedClient(self.config) as client:
                self.clients.add(client.id)
                self._open[rollout] = client.asked
                number = 0
                while not self._stop.is_set() and (self.rounds is None or number < self.rounds):
                    self._round(client, [Script((rollout, number, i), self.steps) for i in range(self.episodes)])
                    self._begun.add(rollout)
                    number += 1
        except Exception:
            self.account.errors.append(traceback.format_exc())

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
            account.queries += len(asked)
            for each in asked:
                good = each.answered and not isinstance(each._answer, Exception | Failure)
                account.lost += not good
                account.doubled += getattr(each, "resolutions", 0) > 1
                account.times.append((each._asked, each._asked + each.latency_s if good else float("inf")))
            account.doubled_on_wire += sum(len(entries) > 1 for entries in client.on_wire.values())
            client.on_wire.clear()
            for outcome, script in zip(outcomes, scripts, strict=True):
                if ending(outcome) != script.outcome():
                    account.wrong.append(f"{ending(outcome)} instead of {script.outcome()}")


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
