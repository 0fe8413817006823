"""What the demo shows: two tables, a JSON file and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from vlac_queue.demo.play import Report
from vlac_queue.plot import CURVE, DONE, TEXT, UNDONE, border, evenly, figure_class, save, shrunk

_HEADER = ["task", "episode", "ended", "by", "reward", "env.", "asked", "MB sent/raw", "ms"]
_TITLES = {"train": "Training: the critic decides", "eval": "Evaluation: the environment decides"}
#: What ended an episode: its colour in the terminal and in the picture.
_COLOURS = {"critic": ("green", DONE), "environment": ("cyan", CURVE), "max_step": ("yellow", UNDONE)}
#: Frames of an episode in the picture, and about their height in pixels.
_THUMBNAILS, _HEIGHT = 8, 96


def tables(reports: Sequence[Report], width: int) -> list[Table]:
    """Training and evaluation, one row for each episode, for a terminal of `width` columns, 80 or more."""
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
                task = row[0] if len(row[0]) <= room else row[0][: room - 1] + "…"
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


def write_json(reports: Sequence[Report], path: Path, summary: dict[str, Any]) -> None:
    """The table's figures, and `summary`, as JSON."""
    rows = []
    for report in reports:
        row = asdict(report)
        del row["frames"]
        rows.append(row)
    path.write_text(json.dumps({**summary, "episodes": rows}, indent=2) + "\n")


def write_picture(reports: Sequence[Report], path: Path) -> None:
    """Each episode's frames and its value curve, its end marked, as PNG.

    Raises:
        ImportError: matplotlib is missing; the message says how to get it.
    """
    figure_type = figure_class()
    from matplotlib.ticker import MaxNLocator

    rows = (len(reports) + 1) // 2
    figure = figure_type(figsize=(20, 1.75 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False, width_ratios=[3.6, 1, 3.6, 1])
    for axes in grid.flat:
        axes.set_axis_off()
    for number, report in enumerate(reports):
        strip, curve = grid[number // 2, 2 * (number % 2) :][:2]
        colour = _COLOURS[report.ended_by][1]
        places = evenly(len(report.frames), _THUMBNAILS)
        shown = [shrunk(report.frames[place], _HEIGHT) for place in places]
        strip.imshow(np.concatenate(shown, axis=1))
        nearest = int(np.argmin(np.abs(np.array(places) - report.finish_step)))
        strip.add_patch(border(shown[nearest], colour, left=nearest * shown[nearest].shape[1]))
        done = "never" if report.environment_done is None else f"at {report.environment_done}"
        strip.set_title(
            f"{report.mode}  {report.task}, {report.name}   ended at {report.finish_step} by {report.ended_by}, "
            f"reward {report.reward:.2f}   (environment done: {done})",
            fontsize=9,
            loc="left",
            color=colour,
        )
        if not report.values:
            continue
        curve.set_axis_on()
        curve.plot(range(len(report.values)), report.values, color=TEXT, linewidth=1.2)
        end = min(report.finish_step, len(report.values) - 1)
        curve.axvline(end, color=colour, linewidth=1)
        curve.plot([end], [report.values[end]], "o", color=colour, markersize=5)
        curve.set_ylim(-5, 105)
        curve.xaxis.set_major_locator(MaxNLocator(integer=True))
        curve.tick_params(labelsize=7)
        curve.set_title("value (0..100) by step", fontsize=7, color=TEXT)
        curve.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Episodes through the queue: frames, the critic's values, and where each episode ended", fontsize=12
    )
    save(figure, path, dpi=80)
