"""Recommend a threshold: few enough false dones, then as many right ones as can be, then as early as can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlac_queue.commands.calibrate.tally import CONFIRMS, THRESHOLDS, Tally, enough

#: Part of the episodes that may have ended before a threshold shows what it does; a message has it in words.
_MOST_UNKNOWN = 0.1


@dataclass(frozen=True)
class Choice:
    """What is recommended.

    Attributes:
        place: the setting, in CONFIRMS and THRESHOLDS; None where none has few enough false dones.
        shown: whether the upper end of its interval is low enough too.
        remark: what is to be said of it.
    """

    place: tuple[int, int] | None
    shown: bool
    remark: str


def choose(tally: Tally, wanted: float) -> Choice:
    """Return the setting with a false-done rate of at most `wanted`, 0..1, that finds most successes."""
    found: dict[tuple[float, float, int], list[int]] = {}
    least: float | None = None
    for row, column in np.ndindex(len(CONFIRMS), len(THRESHOLDS)):
        figures = tally.figures(row, column)
        false, recall = figures["false_done_rate"], figures["recall"]
        if figures["unknown"] > _MOST_UNKNOWN * tally.episodes or false is None or recall is None:
            continue
        if recall["rate"] == 0:
            continue  # a threshold that nothing reaches has no false dones either
        least = false["rate"] if least is None else min(least, false["rate"])
        if false["rate"] <= wanted:
            # By the recall, then by the delay, then by the number of dones.
            found.setdefault((-recall["rate"], figures["delay"] or 0.0, row), []).append(column)
    if not found:
        return Choice(None, False, _why_none(tally, wanted, least))
    best = min(found)
    row, columns = best[2], found[best]
    # In the middle of those that do the same: the farthest from doing something else.
    run = max(np.split(np.array(columns), np.flatnonzero(np.diff(columns) > 1) + 1), key=len)
    column = int(run[len(run) // 2])
    interval = tally.figures(row, column)["false_done_rate"]
    shown = interval["high"] <= wanted
    remark = ""
    if not shown:
        remark = (
            f"too few episodes: its false-done rate may be up to {interval['high']:.1%}. To show {wanted:.1%}, "
            f"{enough(wanted):,} episodes that are not done are needed, none of them found done."
        )
    return Choice((row, column), shown, remark)


def _why_none(tally: Tally, wanted: float, least: float | None) -> str:
    if not tally.failed or not tally.succeeded:
        known = "failed" if tally.succeeded else "succeeded"
        return f"no episode is known to have {known}: to choose a threshold takes some of both kinds"
    if least is None:
        return (
            "no setting that finds a success is known to do so in nine of ten episodes: the critic finds none, or "
            "too many ended at a lower threshold; calibrate on whole episodes (`vlac-queue label`)"
        )
    return (
        f"no setting that finds a success has a false-done rate of {wanted:.1%} or less; the least is {least:.1%}"
    )
