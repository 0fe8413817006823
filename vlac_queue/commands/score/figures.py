"""VLAC's figures of a value list, and the score of a recorded run: as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from vlac_queue.messages import DoneVerdict, ValueVerdict
from vlac_queue.texts import ordinal

#: Why there are no values.
NO_PAIR = "there are no two frames to compare"


def value_order_correlation(values: Sequence[float]) -> tuple[float | None, str]:
    """Return VOC: how well a value list keeps the order of time, -1..1; 1: it never falls back nor stands still.

    Spearman's rank correlation of the values with their places in time, equal values sharing the mean of
    their ranks. The same number as `GAC_model.compute_voc` of VLAC (evo_vlac/utils/model_utils.py), which
    takes it from `scipy.stats.spearmanr`.

    Args:
        values: a value list, in the order of time.

    Returns:
        VOC, and "". Where it is undefined (VLAC gives nan there) None, and why.
    """
    if len(values) < 2:
        return None, "an order takes two values or more"
    if min(values) == max(values):
        return None, "all values are equal"
    ranks = _ranks(np.asarray(values, np.float64))
    ranks -= ranks.mean()
    times = np.arange(len(values)) - (len(values) - 1) / 2
    return float(ranks @ times / np.sqrt((ranks @ ranks) * (times @ times))), ""


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value from 1 on, float64 (T,); equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def negative_rate(critics: Sequence[float]) -> tuple[float | None, str]:
    """Return the part of the steps that lead away from the goal, 0..1: pair-wise scores below 0.

    The same number as `GAC_model.compute_negative_rate` of VLAC (evo_vlac/utils/model_utils.py).

    Args:
        critics: pair-wise scores, nominally -100..100.

    Returns:
        The rate, and "". Where it is undefined (VLAC divides by zero there) None, and why.
    """
    if not critics:
        return None, NO_PAIR
    return sum(score < 0 for score in critics) / len(critics), ""


@dataclass(frozen=True)
class Score:
    """What the critic says of a recorded run. Frames are numbered as in the recording, from 0."""

    source: str  # the recording's file or folder
    task: str
    stride: int  # every stride-th frame was looked at, and the last
    frames: tuple[int, ...]  # numbers of those asked about, ascending
    done_scores: tuple[float, ...]  # of each of `frames`, 0..1
    done_threshold: float  # a score above this (strictly) means done, 0..1
    first_done: int | None  # number of the first frame that is done; None where none is
    value_frames: tuple[int, ...]  # number of the frame that each of `values` is about
    values: tuple[float, ...]  # the value list, nominally 0..100; empty where no two frames can be compared
    critics: tuple[float, ...]  # nominally -100..100: `critics[i]` leads from `values[i]` to `values[i + 1]`
    voc: float | None  # Value-Order Correlation, -1..1; None where it is undefined
    voc_undefined: str  # why it is, or ""
    negative_rate: float | None  # part of `critics` below 0, 0..1; None where it is undefined
    negative_rate_undefined: str  # why it is, or ""

    def to_json(self) -> str:
        """Return all fields as a JSON object; what is undefined is null."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


# Over 40 lines: one value for each field of the JSON, each a line or two.
def make_score(
    verdicts: Sequence[DoneVerdict],
    value: ValueVerdict | None,
    *,
    source: str,
    task: str,
    stride: int,
    done_threshold: float,
    value_stride: int,
    last: int | None = None,
    length: int | None = None,
) -> Score:
    """Return the score of a run.

    Args:
        verdicts: one for each frame that was asked about, ascending by frame.
        value: the value list; None where no two frames can be compared, or none was asked.
        value_stride: distance between the frames of the value list, counted in frames sent.
        last: index of the value list's last frame among those sent; None: the frame of the last verdict.
        length: frames of the run, where its last one was sent although it may lie between two strides; else None.
    """

    def number(place: int) -> int:
        return stride * place if length is None else min(stride * place, length - 1)

    last = verdicts[-1].frame if last is None else last
    values, critics = (value.values, value.critics) if value else ((), ())
    voc, voc_undefined = value_order_correlation(values) if value else (None, NO_PAIR)
    rate, rate_undefined = negative_rate(critics)
    return Score(
        source=source,
        task=task,
        stride=stride,
        frames=tuple(number(verdict.frame) for verdict in verdicts),
        done_scores=tuple(verdict.score for verdict in verdicts),
        done_threshold=done_threshold,
        first_done=next((number(verdict.frame) for verdict in verdicts if verdict.done), None),
        value_frames=tuple(number(min(place * value_stride, last)) for place in range(len(values))),
        values=values,
        critics=critics,
        voc=voc,
        voc_undefined=voc_undefined,
        negative_rate=rate,
        negative_rate_undefined=rate_undefined,
    )


def summary(score: Score) -> str:
    """Return the score in a few lines for a terminal."""
    done = "never" if score.first_done is None else f"first at frame {score.first_done}"
    span = f"undefined: {NO_PAIR}"
    if score.values:
        span = f"{score.values[0]:.1f} at first, {score.values[-1]:.1f} at last, {max(score.values):.1f} at most"
    rows = {
        "frames": f"{len(score.frames)}" + (f" (every {ordinal(score.stride)})" if score.stride > 1 else ""),
        "value": span,
        "done": f"{done}; highest score {max(score.done_scores):.2f}, threshold {score.done_threshold:g}",
        "VOC": _figure(score.voc, score.voc_undefined),
        "negative rate": _figure(score.negative_rate, score.negative_rate_undefined),
    }
    return "\n".join(f"{name:14} {text}" for name, text in rows.items())


def _figure(number: float | None, undefined: str) -> str:
    return f"undefined: {undefined}" if number is None else f"{number:.3f}"
