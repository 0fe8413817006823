"""Draw a score: a few frames, the value curve and the done curve."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlac_queue.commands.score.figures import Score
from vlac_queue.frames import Frames
from vlac_queue.plot import (
    CURVE,
    DONE,
    TEXT,
    UNDONE,
    WRONG,
    border,
    cut,
    figure_class,
    fitting,
    save,
    shrunk,
    text_width,
)

#: Frames in a row of the picture, and about their height in pixels.
COLUMNS, THUMBNAIL_HEIGHT = 8, 160
#: Inches: the picture's width, the most that a frame is high, a frame's caption, and the two curves.
_WIDTH, _MAX_CELL, _CAPTION, _VALUES, _DONES = 9.0, 2.0, 0.24, 2.6, 1.9
#: Inches: the lines at the top, and what they leave free at the left and at the right.
_HEAD, _MARGIN = 0.58, 0.06
#: Pixels an inch: a page shows the picture at some 800 pixels, where its smallest letters are 10 high.
_DPI = 150
#: A curve of up to this many points shows them.
_MARKED_POINTS = 80


class Thumbnails:
    """Small copies of a few frames, spread evenly over a run whose length is not known beforehand."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Frames]] = []
        self._step = 1
        self._count = 0
        self._last: tuple[int, Frames] | None = None

    def add(self, number: int, frame: Frames) -> Frames:
        """Take the next frame in, uint8 (H,W,3), which has this number in the run, and return it."""
        if self._count % self._step == 0:
            self._kept.append((number, shrunk(frame, THUMBNAIL_HEIGHT)))
            if len(self._kept) >= 8 * COLUMNS:
                del self._kept[1::2]
                self._step *= 2
        self._count += 1
        self._last = number, frame
        return frame

    def chosen(self) -> list[tuple[int, Frames]]:
        """Return up to 8 of the frames with their numbers, the first and the last among them."""
        if self._last is None:
            return []
        number, last = self._last
        kept = dict(self._kept) | {number: shrunk(last, THUMBNAIL_HEIGHT)}
        places = np.array(list(kept))
        wanted = np.linspace(0, places[-1], min(COLUMNS, len(kept)))
        nearest = {int(places[abs(places - want).argmin()]) for want in wanted}
        return [(place, kept[place]) for place in sorted(nearest)]


def write_sheet(
    score: Score,
    shown: Sequence[tuple[int, Frames]],
    path: Path,
    *,
    name: str,
    note: str,
    ended: int | None = None,
    truth: int | None = None,
    failed: Collection[int] = (),
) -> None:
    """Draw frames with their done scores, the value curve and the done curve, as PNG.

    Args:
        score: the curves; either may be empty, and there is no panel for values then.
        shown: numbers of frames and small copies of them, uint8 (h,w,3), ascending, one or more.
        name: the episode's id or the recording's name; stands at the right of the second line.
        note: the rest of the second line; the first is the task.
        ended: number of the frame whose value is the reward, where none is done; it gets a border as the first
            done one does.
        truth: number of the first frame that the simulator calls done, where that is known.
        failed: numbers of frames about which the critic failed.

    Raises:
        ImportError: matplotlib is missing.
    """
    rows = -(-len(shown) // COLUMNS)
    height, width, _ = shown[0][1].shape
    strip = rows * (min(_WIDTH / COLUMNS * height / width, _MAX_CELL) + _CAPTION)
    curves = _VALUES + _DONES if score.values else _DONES
    figure = figure_class()(figsize=(_WIDTH, _HEAD + strip + curves), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.03, hspace=0.0)
    above, top, bottom = figure.subfigures(3, 1, height_ratios=[_HEAD, strip, curves])
    _draw_head(above, score.task, name, note)
    _draw_frames(top, shown, score, rows, ended, failed)
    _draw_curves(bottom, score, max(shown[-1][0], *score.frames, *score.value_frames, 1), ended, truth)
    save(figure, path, dpi=_DPI)


def _draw_head(figure: Any, task: str, name: str, note: str) -> None:
    room = _WIDTH - 2 * _MARGIN
    left, right = _MARGIN / _WIDTH, 1 - _MARGIN / _WIDTH
    figure.text(left, 1 - 0.08 / _HEAD, **fitting(task, 12, room), va="top")
    # The name is needed whole, to look the episode up; the note gives way.
    named = fitting(cut(name, 40), 8.5, room / 2)
    figure.text(right, 1 - 0.35 / _HEAD, **named, color=TEXT, va="top", ha="right")
    noted = fitting(note, 8.5, room - 0.2 - text_width(named["s"], 8.5))
    figure.text(left, 1 - 0.35 / _HEAD, **noted, color=TEXT, va="top")


def _draw_frames(
    figure: Any,
    shown: Sequence[tuple[int, Frames]],
    score: Score,
    rows: int,
    ended: int | None,
    failed: Collection[int],
) -> None:
    places = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    scores = dict(zip(score.frames, score.done_scores, strict=True))
    for axes in places:
        axes.set_axis_off()
    for axes, (number, frame) in zip(places, shown, strict=False):
        axes.imshow(frame)
        reached = score.first_done is not None and number >= score.first_done
        axes.set_title(f"frame {number}", fontsize=8, color=DONE if reached else TEXT, pad=3, loc="left")
        if number in failed and number not in scores:
            axes.set_title("failed", fontsize=8, color=WRONG, pad=3, loc="right")
        elif number in scores:
            done = scores[number] > score.done_threshold
            axes.set_title(f"{scores[number]:.2f}", fontsize=8, color=DONE if done else TEXT, pad=3, loc="right")
        if number == score.first_done:
            axes.add_patch(border(frame, DONE))
        elif number == ended:
            axes.add_patch(border(frame, UNDONE))


def _draw_curves(figure: Any, score: Score, last: int, ended: int | None, truth: int | None) -> None:
    ratios = [_VALUES, _DONES] if score.values else [_DONES]
    panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios, squeeze=False).ravel()
    figure.align_ylabels()
    for axes in panels:
        if truth is not None:
            axes.axvline(truth, color=UNDONE, linewidth=2, linestyle=":", label="simulator: done", zorder=3)
    if score.values:
        _draw_values(panels[0], score, ended)
    _draw_done(panels[-1], score)
    panels[-1].set_xlim(_limits(0, last, 0.015))


def _draw_values(axes: Any, score: Score, ended: int | None) -> None:
    frames, values = score.value_frames, score.values
    marker = "o" if len(values) <= _MARKED_POINTS else ""
    axes.plot(frames, values, color=CURVE, linewidth=1.6, marker=marker, markersize=3.5)
    label: str | None = "pair-wise score below 0"
    for place, critic in enumerate(score.critics):
        if critic < 0:
            pair = slice(place, place + 2)
            axes.plot(frames[pair], values[pair], color=WRONG, linewidth=2.2, label=label)
            label = None  # once in the legend
    axes.set_ylim(_limits(min((0.0, *values)), max((100.0, *values)), 0.05))
    if score.first_done is not None:
        axes.axvline(score.first_done, color=DONE, linewidth=1.2)
    if ended is not None:
        axes.plot(frames[-1:], values[-1:], "o", color=UNDONE, markersize=6, label=f"at the end: {values[-1]:.1f}")
    voc, rate = ("undefined" if number is None else f"{number:.3f}" for number in (score.voc, score.negative_rate))
    _finish(axes, "value, 0..100", f"VOC {voc}, negative rate {rate}")


def _draw_done(axes: Any, score: Score) -> None:
    marker = "o" if len(score.frames) <= _MARKED_POINTS else ""
    axes.plot(score.frames, score.done_scores, color=CURVE, linewidth=1.6, marker=marker, markersize=3.5)
    threshold = score.done_threshold
    axes.axhline(threshold, color=TEXT, linewidth=1, linestyle="--", label=f"done above {threshold:g}")
    axes.set_ylim(_limits(min((0.0, *score.done_scores)), max((1.0, *score.done_scores)), 0.07))
    axes.set_xlabel("frame", fontsize=9, color=TEXT)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if score.first_done is None:
        _finish(axes, "done, 0..1", "never done" if score.frames else "no done verdict")
    else:
        axes.axvline(score.first_done, color=DONE, linewidth=1.2, label="first done")
        _finish(axes, "done, 0..1", f"first done at frame {score.first_done}")


def _finish(axes: Any, name: str, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(name, fontsize=9, color=TEXT)
    axes.tick_params(labelsize=8, colors=TEXT)
    axes.grid(color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        # Beside the curves, which may run anywhere.
        axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3, borderpad=0)


def _limits(low: float, high: float, margin: float) -> tuple[float, float]:
    """Return the range with a margin, given as part of it, on both sides."""
    return low - margin * (high - low), high + margin * (high - low)
