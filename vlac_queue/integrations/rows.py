"""`RowRewards`: the training rule where a framework has rows of environments, and can't end an episode early."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from vlac_queue import CriticClient, ProtocolError, RolloutGate
from vlac_queue.frames import Frames


class RowRewards:
    """Rewards rows of environments, whose episodes end and begin again at the framework's word.

    Each row has one episode in each view; each view follows the training rule by itself, and the row's reward is
    the lowest of its views': 1.0 where all have found it done, else the lowest value. It is given once an episode.

    Args:
        client: asks the critic.
        rows, views: how many.
        wait: whether the reward of a done is given at its step, which means to wait for the critic at each step.
            Otherwise all rewards are given at the end of their episode, and only then is there something to wait
            for.
    """

    def __init__(self, client: CriticClient, *, rows: int, views: int = 1, wait: bool = False) -> None:
        self._client = client
        self._views = views
        self._wait = wait
        self._gate: RolloutGate | None = None
        self._failed = False
        #: Rows whose next frame is the first of an episode, and rows that have had their episode's reward.
        self._fresh = np.ones(rows, bool)
        self._rewarded = np.zeros(rows, bool)

    def step(
        self, tasks: Sequence[str], frames: Sequence[Sequence[Frames] | Frames], ended: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Take what was seen after a step.

        Args:
            tasks: each row's task in words; counts at the first step of an episode.
            frames: of each view and row, uint8 (H,W,3), RGB.
            ended: bool (rows,): whether the row's episode ended in this step.

        Returns:
            (rows,): the reward, 0..1, of each row that gets it in this step, NaN where `on_failure` has masked it;
            0.0 for the others.

        Raises:
            VlacQueueError: critic or queue failed, or frames are not usable. The episodes are closed then.
            ProtocolError: an earlier step failed.
        """
        if self._failed:
            raise ProtocolError("an earlier step failed, and what its rows saw is not complete; begin anew.")
        try:
            return self._step(tasks, frames, ended)
        except BaseException as error:
            self._failed = True
            if self._gate is not None:
                self._client.leave(self._gate.episodes, error)
            raise

    def _step(
        self, tasks: Sequence[str], frames: Sequence[Sequence[Frames] | Frames], ended: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        gate = self._opened(tasks)
        rows = range(len(ended))
        gate.observe(
            None, {self._episode(row, view): frames[view][row] for row, view in product(rows, range(self._views))}
        )
        due = ended.copy()
        if self._wait:
            over = gate.finished()
            due |= [all(episode in over for episode in self._episodes([row])) for row in rows]
        due &= ~self._rewarded
        rewards = np.zeros(len(ended))
        outcomes = gate.settle(self._episodes(np.flatnonzero(due)))
        given = [np.nan if outcome.reward is None else outcome.reward for outcome in outcomes]
        rewards[due] = np.reshape(given, (-1, self._views)).min(axis=1)
        self._rewarded = (self._rewarded | due) & ~ended
        self._fresh = ended.copy()
        self._client.close_many([gate.episodes[episode] for episode in self._episodes(np.flatnonzero(ended))])
        return rewards

    def _opened(self, tasks: Sequence[str]) -> RolloutGate:
        """Return the gate, with an episode open for each row and view."""
        if self._gate is None:
            every = [task for task in tasks for _ in range(self._views)]
            self._gate = RolloutGate(self._client, every, overlap=not self._wait)
        elif self._fresh.any():
            fresh = np.flatnonzero(self._fresh).tolist()
            self._gate.reopen(self._episodes(fresh), [tasks[row] for row in fresh for _ in range(self._views)])
        self._fresh[:] = False
        return self._gate

    def _episode(self, row: int, view: int) -> int:
        return row * self._views + view

    def _episodes(self, rows: Sequence[int] | NDArray[np.intp]) -> list[int]:
        return [self._episode(int(row), view) for row, view in product(rows, range(self._views))]
