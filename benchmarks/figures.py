"""Statistics of measurements; pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least the share `q` (0..1) of all values do not exceed; no value is made up."""
    if not values:
        raise ValueError("there are no values to take a quantile of")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


@dataclass(frozen=True)
class Ratio:
    """How much one thing is of another, over rounds in which both were measured one after the other.

    Attributes:
        median: the median of the rounds' ratios: what else the machine did in one round does not count.
        least, most: the smallest and the largest of them.
    """

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}..{self.most:.2f})"


def ratio(these: Sequence[float], those: Sequence[float]) -> Ratio:
    """`these` over `those`, round by round."""
    each = [this / that for this, that in zip(these, those, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


@dataclass(frozen=True)
class Line:
    """`seconds = fixed + each * count`, by least squares of the relative errors."""

    fixed: float
    each: float


def line(counts: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line through measurements of at least two counts.

    Each error is taken relative to its measurement, or the largest count alone would decide.
    """
    weights = [1 / took**2 for took in seconds]
    total = sum(weights)
    mean_x = sum(w * x for w, x in zip(weights, counts, strict=True)) / total
    mean_y = sum(w * y for w, y in zip(weights, seconds, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, counts, strict=True))
    if spread == 0:
        raise ValueError("a line needs measurements of two counts at least")
    each = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in zip(weights, counts, seconds, strict=True)) / spread
    return Line(mean_y - each * mean_x, each)


def exponent(counts: Sequence[float], seconds: Sequence[float]) -> float:
    """k of `seconds ~ count ** k`: 1 is linear, above 1 each query costs more the more there are."""
    fitted = statistics.linear_regression([math.log(n) for n in counts], [math.log(s) for s in seconds])
    return fitted.slope
