"""A score as a picture: a few frames, the value curve and the done curve."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlac_queue.frames import Frames
from vlac_queue.plot import figure_class
from vlac_queue.score.figures import Score

#: Frames at the top of the picture, and about their height in pixels.
_THUMBNAILS, _THUMBNAIL_HEIGHT = 8, 160
#: Colours of the picture: curves, "done", what goes backwards, and text.
_CURVE, _DONE, _BACKWARDS, _TEXT = "#0969da", "#1a7f37", "#cf222e", "#57606a"
#: A curve of up to this many points shows them.
_MARKED_POINTS = 80


class Thumbnails:
    """Small copies of a few frames, spread evenly over a run whose length is not known beforehand."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Frames]] = []
        self._step = 1
        self._count = 0
        self._last: Frames | None = None

    def add(self, frame: Frames) -> None:
        """Takes the next frame in, uint8 (H,W,3)."""
        if self._count % self._step == 0:
            self._kept.append((self._count, _shrunk(frame)))
            if len(self._kept) >= 8 * _THUMBNAILS:
                del self._kept[1::2]
                self._step *= 2
        self._count += 1
        self._last = frame

    def chosen(self) -> list[tuple[int, Frames]]:
        """Up to 8 of the frames with their places, the first and the last among them."""
        if self._last is None:
            return []
        kept = [each for each in self._kept if each[0] != self._count - 1]
        kept.append((self._count - 1, _shrunk(self._last)))
        places = [place for place, _ in kept]
        wanted = np.linspace(0, places[-1], min(_THUMBNAILS, len(kept)))
        nearest = {int(np.argmin([abs(place - want) for place in places])) for want in wanted}
        return [kept[index] for index in sorted(nearest)]


def _shrunk(frame: Frames) -> Frames:
    """The frame at about _THUMBNAIL_HEIGHT, as means over squares; uint8 (h,w,3)."""
    side = max(1, min(frame.shape[0] // _THUMBNAIL_HEIGHT, frame.shape[1]))
    height, width = frame.shape[0] // side, frame.shape[1] // side
    squares = frame[: height * side, : width * side].reshape(height, side, width, side, 3)
    return squares.mean(axis=(1, 3)).astype(np.uint8)


def write_picture(score: Score, thumbnails: Thumbnails, path: Path) -> None:
    """Frames, value curve and done curve over the recording's frame numbers, as PNG.

    Raises:
        ImportError: matplotlib is missing.
    """
    shown = thumbnails.chosen()
    height, width, _ = shown[0][1].shape
    strip = min(11 / _THUMBNAILS * height / width, 3.0)
    figure = figure_class()(figsize=(11, strip + 5.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[strip + 0.6, 4.8])
    _draw_frames(top, shown, score)
    value, done = bottom.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    bottom.align_ylabels()
    _draw_values(value, score)
    _draw_done(done, score)
    done.set_xlim(_limits(0, max(score.frames[-1], 1), 0.015))
    with warnings.catch_warnings():
        # A task's text in a script that the font lacks shows as boxes; a warning for each letter is no help.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=100, facecolor="white")


def _draw_frames(figure: Any, shown: Sequence[tuple[int, Frames]], score: Score) -> None:
    places = figure.subplots(1, _THUMBNAILS, squeeze=False)[0]
    for axes in places:
        axes.set_axis_off()
    for axes, (place, frame) in zip(places, shown, strict=False):
        number = place * score.stride
        axes.imshow(frame)
        reached = score.first_done is not None and number >= score.first_done
        axes.set_title(f"frame {number}", fontsize=8, color=_DONE if reached else _TEXT, pad=3)
    # A dollar sign in a task's text is no formula.
    title = f"{_cut(score.task, 90)}   ({_cut(Path(score.source).name, 40)})"
    figure.suptitle(title, fontsize=12, x=0.006, ha="left", parse_math=False)


def _draw_values(axes: Any, score: Score) -> None:
    frames, values = score.value_frames, score.values
    marker = "o" if len(values) <= _MARKED_POINTS else ""
    axes.plot(frames, values, color=_CURVE, linewidth=1.6, marker=marker, markersize=3.5)
    backwards = [place for place, critic in enumerate(score.critics) if critic < 0]
    for place in backwards:
        label = "pair-wise score below 0" if place == backwards[0] else None
        pair = slice(place, place + 2)
        axes.plot(frames[pair], values[pair], color=_BACKWARDS, linewidth=2.2, label=label)
    axes.set_ylim(_limits(min((0.0, *values)), max((100.0, *values)), 0.05))
    if score.first_done is not None:
        axes.axvline(score.first_done, color=_DONE, linewidth=1.2)
    voc, rate = ("undefined" if number is None else f"{number:.3f}" for number in (score.voc, score.negative_rate))
    _finish(axes, "value, 0..100", f"VOC {voc}, negative rate {rate}")


def _draw_done(axes: Any, score: Score) -> None:
    marker = "o" if len(score.frames) <= _MARKED_POINTS else ""
    axes.plot(score.frames, score.done_scores, color=_CURVE, linewidth=1.6, marker=marker, markersize=3.5)
    axes.axhline(
        score.done_threshold,
        color=_TEXT,
        linewidth=1,
        linestyle="--",
        label=f"done above {score.done_threshold:g}",
    )
    axes.set_ylim(_limits(min((0.0, *score.done_scores)), max((1.0, *score.done_scores)), 0.07))
    axes.set_xlabel("frame", fontsize=9, color=_TEXT)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if score.first_done is None:
        _finish(axes, "done, 0..1", "never done")
    else:
        axes.axvline(score.first_done, color=_DONE, linewidth=1.2, label="first done")
        _finish(axes, "done, 0..1", f"first done at frame {score.first_done}")


def _finish(axes: Any, name: str, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(name, fontsize=9, color=_TEXT)
    axes.tick_params(labelsize=8, colors=_TEXT)
    axes.grid(color="#eaeef2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        # Beside the curves, which may run anywhere.
        axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3, borderpad=0)


def _limits(low: float, high: float, margin: float) -> tuple[float, float]:
    """The range with a margin, given as part of it, on both sides."""
    return low - margin * (high - low), high + margin * (high - low)


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
