"""Pictures of the figures (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.compare import Rounds, median_round
from benchmarks.episodes import Asked, step_seconds
from benchmarks.peers import OURS
from benchmarks.report import served_rates
from benchmarks.workers import CRITICS, Served
from vlac_queue.plot import figure_class

_OURS, _OTHERS = "#1f6f8b", "#8c9aa5"
_DPI = 150


def draw_peers(measured: Rounds, titles: Mapping[str, str], file: Path) -> None:
    """Queries per second and the time of a single query, of every peer: points, since on a logarithmic axis the
    length of a bar means nothing."""
    names = list(measured)[::-1]
    each = {name: median_round(measured[name]) for name in names}
    figure = figure_class()(figsize=(9, 0.36 * len(names) + 1.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = [titles[name] for name in names]
    shown = (
        ([each[name].queries_per_s for name in names], "queries/s, 64 at once: more is better", "{:,.0f}"),
        (
            [1000 * each[name].single_p50_s for name in names],
            "a single query, median ms: less is better",
            "{:.2f}",
        ),
    )
    for axes, (values, title, form) in zip(panels, shown, strict=True):
        for label, name, value in zip(labels, names, values, strict=True):
            colour = _OURS if name == OURS else _OTHERS
            weight = "bold" if name == OURS else "normal"
            axes.plot([value], [label], "o", color=colour, markersize=7)
            axes.annotate(form.format(value), (value, label), (7, 0), textcoords="offset points",
                          va="center", fontsize=9, fontweight=weight)  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.25)
        axes.grid(axis="y", color="#eaeef2")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(file, dpi=_DPI)


def draw_episodes(measured: Sequence[Asked], file: Path) -> None:
    """Seconds of a step over the number of episodes; a line through the origin would be linear."""
    figure = figure_class()(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for workload in dict.fromkeys(each.workload for each in measured):
        seconds = step_seconds(measured, workload)
        axes.plot(list(seconds), [1000 * value for value in seconds.values()], "o-", label=workload)
    axes.set(xscale="log", yscale="log", xlabel="episodes that ask at once", ylabel="ms a step")
    ticks = sorted({each.episodes for each in measured})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=_DPI)


def draw_workers(measured: Sequence[Sequence[Served]], file: Path) -> None:
    """Rates over one worker's, by the number of workers."""
    figure = figure_class()(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    counts: list[int] = []
    for critic, title in CRITICS.items():
        rates = served_rates(measured, critic)
        counts = list(rates)
        axes.plot(counts, [rate / rates[counts[0]] * counts[0] for rate in rates.values()], "o-", label=title)
    axes.plot(counts, counts, "--", color=_OTHERS, label="as many times as workers")
    axes.set(xlabel="workers", ylabel="rate over that of one worker")
    axes.set_xticks(counts)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=_DPI)
