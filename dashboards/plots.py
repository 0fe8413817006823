"""Plots of a recorded run as SVG, for a page in light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import numpy as np

from dashboards.run import Run
from vlac_queue.metrics import PHASES
from vlac_queue.plot import figure_class
from vlac_queue.texts import latency, percent, size

#: Colours that can be told apart on white and on black, and for people who see few of them.
_BLUE, _ORANGE, _RED, _GREEN, _VIOLET, _GREY = "#3b82f6", "#e08a00", "#e5484d", "#1a9e6c", "#8b5cf6", "#8a8f98"
_CYCLE = (_BLUE, _ORANGE, _GREEN, _VIOLET, _RED, _GREY)
#: Stands for the page's own colour of text, which matplotlib can't name.
_TEXT = "#010203"
#: Settings of matplotlib.
_STYLE: Any = {
    "svg.fonttype": "none", "text.parse_math": False, "text.color": _TEXT, "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT, "ytick.color": _TEXT, "axes.edgecolor": _GREY, "font.size": 9, "legend.frameon": False,
}  # fmt: skip
#: The same picture is the same file.
_UNDATED = {"Date": None, "Creator": None}
#: Most points of a curve; longer recordings are drawn by the means of so many spans.
_POINTS = 600


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        title: above it.
        svg: the picture, to stand in a page as it is; "" where the recording holds nothing to draw.
        note: below it: what it shows, or why there is none.
    """

    title: str
    svg: str
    note: str


def plots(run: Run) -> list[Plot]:
    """All plots of a run.

    Raises:
        ImportError: matplotlib is missing.
    """
    return [
        _plot(run, "Queue depth", "jobs", "Jobs that wait, and those that workers have taken.",
              [("waiting", "waiting", _ORANGE), ("taken", "taken", _BLUE)], _whole, filled=True),
        _plot(run, "Age of the oldest job", "", "How long the first job in the queue has waited.",
              [("oldest", "oldest job", _ORANGE)], lambda v: latency(v) if v else "0", filled=True),
        _plot(run, "Throughput", "queries/s", "Queries that arrive a second, and those answered.",
              [("arriving", "arriving", _GREY), ("queries", "answered", _GREEN)], _rounded),
        _plot(run, "Worker busy", "", "Part of the time for which critics work: mean, and from least to most.",
              [("busy", "mean", _GREEN)], percent, band=("busy_least", "busy_most"), top=1.0),
        _plot(run, "Latency", "", "From asking until the answer stands on Redis; over a minute.",
              [("total_p50", "p50", _GREEN), ("total_p95", "p95", _ORANGE), ("total_p99", "p99", _RED)],
              latency, logarithmic=True),
        _plot(run, "Latency by phase", "", "95th percentile of each phase; over a minute.",
              [(f"{phase}_p95", phase, colour) for phase, colour in zip(PHASES[:-1], _CYCLE, strict=False)],
              latency, logarithmic=True),
        _plot(run, "Rewards", "", "Done rate, value of those never done, contradicted dones; over a minute.",
              [("done_rate", "done rate", _GREEN), ("value", "value", _VIOLET),
               ("contradicted", "contradicted", _RED)], lambda v: f"{v:.1f}", top=1.0,
              missing="No episode of training ended while it was recorded."),
        _audit(run),
        _plot(run, "Failures", "queries", "Queries that failed within a minute.",
              [("failures", "failed", _RED)], _whole, filled=True),
        _plot(run, "Memory of Redis", "", "Memory in use, and encoded frames of open episodes.",
              [("redis_bytes", "Redis", _BLUE), ("frame_bytes", "frames", _VIOLET),
               ("redis_limit", "maxmemory", _RED), ("frame_limit", "max_pending_bytes", _GREY)], size),
    ]  # fmt: skip


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _rounded(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _audit(run: Run) -> Plot:
    """Those figures of the audit that are shares."""
    shares = [
        name for name, values in run.audit.items() if all(not value > 1 and not value < 0 for value in values)
    ]
    chosen = [(name, name.replace("_", " "), colour) for name, colour in zip(shares, _CYCLE, strict=False)]
    return _plot(run, "Audit", "", "The critic against the simulator's truth.", chosen, lambda v: f"{v:.1f}",
                 top=1.0, columns=run.audit, missing="No audit ran; it needs a simulator.")  # fmt: skip


def _plot(
    run: Run,
    title: str,
    unit: str,
    note: str,
    curves: Sequence[tuple[str, str, str]],
    told: Callable[[float], str],
    *,
    filled: bool = False,
    logarithmic: bool = False,
    band: tuple[str, str] | None = None,
    top: float | None = None,
    columns: dict[str, list[float]] | None = None,
    missing: str = "Nothing of the kind was recorded.",
) -> Plot:
    columns = run.columns if columns is None else columns
    drawn = [(columns[name], label, colour) for name, label, colour in curves if _any(columns.get(name, ()))]
    if not drawn:
        return Plot(title, "", missing)
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = figure_class()(figsize=(6.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for values, label, colour in drawn:
            times, means = _thinned(run.at, values)
            axes.plot(times, means, color=colour, label=label, linewidth=1.4, solid_capstyle="round")
            if len(means) < 40:
                axes.plot(times, means, color=colour, marker=".", linestyle="none", markersize=4)
            if filled:
                axes.fill_between(times, means, color=colour, alpha=0.18, linewidth=0)
        if band is not None:
            (times, low), (_, high) = (_thinned(run.at, columns[name]) for name in band)
            axes.fill_between(times, low, high, color=drawn[0][2], alpha=0.18, linewidth=0)
        _dress(axes, told, unit, logarithmic, top)
        if len(curves) > 1 or columns is run.audit:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(drawn), borderaxespad=0.1,
                        columnspacing=1.2, handlelength=1.2)  # fmt: skip
        figure.savefig(file := io.StringIO(), format="svg", transparent=True, metadata=_UNDATED)
    return Plot(title, _inline(file.getvalue(), title), note)


def _dress(axes: Any, told: Callable[[float], str], unit: str, logarithmic: bool, top: float | None) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.ticker import FuncFormatter

    locator = AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    axes.grid(True, color=_GREY, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if unit:
        axes.set_ylabel(unit)
    if logarithmic:
        from matplotlib.ticker import LogLocator, NullLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=9))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        highest = axes.dataLim.y1
        axes.set_ylim(0, top * 1.04 if top else 1.05 * highest if highest > 0 else 1)
        if told is size:
            # Steps of bytes that are round numbers of KiB, MiB or GiB.
            from matplotlib.ticker import MultipleLocator

            axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(max(1, highest) / 4))))
        else:
            axes.yaxis.get_major_locator().set_params(integer=told is _whole)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))


def _any(values: Sequence[float]) -> bool:
    return any(value == value for value in values)


def _thinned(at: Sequence[float], values: Sequence[float]) -> tuple[list[datetime], Sequence[float]]:
    """At most _POINTS of them: means over spans of equal length; what is not known is left out of a mean."""
    if len(at) > _POINTS:
        edges = np.linspace(0, len(at), _POINTS + 1).astype(int)
        times, numbers = np.asarray(at), np.asarray(values, float)
        spans = [slice(first, last) for first, last in pairwise(edges)]
        known = [numbers[span][~np.isnan(numbers[span])] for span in spans]
        at = [float(times[span].mean()) for span in spans]
        values = [float(each.mean()) if each.size else float("nan") for each in known]
    return [datetime.fromtimestamp(each) for each in at], values


def _inline(svg: str, title: str) -> str:
    """An SVG file as an element of a page, its texts in the page's own colour."""
    svg = svg[svg.index("<svg") :].replace(_TEXT, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # It takes the width of its place in the page.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
