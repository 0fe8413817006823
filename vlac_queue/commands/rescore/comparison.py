"""Compare one critic's verdicts with another's: pure arithmetic."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vlac_queue.messages import DoneVerdict, ValueVerdict


@dataclass(frozen=True)
class Drift:
    """How far numbers moved: absolute differences, in the units of the numbers; None where there are none."""

    count: int
    mean: float | None = None
    p95: float | None = None  # 95% moved by no more
    max: float | None = None

    @classmethod
    def of(cls, differences: Sequence[float]) -> Drift:
        """Return the drift that absolute differences make."""
        if not len(differences):
            return cls(0)
        numbers = np.asarray(differences, np.float64)
        return cls(len(numbers), float(numbers.mean()), float(np.percentile(numbers, 95)), float(numbers.max()))


@dataclass
class Comparison:
    """The verdicts then and now of one task, or of all."""

    task: str  # its text; "" for all tasks together
    done_verdicts: int = 0  # pairs of them
    newly_done: int = 0
    no_longer_done: int = 0
    judged: int = 0  # pairs about a frame of which the log has the simulator's word that it is not done
    false_done_then: int = 0  # how many of these the critic then called done
    false_done_now: int = 0
    value_lists: int = 0  # pairs of one length
    uneven_lists: int = 0  # pairs of different lengths, which are not compared
    failed: int = 0  # queries that the critic failed on now
    score_moves: array[float] = field(default_factory=lambda: array("d"), repr=False)
    value_moves: array[float] = field(default_factory=lambda: array("d"), repr=False)

    def add(
        self, then: DoneVerdict | ValueVerdict, now: DoneVerdict | ValueVerdict | None, *, truth: bool | None
    ) -> None:
        """Take a pair in; `now` is None where the critic failed, `truth` where the log does not tell."""
        if now is None:
            self.failed += 1
        elif isinstance(then, DoneVerdict) and isinstance(now, DoneVerdict):
            self.done_verdicts += 1
            self.newly_done += now.done and not then.done
            self.no_longer_done += then.done and not now.done
            if truth is False:
                self.judged += 1
                self.false_done_then += then.done
                self.false_done_now += now.done
            self.score_moves.append(abs(now.score - then.score))
        elif isinstance(then, ValueVerdict) and isinstance(now, ValueVerdict):
            if len(then.values) != len(now.values):
                self.uneven_lists += 1
                return
            self.value_lists += 1
            self.value_moves.extend(abs(b - a) for a, b in zip(then.values, now.values, strict=True))

    @property
    def compared(self) -> int:
        """Return how many pairs of verdicts there are."""
        return self.done_verdicts + self.value_lists

    @property
    def flips(self) -> int:
        """Return how many done verdicts differ."""
        return self.newly_done + self.no_longer_done

    @property
    def agreement(self) -> float | None:
        """Return the part of the done verdicts that are the same, 0..1; None where there are none."""
        return None if not self.done_verdicts else 1 - self.flips / self.done_verdicts

    @property
    def scores(self) -> Drift:
        """Return the drift of the done scores, 0..1."""
        return Drift.of(self.score_moves)

    @property
    def values(self) -> Drift:
        """Return the drift of the values, 0..100, over all places of the lists."""
        return Drift.of(self.value_moves)

    @property
    def largest_drift(self) -> float:
        """Return the largest drift of a score, or of a value as the reward that it stands for, 0..1."""
        return max(self.scores.max or 0.0, (self.values.max or 0.0) / 100)

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, for JSON; what is undefined is None."""
        counts = {name: value for name, value in vars(self).items() if not isinstance(value, array)}
        drifts = {"agreement": self.agreement, "scores": asdict(self.scores), "values": asdict(self.values)}
        return counts | drifts


def together(comparisons: Iterable[Comparison]) -> Comparison:
    """Return the sum of all tasks."""
    total = Comparison("")
    for comparison in comparisons:
        for name, value in vars(comparison).items():
            if name != "task":
                setattr(total, name, getattr(total, name) + value)
    return total
