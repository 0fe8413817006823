"""Draw the best and the worst episodes of a dataset: a few frames of each, its values and its done scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlac_queue.commands.label.summary import Ranked
from vlac_queue.commands.score.figures import Score
from vlac_queue.frames import Frames
from vlac_queue.plot import CURVE, DONE, TEXT, UNDONE, WRONG, border, figure_class, fitting, save

#: Frames of an episode, and about their height in pixels.
COLUMNS, HEIGHT = 8, 128
#: Inches: the picture's width, the part of it that is frames, the most that a frame is high, and the texts above.
_WIDTH, _STRIP, _MAX_CELL, _TITLE = 10.0, 7.9, 1.4, 0.3
_DPI = 150


def write_sheet(shown: Sequence[tuple[Ranked, Sequence[tuple[int, Frames]]]], path: Path, title: str) -> None:
    """Draw episodes as PNG, a row each.

    Args:
        shown: the episodes, each with numbers of frames and small copies of them, uint8 (h,w,3), ascending.

    Raises:
        ImportError: matplotlib is missing.
    """
    heights = [_height(frames) for _, frames in shown]
    figure = figure_class()(figsize=(_WIDTH, 0.4 + sum(heights)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.03, hspace=0.0)
    figure.suptitle(title, fontsize=11, x=0.006, ha="left")
    ratios = [_STRIP, _WIDTH - _STRIP]
    grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=ratios, height_ratios=heights)
    for (strip, curves), (ranked, frames) in zip(grid, shown, strict=True):
        _draw_strip(strip, ranked, frames)
        _draw_curves(curves, ranked.score)
    save(figure, path, dpi=_DPI)


def _height(frames: Sequence[tuple[int, Frames]]) -> float:
    height, width, _ = frames[0][1].shape
    return min(_STRIP / COLUMNS * height / width, _MAX_CELL) + 2 * _TITLE


def _draw_strip(axes: Any, ranked: Ranked, frames: Sequence[tuple[int, Frames]]) -> None:
    score = ranked.score
    height, width, _ = frames[0][1].shape
    blank = np.full((height, width * (COLUMNS - len(frames)), 3), 255, np.uint8)
    axes.imshow(np.concatenate([*(frame for _, frame in frames), blank], axis=1))
    scores = dict(zip(score.frames, score.done_scores, strict=True))
    for place, (number, frame) in enumerate(frames):
        if scores.get(number, 0.0) > score.done_threshold:
            axes.add_patch(border(frame, DONE, left=place * width))
    axes.set_xticks([width * (place + 0.5) for place in range(len(frames))], [number for number, _ in frames])
    axes.tick_params(labelsize=8, length=0, pad=2, labelcolor=TEXT)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    voc, rate = ("undefined" if number is None else f"{number:.2f}" for number in (score.voc, score.negative_rate))
    done = "never done" if score.first_done is None else f"done at {score.first_done}"
    axes.set_title(f"VOC {voc}, negative rate {rate}, {done}", fontsize=9, loc="right", pad=3, color=TEXT)
    text = fitting(f"{ranked.name}: {score.task}", 9, _STRIP - 3.6)
    axes.set_title(text["s"], fontsize=9, loc="left", pad=3, fontfamily=text["fontfamily"], parse_math=False)


def _draw_curves(axes: Any, score: Score) -> None:
    axes.plot(score.frames, 100 * np.array(score.done_scores), color=DONE, linewidth=0.9, linestyle=":")
    axes.plot(score.value_frames, score.values, color=CURVE, linewidth=1.4)
    axes.plot(score.value_frames[-1:], score.values[-1:], "o", color=_colour(score), markersize=4)
    if score.first_done is not None:
        axes.axvline(score.first_done, color=DONE, linewidth=1)
    axes.set_ylim(min(-5, *score.values), max(105, *score.values))
    axes.set_yticks([0, 50, 100])
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=4)
    axes.tick_params(labelsize=8, colors=TEXT)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(score: Score) -> str:
    if score.voc is not None and score.voc < 0:
        return WRONG
    return DONE if score.first_done is not None else UNDONE
