"""What the demo shows: a table, a JSON file and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vlac_queue.demo.play import Report
from vlac_queue.frames import Frames

#: Frames of an episode in the picture, and their side in pixels.
_THUMBNAILS, _SIDE = 8, 96


def table(reports: Sequence[Report]) -> Table:
    """One row for each episode."""
    made = Table(title="Episodes", header_style="bold", pad_edge=False)
    made.add_column("episode", no_wrap=True)
    made.add_column("task")
    for column in ("ended at", "ended by", "reward", "env. done", "queries", "sent / raw", "latency"):
        made.add_column(column, justify="right", no_wrap=True)
    mode = ""
    for report in reports:
        if report.mode != mode:
            mode = report.mode
            title = {"train": "training: the critic decides", "eval": "evaluation: the environment decides"}[mode]
            made.add_section()
            made.add_row(f"[bold]{title}")
        colour = {"critic": "green", "environment": "cyan", "max_step": "yellow"}[report.ended_by]
        wire = f"{_size(report.sent_bytes)} / {_size(report.raw_bytes)}" if report.raw_bytes else "-"
        made.add_row(
            report.name,
            report.task,
            str(report.finish_step),
            f"[{colour}]{report.ended_by}",
            f"{report.reward:.2f}",
            "never" if report.environment_done is None else str(report.environment_done),
            str(report.queries),
            wire,
            "-" if report.latency_ms is None else f"{report.latency_ms:.0f} ms",
        )
    return made


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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the picture needs matplotlib: pip install 'vlac-queue[plot]', or pass --no-png"
        ) from error
    rows = (len(reports) + 1) // 2
    figure = Figure(figsize=(20, 1.75 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False, width_ratios=[3.6, 1, 3.6, 1])
    for axes in grid.flat:
        axes.set_axis_off()
    colours = {"critic": "#1a7f37", "environment": "#0969da", "max_step": "#9a6700"}
    for number, report in enumerate(reports):
        strip, curve = grid[number // 2, 2 * (number % 2) :][:2]
        picture, shown = _strip(report.frames)
        strip.imshow(picture)
        colour = colours[report.ended_by]
        nearest = int(np.argmin(np.abs(shown - report.finish_step)))
        strip.add_patch(_frame(nearest, colour))
        done = "never" if report.environment_done is None else f"at {report.environment_done}"
        strip.set_title(
            f"{report.mode}  {report.name}   ended at {report.finish_step} by {report.ended_by}, "
            f"reward {report.reward:.2f}   (environment done: {done})",
            fontsize=9,
            loc="left",
            color=colour,
        )
        if not report.values:
            continue
        curve.set_axis_on()
        curve.plot(range(len(report.values)), report.values, color="#57606a", linewidth=1.2)
        end = min(report.finish_step, len(report.values) - 1)
        curve.axvline(end, color=colour, linewidth=1)
        curve.plot([end], [report.values[end]], "o", color=colour, markersize=5)
        curve.set_ylim(-5, 105)
        curve.tick_params(labelsize=7)
        curve.set_title("value (0..100) by step", fontsize=7, color="#57606a")
        curve.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Episodes through the queue: frames, the critic's values, and where each episode ended", fontsize=12
    )
    figure.savefig(path, dpi=80)


def _strip(frames: Frames) -> tuple[Frames, np.ndarray]:
    """Evenly spread frames side by side, uint8 (_SIDE, n * _SIDE, 3), and their indices."""
    shown = np.unique(np.linspace(0, len(frames) - 1, _THUMBNAILS).round().astype(int))
    rows = np.linspace(0, frames.shape[1] - 1, _SIDE).round().astype(int)
    columns = np.linspace(0, frames.shape[2] - 1, _SIDE).round().astype(int)
    return np.concatenate([frames[index][rows][:, columns] for index in shown], axis=1), shown


def _frame(place: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((place * _SIDE + 1, 1), _SIDE - 3, _SIDE - 3, fill=False, edgecolor=colour, linewidth=3)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
