"""Share what pictures need: matplotlib, where it is installed (extra `plot`), and frames made fit to be shown."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vlac_queue.frames import Frames

#: Colours: curves, "done", the end without it, what goes wrong or backwards, and text.
CURVE, DONE, UNDONE, WRONG, TEXT = "#0969da", "#1a7f37", "#9a6700", "#cf222e", "#57606a"


def figure_class() -> Any:
    """Return matplotlib's Figure.

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
    """Write a figure as PNG."""
    figure.savefig(path, dpi=dpi, facecolor="white")


def lettered(text: str) -> tuple[str, list[str]]:
    """Return the text, and fonts for it: matplotlib's own, then installed ones with the letters that it lacks.

    Letters that no font has are escaped, such as \\u6253: a box would hide them.
    """
    from matplotlib.font_manager import findfont, findSystemFonts, fontManager

    families = ["DejaVu Sans"]
    missing = set(map(ord, text)) - _letters(findfont(families[0]))
    if missing:
        # matplotlib's list is from its first start; a font may have been installed since.
        for path in set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}:
            with suppress(OSError, RuntimeError):  # damaged, or of a kind that matplotlib can't draw
                fontManager.addfont(path)
        # A font of last resort has a box for every letter.
        fonts = [font for font in fontManager.ttflist if font.style == "normal" and "Last Resort" not in font.name]
        for font in sorted(fonts, key=lambda font: (not any(name in font.name for name in _WIDE), font.name)):
            if found := missing & _letters(font.fname):
                families.append(font.name)
                missing -= found
            if not missing:
                break
    return "".join(
        char.encode("unicode_escape").decode() if ord(char) in missing else char for char in text
    ), families


#: Parts of the names of fonts that have many scripts: looked into first.
_WIDE = ("CJK", "Noto Sans", "WenQuanYi", "Droid Sans Fallback", "Arial Unicode", "Unifont")


@cache
def _letters(path: str) -> frozenset[int]:
    """Return the code points that a font has; none where it can't be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def text_width(text: str, points: float) -> float:
    """Return the inches that a line of text takes at a size of `points`."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    text, families = lettered(text)
    font = FontProperties(family=families, size=points)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def fitting(text: str, points: float, inches: float) -> dict[str, Any]:
    """Return a text on one line, cut to `inches` at a size of `points`: the arguments for `Figure.text`."""
    text, families = lettered(" ".join(text.split()))
    if text_width(text, points) > inches:
        fits = range(len(text))
        # The first length that is too much, less one.
        length = bisect_right(fits, inches, key=lambda length: text_width(text[:length] + "…", points)) - 1
        text = text[:length].rstrip() + "…"
    # A dollar sign in a task's text is no formula.
    return {"s": text, "fontfamily": families, "fontsize": points, "parse_math": False}


def evenly(count: int, most: int, also: Iterable[int] = ()) -> list[int]:
    """Return up to `most` of the places 0..count-1, ascending and evenly spread, first and last among them.

    Each of `also` stands in for the nearest of them.
    """
    chosen = {int(place) for place in np.linspace(0, count - 1, min(most, count)).round()}
    kept = {0, count - 1}
    for place in also:
        if place not in chosen and (free := chosen - kept):
            chosen.remove(min(free, key=lambda other: abs(other - place)))
            chosen.add(place)
        kept.add(place)
    return sorted(chosen)


def shrunk(frame: Frames, height: int) -> Frames:
    """Return a frame, uint8 (H,W,3), at about `height` pixels, as means over squares: uint8 (h,w,3)."""
    side = max(1, min(frame.shape[0] // height, frame.shape[1]))
    rows, columns = frame.shape[0] // side, frame.shape[1] // side
    squares = frame[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
    return squares.mean(axis=(1, 3)).astype(np.uint8)


def border(frame: Frames, colour: str, *, left: float = 0.0) -> Any:
    """Return a border just inside a frame, uint8 (H,W,3), that is shown by `imshow` from column `left` on."""
    from matplotlib.patches import Rectangle

    height, width, _ = frame.shape
    inset = 0.012 * width
    corner = (left - 0.5 + inset, inset - 0.5)
    size = (width - 2 * inset, height - 2 * inset)
    return Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=3)


def cut(text: str, length: int) -> str:
    """Return the text on one line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
