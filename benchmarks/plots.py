"""Pictures of the figures (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.compare import Rounds, median_round
from benchmarks.episodes import Grown, step_seconds
from benchmarks.peers import OURS
from benchmarks.workers import CRITICS, Served
from vlac_queue.plot import figure_class, save

_OURS, _OTHERS = "#1f6f8b", "#8c9aa5"
_DPI = 150


def draw_peers(measured: Rounds, titles: Mapping[str, str], file: Path) -> None:
    """Draw queries per second and the time of a single query, of every peer.

    As points, since on a logarithmic axis the length of a bar means nothing.
    """
    medians = {name: median_round(rounds) for name, rounds in list(measured.items())[::-1]}
    picture = figure_class()(figsize=(9, 0.36 * len(medians) + 1.0), layout="constrained")
    rates, singles = picture.subplots(1, 2, sharey=True)
    rates.set_title("queries/s, 64 at once: more is better", fontsize=10)
    singles.set_title("a single query, median ms: less is better", fontsize=10)
    for name, one in medians.items():
        _point(rates, name, titles[name], one.queries_per_s, "{:,.0f}")
        _point(singles, name, titles[name], 1000 * one.single_p50_s, "{:.2f}")
    for axes in (rates, singles):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.margins(x=0.25)
        axes.grid(axis="y", color="#eaeef2")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    save(picture, file, _DPI)


def _point(axes: Any, name: str, label: str, value: float, form: str) -> None:
    colour, weight = (_OURS, "bold") if name == OURS else (_OTHERS, "normal")
    axes.plot([value], [label], "o", color=colour, markersize=7)
    beside = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(form.format(value), (value, label), **beside, fontsize=9, fontweight=weight)


def draw_episodes(measured: Grown, file: Path) -> None:
    """Draw seconds of a step over the number of episodes; a line through the origin would be linear."""
    curves = {
        workload: {count: 1000 * s for count, s in step_seconds(measured, workload).items()}
        for workload in dict.fromkeys(workload for workload, _ in measured)
    }
    scales = {"xscale": "log", "yscale": "log"}
    _draw_curves(curves, file, xlabel="episodes that ask at once", ylabel="ms a step", **scales)


def draw_workers(measured: Served, file: Path) -> None:
    """Draw rates over one worker's, by the number of workers."""
    counts = sorted({count for _, count in measured})
    curves = {"as many times as workers": {count: float(count) for count in counts}}
    for critic, title in CRITICS.items():
        rates = {count: median(measured[critic, count]) for count in counts}
        curves[title] = {count: rate / rates[counts[0]] * counts[0] for count, rate in rates.items()}
    _draw_curves(curves, file, xlabel="workers", ylabel="rate over that of one worker")


def _draw_curves(curves: Mapping[str, Mapping[int, float]], file: Path, **axis: str) -> None:
    picture = figure_class()(figsize=(6, 4), layout="constrained")
    axes = picture.subplots()
    for label, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), "o-", label=label)
    axes.set(**axis)
    ticks: Sequence[int] = sorted({count for curve in curves.values() for count in curve})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(picture, file, _DPI)
