"""A stand-in for CriticClient that answers by a script, late and out of order as told: no Redis, no time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed, CriticTimeout, VlacQueueError
from vlac_queue.frames import as_batch
from vlac_queue.messages import DoneVerdict, ValueVerdict


@dataclass
class Script:
    """How the critic answers one episode.

    Attributes:
        done: for the frame after each step, the answers to the first, second, ... try: True, False or an error.
        values: the answers to the first, second, ... value query: a value list or an error.
    """

    done: list[list[bool | VlacQueueError]]
    values: list[tuple[float, ...] | VlacQueueError] = field(default_factory=lambda: [(0.0, 50.0)])


@dataclass
class ScriptedEpisode:
    script: Script
    id: str = ""
    frames: int = 0
    closed: bool = False
    asked: list[str] = field(default_factory=list)
    tries: dict[tuple[str, int], int] = field(default_factory=dict)


@dataclass
class ScriptedPending:
    episode: ScriptedEpisode
    kind: str
    frame: int
    answer: Any
    answered: bool = False
    answer_s: float = 0.06

    @property
    def query(self) -> Any:
        return SimpleNamespace(frame=self.frame, kind=self.kind)

    def verdict(self) -> Any:
        if not self.answered:
            raise CriticTimeout("no answer yet")
        if isinstance(self.answer, VlacQueueError):
            raise self.answer
        return self.answer


class ScriptedClient:
    """Reveals answers when polled or waited for; `chance` picks which of the open ones come early."""

    def __init__(self, scripts: Sequence[Script], chance: random.Random | None = None, **config: Any) -> None:
        self.config = replace(VlacConfig(), **{"audit_share": 0.0, **config})
        self._scripts = list(scripts)
        self._chance = chance or random.Random(0)
        self._open: list[ScriptedPending] = []
        self.opened: list[ScriptedEpisode] = []
        #: Errors of the next pushes (one an episode), of the next calls that ask and that audit.
        self.push_errors: list[VlacQueueError | None] = []
        self.ask_errors: list[VlacQueueError | None] = []
        self.audit_errors: list[VlacQueueError | None] = []
        self.outcomes: list[Any] = []

    def episodes(self, tasks: Sequence[str], references: Any = None) -> list[ScriptedEpisode]:
        made = [ScriptedEpisode(self._scripts.pop(0), f"{len(self.opened) + i}") for i in range(len(tasks))]
        self.opened += made
        return made

    def push_each(self, pushes: Sequence[tuple[ScriptedEpisode, Any]]) -> list[VlacQueueError | None]:
        errors: list[VlacQueueError | None] = []
        for episode, frames in pushes:
            error = self.push_errors.pop(0) if self.push_errors else None
            errors.append(error)
            if error is None:
                episode.frames += len(as_batch(frames))
        return errors

    def observe_each(
        self, pushes: Sequence[tuple[ScriptedEpisode, Any]]
    ) -> list[ScriptedPending | VlacQueueError]:
        if self.ask_errors and (error := self.ask_errors.pop(0)):
            raise error
        return [
            error or self._ask(episode, "done", episode.frames - 1)
            for (episode, _), error in zip(pushes, self.push_each(pushes), strict=True)
        ]

    def publish_outcomes(self, outcomes: Sequence[Any]) -> None:
        self.outcomes = list(outcomes)

    def ask_value_many(self, episodes: Sequence[ScriptedEpisode]) -> list[ScriptedPending]:
        return [self._ask(episode, "value", 0) for episode in episodes]

    def ask_value_up_to(self, pendings: Sequence[ScriptedPending]) -> list[ScriptedPending]:
        if self.audit_errors and (error := self.audit_errors.pop(0)):
            raise error
        return [self._ask(pending.episode, "value", 0) for pending in pendings]

    def ask_again(self, pendings: Sequence[ScriptedPending]) -> list[ScriptedPending]:
        return [self._ask(pending.episode, pending.kind, pending.frame) for pending in pendings]

    def poll(self, pendings: Sequence[ScriptedPending]) -> None:
        for pending in self._chance.sample(self._open, self._chance.randint(0, len(self._open))):
            self._reveal(pending)

    def wait(self, pendings: Sequence[ScriptedPending], timeout: float | None = None) -> None:
        self.poll(pendings)
        for pending in pendings:
            self._reveal(pending)

    def leave(self, episodes: Sequence[ScriptedEpisode], error: BaseException | None) -> None:
        self.close_many(episodes)

    def close_many(self, episodes: Sequence[ScriptedEpisode]) -> None:
        for episode in episodes:
            episode.closed = True

    def _ask(self, episode: ScriptedEpisode, kind: str, frame: int) -> ScriptedPending:
        episode.asked.append(kind)
        tries = episode.tries.get((kind, frame), 0)
        episode.tries[kind, frame] = tries + 1
        scripted: Any = (episode.script.done[frame] if kind == "done" else episode.script.values)[tries]
        if isinstance(scripted, VlacQueueError):
            answer = scripted
        elif kind == "done":
            answer = DoneVerdict(done=scripted, score=float(scripted), frame=frame)
        else:
            answer = ValueVerdict(scripted, ())
        pending = ScriptedPending(episode, kind, frame, answer)
        self._open.append(pending)
        return pending

    def _reveal(self, pending: ScriptedPending) -> None:
        pending.answered = True
        if pending in self._open:
            self._open.remove(pending)


FAILED = CriticFailed("the model said nonsense")
