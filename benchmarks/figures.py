"""Statistics of measurements, and the rounds in which they are taken."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vlac_queue.console import progress_bar

Row = TypeVar("Row")
Measured = TypeVar("Measured")


def interleaved(title: str, rows: Mapping[Row, Callable[[], Measured]], rounds: int) -> dict[Row, list[Measured]]:
    """Measure every row once a round: what else the machine does falls on all of them.

    Every second round goes backwards, so that no row always comes first.
    """
    measured: dict[Row, list[Measured]] = {row: [] for row in rows}
    with progress_bar() as progress:
        task = progress.add_task(title, total=rounds * len(rows))
        for index in range(rounds):
            for row in list(rows)[:: -1 if index % 2 else 1]:
                measured[row].append(rows[row]())
                progress.advance(task)
    return measured


@dataclass(frozen=True)
class Figure:
    """A figure that was measured once a round: its median, and its extremes."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}..{self.most:.2f})"


def figure(values: Sequence[float]) -> Figure:
    """Return the figure of one value a round."""
    return Figure(statistics.median(values), min(values), max(values))


def ratio(these: Sequence[float], those: Sequence[float]) -> Figure:
    """Return `these` over `those`, taken in each round: what else the machine did in one does not count."""
    return figure([this / that for this, that in zip(these, those, strict=True)])


def quantile(values: Sequence[float], q: float) -> float:
    """Return the smallest value that at least the share `q` (0..1) of all values do not exceed."""
    if not values:
        raise ValueError("there are no values to take a quantile of")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


@dataclass(frozen=True)
class Line:
    """`seconds = fixed + each * count`."""

    fixed: float
    each: float


def line(counts: Sequence[float], seconds: Sequence[float]) -> Line:
    """Return the line through measurements of at least two counts, by least squares of the relative errors.

    With absolute errors the largest count alone would decide.
    """
    if len(set(counts)) < 2:
        raise ValueError("a line needs measurements of two counts at least")
    each, fixed = np.polyfit(counts, seconds, 1, w=1 / np.asarray(seconds))
    return Line(float(fixed), float(each))


def exponent(counts: Sequence[float], seconds: Sequence[float]) -> float:
    """Return k of `seconds ~ count ** k`: 1 is linear, above 1 each query costs more the more there are."""
    return float(np.polyfit(np.log(counts), np.log(seconds), 1)[0])
