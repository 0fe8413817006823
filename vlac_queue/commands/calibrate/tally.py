"""Count what "done" would have been worth at every threshold, and for every run of dones that must agree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlac_queue.commands.calibrate.judged import Judged

#: Thresholds looked at; a score above one, strictly, is done.
THRESHOLDS = np.round(np.arange(0.0, 1.0, 0.01), 2)
#: Numbers of steps in a row that must be done (`done_confirm`).
CONFIRMS = (1, 2, 3)
#: Of 95% confidence.
_Z = 1.959964

Counts = NDArray[np.int64]


def done_places(scores: Iterable[float]) -> Counts:
    """Return where an episode would have ended: place of the step in `scores`, or their number where nowhere.

    Returns:
        int64 (len(CONFIRMS), len(THRESHOLDS)).
    """
    given = np.asarray(list(scores), np.float64)
    found = np.empty((len(CONFIRMS), len(THRESHOLDS)), np.int64)
    lowest = given
    for row, confirm in enumerate(CONFIRMS):
        if confirm > 1:
            # The lowest of each score and those just before it; -1 where there are too few before.
            lowest = np.minimum(given, np.concatenate([[-1.0], lowest[:-1]]))
        found[row] = np.searchsorted(np.maximum.accumulate(lowest), THRESHOLDS, side="right")
    return found


def _counts() -> Counts:
    return np.zeros((len(CONFIRMS), len(THRESHOLDS)), np.int64)


@dataclass
class Tally:
    """Episodes of one task, or of all, by how they would have ended. Arrays are (CONFIRMS, THRESHOLDS)."""

    task: str  # "" for all
    succeeded: int = 0
    failed: int = 0
    right: Counts = field(default_factory=_counts)  # found done, and it was
    early: Counts = field(default_factory=_counts)  # found done before it was
    wrong: Counts = field(default_factory=_counts)  # found done, and it failed
    missed: Counts = field(default_factory=_counts)  # succeeded, and never found done
    quiet: Counts = field(default_factory=_counts)  # failed, and never found done
    unknown: Counts = field(default_factory=_counts)  # ended then, at a lower threshold
    delays: Counts = field(default_factory=_counts)  # frames from success to done, summed
    delayed: Counts = field(default_factory=_counts)  # how many of them are known

    @property
    def episodes(self) -> int:
        """Return how many were counted."""
        return self.succeeded + self.failed

    def add(self, judged: Judged) -> None:
        """Count an episode whose truth is known."""
        truth = judged.truth
        assert truth is not None
        self.succeeded += truth.success
        self.failed += not truth.success
        frames = np.array([*judged.frames, np.iinfo(np.int64).max])
        places = done_places(judged.scores)
        never = places == len(judged.frames)
        ended = frames[places]
        # A success whose frame nobody knows counts as one from the beginning.
        correct = ~never & truth.success & (ended >= (truth.frame or 0))
        self.right += correct
        self.early += ~never & ~correct & truth.success
        self.wrong += ~never & (not truth.success)
        self.unknown += never & (not judged.whole)
        self.missed += never & judged.whole & truth.success
        self.quiet += never & judged.whole & (not truth.success)
        if truth.frame is not None:
            self.delays += np.where(correct, ended - truth.frame, 0)
            self.delayed += correct

    def figures(self, row: int, column: int) -> dict[str, Any]:
        """Return the figures of one setting: rates with 95% intervals, None where there is nothing to count."""
        kinds = ("right", "early", "wrong", "missed", "quiet", "unknown", "delayed")
        counts = {kind: int(getattr(self, kind)[row, column]) for kind in kinds}
        delayed, right = counts.pop("delayed"), counts["right"]
        false = counts["early"] + counts["wrong"]
        return {
            "threshold": float(THRESHOLDS[column]),
            "confirm": CONFIRMS[row],
            **counts,
            "precision": rate(right, right + false),
            "recall": rate(right, right + counts["early"] + counts["missed"]),
            "false_done_rate": rate(false, false + counts["quiet"]),
            "delay": int(self.delays[row, column]) / delayed if delayed else None,
        }


def rate(part: int, whole: int) -> dict[str, float] | None:
    """Return a rate and the ends of its 95% interval (Wilson's), all 0..1; None of nothing."""
    if not whole:
        return None
    share, square = part / whole, _Z**2 / whole
    middle = (share + square / 2) / (1 + square)
    width = sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return {"rate": share, "low": max(0.0, middle - width), "high": min(1.0, middle + width)}


def enough(wanted: float) -> int:
    """Return how many episodes without a false done show that the rate is at most `wanted`, above 0."""
    return int(np.ceil(_Z**2 * (1 - wanted) / wanted))
