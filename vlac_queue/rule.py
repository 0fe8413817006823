"""The training rule, without I/O: when an episode ends, and with what reward.

After each step the critic is asked whether the task is done. Done: the episode ends at that step, its
reward is 1.0, and no value counts. Never done: it ends at its last step, and the last entry of the
critic's value list, 0..100 made 0..1, is its reward. A failure of the critic is never a reward.

A critic that errs now and then may have to say done at several steps in a row (`done_confirm`) before it counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlac_queue.errors import VlacQueueError
from vlac_queue.messages import ValueVerdict


@dataclass(frozen=True)
class Outcome:
    """How one training episode ended.

    Attributes:
        finish_step: step at which it ended: where the critic found it done (the last of `done_confirm` steps in
            a row), where the critic failed (masked), or its last step.
        done: whether the critic found the task done.
        reward: 1.0 if done, else the value reward, 0..1; None exactly if masked.
        masked: whether the critic failed and the episode must be left out of its group.
        values: the critic's value list, nominally 0..100; empty where it was not asked.
        error: what failed, where masked.
        contradicted: whether the critic's value of an episode that it found done was below `audit_value`; None
            where that was not asked or is not known. It depends on time, so outcomes are compared without it.
    """

    finish_step: int
    done: bool
    reward: float | None
    masked: bool = False
    values: tuple[float, ...] = ()
    error: str = ""
    contradicted: bool | None = field(default=None, compare=False)


def value_reward(verdict: ValueVerdict) -> float:
    """Return the terminal reward of an episode that was never done: the last value / 100, clipped to 0..1."""
    return min(max(verdict.values[-1] / 100.0, 0.0), 1.0)


class Course:
    """What the critic has said of one training episode, and how it ends by that.

    Answers may come in any order, but they count in the order of the steps: a later one counts for nothing until
    all before it are known, and for nothing at all after the first that ends the episode. So late answers give
    what waiting for each would have given.

    Args:
        done_confirm: at how many steps in a row the critic must say done to end the episode, at the last of them.

    Attributes:
        steps: the steps asked about, ascending.
        answers: step -> whether done, or how the critic failed; unanswered steps are missing.
        failure: step and error, where frames or the value could not be had; counts after all steps asked about.
        value: the critic's value list; None where it was not asked.
    """

    def __init__(self, done_confirm: int = 1) -> None:
        self._done_confirm = done_confirm
        self.steps: list[int] = []
        self.answers: dict[int, bool | VlacQueueError] = {}
        self.failure: tuple[int, VlacQueueError] | None = None
        self.value: ValueVerdict | None = None

    def _first(self, *, or_open: bool) -> int | None:
        """Return the first step that ends the episode by the answers so far, or that is open; None for none."""
        in_a_row = 0
        for step in self.steps:
            answer = self.answers.get(step)
            in_a_row = in_a_row + 1 if answer is True else 0
            failed = isinstance(answer, VlacQueueError)
            if failed or in_a_row == self._done_confirm or (or_open and answer is None):
                return step
        return None

    @property
    def decisive(self) -> int | None:
        """The first step that ends it, done or failed, if all before it are answered; else None."""
        return step if (step := self._first(or_open=True)) in self.answers else None

    @property
    def first_open(self) -> int | None:
        """The first step whose answer is missing, if the outcome may depend on it; else None."""
        return step if (step := self._first(or_open=True)) not in self.answers else None

    @property
    def over(self) -> bool:
        """Whether the episode is known to end, be it at a step that is not known yet."""
        return self.failure is not None or self._first(or_open=False) is not None

    def outcome(self) -> Outcome:
        """Return how the episode ends, once all steps are answered and the value, if it is needed."""
        end = self.failure
        if (step := self.decisive) is not None:
            answer = self.answers[step]
            if isinstance(answer, bool):
                return Outcome(step, done=True, reward=1.0)
            end = step, answer
        if end is not None:
            return Outcome(end[0], done=False, reward=None, masked=True, error=str(end[1]))
        assert self.value is not None, "the value is asked of every episode that is neither done nor failed"
        return Outcome(self.steps[-1], done=False, reward=value_reward(self.value), values=self.value.values)
