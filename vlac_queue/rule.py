"""The training rule, without I/O: when an episode ends, and with what reward.

After each step the critic is asked whether the task is done. Done: the episode ends at that step, its
reward is 1.0, and no value is asked. Never done: it ends at its last step, and the last entry of the
critic's value list, 0..100 made 0..1, is its reward. A failure of the critic is never a reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlac_queue.errors import VlacQueueError
from vlac_queue.messages import ValueVerdict


@dataclass(frozen=True)
class Outcome:
    """How one training episode ended.

    Attributes:
        finish_step: step at which it ended: where the critic found it done, where the critic failed
            (masked), or its last step.
        done: whether the critic found the task done.
        reward: 1.0 if done, else the value reward, 0..1; None exactly if masked.
        masked: whether the critic failed and the episode must be left out of its group.
        values: the critic's value list, nominally 0..100; empty where it was not asked.
        error: what failed, where masked.
    """

    finish_step: int
    done: bool
    reward: float | None
    masked: bool = False
    values: tuple[float, ...] = ()
    error: str = ""


def value_reward(verdict: ValueVerdict) -> float:
    """The terminal reward of an episode that was never done: the last value / 100, clipped to 0..1."""
    return min(max(verdict.values[-1] / 100.0, 0.0), 1.0)


def decisive_step(steps: Sequence[int], answers: Mapping[int, bool | VlacQueueError]) -> int | None:
    """The step that ends the episode, as far as the answers tell.

    Answers may come in any order, but they count in the order of the steps: a later one counts for nothing
    until all before it are known, and for nothing at all after the first that ends the episode. So late
    answers give what waiting for each would have given.

    Args:
        steps: the steps asked about, ascending.
        answers: step -> whether done, or how the critic failed; unanswered steps are missing.

    Returns:
        The first step that is done or failed, if all before it are answered; else None.
    """
    for step in steps:
        answer = answers.get(step)
        if answer is None:
            return None
        if answer is not False:
            return step
    return None


def first_open_step(steps: Sequence[int], answers: Mapping[int, bool | VlacQueueError]) -> int | None:
    """The first step whose answer is missing, if the outcome may depend on it; else None."""
    for step in steps:
        answer = answers.get(step)
        if answer is None:
            return step
        if answer is not False:
            return None
    return None
