"""Show how the demo went: two tables, figures and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from vlac_queue.commands.demo.play import Report
from vlac_queue.plot import CURVE, DONE, TEXT, UNDONE, border, evenly, figure_class, save, shrunk

_HEADER = ["task", "episode", "ended", "by", "reward", "env.", "asked", "MB sent/raw", "ms"]
_TITLES = {"train": "Training: the critic decides", "eval": "Evaluation: the environment decides"}
#: What ended an episode: its colour in the terminal and in the picture.
_COLOURS = {"critic": ("green", DONE), "environment": ("cyan", CURVE), "max_step": ("yellow", UNDONE)}
#: Frames of an episode in the picture, and about their height in pixels.
_THUMBNAILS, _HEIGHT = 8, 128
#: Inches: the picture's width, and an episode's height in it.
_WIDTH, _ROW = 10.0, 1.36
#: Pixels an inch: a page shows the picture at some 800 pixels, where its smallest letters are 9 high.
_DPI = 150


def tables(reports: Sequence[Report], width: int) -> list[Table]:
    """Return training and evaluation, one row for each episode, for a terminal of `width` columns, 80 or more."""
    rows = [_row(report) for report in reports]
    # In a narrow terminal the task's text is cut, never a figure.
    others = sum(max(len(row[place]) for row in [_HEADER, *rows]) + 1 for place in range(1, len(_HEADER)))
    room = max(8, width - others - 3)
    made = []
    for mode, title in _TITLES.items():
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
        for place, column in enumerate(_HEADER):
            table.add_column(column, justify="left" if place < 2 else "right", no_wrap=True)
        for report, row in zip(reports, rows, strict=True):
            if report.mode == mode:
                task = row[0] if len(row[0]) <= room else row[0][: room - 2].rstrip() + ".."
                colour = _COLOURS[report.ended_by][0]
                table.add_row(task, *row[1:3], f"[{colour}]{row[3]}", *row[4:])
        made.append(table)
    return made


def _row(report: Report) -> list[str]:
    return [
        report.task,
        report.name,
        str(report.finish_step),
        report.ended_by,
        f"{report.reward:.2f}",
        "never" if report.environment_done is None else str(report.environment_done),
        str(report.queries),
        f"{report.sent_bytes / 1e6:.2f}/{report.raw_bytes / 1e6:.1f}" if report.raw_bytes else "-",
        "-" if report.latency_ms is None else f"{report.latency_ms:.0f}",
    ]


#: What the columns are.
LEGEND = (
    "ended: chunk at which the episode ended; env.: chunk at which the environment itself says done; asked: "
    "critic queries; ms: mean time from asking to the answer."
)


def figures(reports: Sequence[Report], answers: int, seconds: float) -> dict[str, Any]:
    """Return the figures of a demo, for JSON.

    Args:
        answers: those that Redis counted during evaluation.
        seconds: what it all took.
    """
    trained = [report for report in reports if report.mode == "train"]
    episodes = [{name: value for name, value in vars(report).items() if name != "frames"} for report in reports]
    return {
        "seconds": seconds,
        "answers_during_evaluation": answers,
        "agreed_within_one_chunk": sum(map(_agrees, trained)),
        "sent_bytes": sum(report.sent_bytes for report in trained),
        "raw_bytes": sum(report.raw_bytes for report in trained),
        "episodes": episodes,
    }


def summary(reports: Sequence[Report], answers: int, seconds: float) -> str:
    """Return the demo in a paragraph; the arguments are those of `figures`."""
    found = figures(reports, answers, seconds)
    trained = sum(report.mode == "train" for report in reports)
    return (
        f"In {found['agreed_within_one_chunk']} of {trained} training episodes the critic agreed with the "
        "environment: done within one chunk of its done, or never where it was never done. Frames crossed the "
        f"wire in 1/{found['raw_bytes'] / found['sent_bytes']:.1f} of their size. Critic answers during "
        f"evaluation, as Redis counts them: {answers}. {seconds:.1f} s."
    )


def _agrees(report: Report) -> bool:
    if report.ended_by != "critic" or report.environment_done is None:
        return report.ended_by != "critic" and report.environment_done is None
    return abs(report.finish_step - report.environment_done) <= 1


def write_picture(reports: Sequence[Report], path: Path) -> None:
    """Draw frames and value curve of a few episodes, their ends marked, as PNG: of each task one that was found
    done and one that was not, and of evaluation likewise.

    Raises:
        ImportError: matplotlib is missing; the message says how to get it.
    """
    shown = _chosen(reports)
    figure = figure_class()(figsize=(_WIDTH, _ROW * len(shown) + 0.45), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.04, hspace=0.0)
    figure.suptitle(
        f"{len(shown)} of {len(reports)} episodes: frames, where each ended, and the critic's value of each step",
        fontsize=11, x=0.006, ha="left",
    )  # fmt: skip
    grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=[4.6, 1])
    for (strip, curve), report in zip(grid, shown, strict=True):
        _draw_strip(strip, report)
        _draw_curve(curve, report)
    save(figure, path, dpi=_DPI)


def _chosen(reports: Sequence[Report]) -> list[Report]:
    """Return the last of each kind: mode, what ended it, and in training the task."""
    last: dict[tuple[str, str, str], int] = {}
    for place, report in enumerate(reports):
        last[report.mode, report.task if report.mode == "train" else "", report.ended_by] = place
    return [reports[place] for place in sorted(last.values())]


def _draw_strip(axes: Any, report: Report) -> None:
    colour = _COLOURS[report.ended_by][1]
    places = evenly(len(report.frames), _THUMBNAILS, [report.finish_step])
    frames = [shrunk(report.frames[place], _HEIGHT) for place in places]
    width = frames[0].shape[1]
    axes.imshow(np.concatenate(frames, axis=1))
    at = places.index(report.finish_step)
    axes.add_patch(border(frames[at], colour, left=at * width))
    axes.set_xticks([width * (place + 0.5) for place in range(len(places))], places)
    axes.tick_params(labelsize=8, length=0, pad=2, labelcolor=TEXT)
    axes.get_xticklabels()[at].set(color=colour, fontweight="bold")
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    mode = "training" if report.mode == "train" else "evaluation"
    truth = "never done" if report.environment_done is None else f"done at {report.environment_done}"
    ended = (
        f"ended by {report.ended_by} at {report.finish_step}, reward {report.reward:.2f} (environment: {truth})"
    )
    axes.set_title(f"{mode}: {report.task}, {report.name}", fontsize=9, loc="left", pad=3)
    axes.set_title(ended, fontsize=9, loc="right", pad=3, color=colour)


def _draw_curve(axes: Any, report: Report) -> None:
    if not report.values:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "the critic\nis not asked", fontsize=9, color=TEXT, ha="center", va="center")
        return
    colour = _COLOURS[report.ended_by][1]
    axes.plot(report.values, color=CURVE, linewidth=1.4)
    axes.axvline(report.finish_step, color=colour, linewidth=1)
    axes.plot([report.finish_step], [report.values[report.finish_step]], "o", color=colour, markersize=5)
    axes.set_ylim(-5, 105)
    axes.set_yticks([0, 50, 100])
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=4)
    axes.tick_params(labelsize=8, colors=TEXT)
    axes.spines[["top", "right"]].set_visible(False)
