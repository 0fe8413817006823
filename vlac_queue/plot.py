"""What the pictures share: matplotlib, where it is installed (extra `plot`), and frames made fit to be shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vlac_queue.frames import Frames

#: Colours: curves, "done", the end without it, what goes wrong or backwards, and text.
CURVE, DONE, UNDONE, WRONG, TEXT = "#0969da", "#1a7f37", "#9a6700", "#cf222e", "#57606a"


def figure_class() -> Any:
    """matplotlib's Figure.

    Raises:
        ImportError: matplotlib is missing; the message says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the picture needs matplotlib: pip install 'vlac-queue[plot]' (demo and score also go without it: "
            "--no-png)"
        ) from error
    return Figure


def save(figure: Any, path: Path, dpi: int) -> None:
    """Writes a figure as PNG."""
    with warnings.catch_warnings():
        # A task's text in a script that the font lacks shows as boxes; a warning for each letter is no help.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=dpi, facecolor="white")


def evenly(count: int, most: int, also: Iterable[int] = ()) -> list[int]:
    """Up to `most` of the places 0..count-1, ascending and evenly spread, the first and the last among them.

    Each of `also` stands in for the nearest of them.
    """
    chosen = {int(place) for place in np.linspace(0, count - 1, min(most, count)).round()}
    kept = {0, count - 1}
    for place in also:
        if place not in chosen and (free := chosen - kept):
            chosen.remove(min(free, key=lambda each: abs(each - place)))
            chosen.add(place)
        kept.add(place)
    return sorted(chosen)


def shrunk(frame: Frames, height: int) -> Frames:
    """A frame, uint8 (H,W,3), at about `height` pixels as means over squares: uint8 (h,w,3); never enlarged."""
    side = max(1, min(frame.shape[0] // height, frame.shape[1]))
    rows, columns = frame.shape[0] // side, frame.shape[1] // side
    squares = frame[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    return squares.mean(axis=(1, 3)).astype(np.uint8)


def border(frame: Frames, colour: str, *, left: float = 0.0) -> Any:
    """A border just inside a frame, uint8 (H,W,3), that is shown by `imshow` from column `left` on."""
    from matplotlib.patches import Rectangle

    height, width, _ = frame.shape
    inset = 0.012 * width
    corner = (left - 0.5 + inset, inset - 0.5)
    size = (width - 2 * inset, height - 2 * inset)
    return Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=3)


def cut(text: str, length: int) -> str:
    """The text on one line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
