"""Charts out of block characters: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Nine characters from empty to full.
BLOCKS, ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


def bins(points: Sequence[tuple[float, float]], count: int, bin_s: float) -> list[float | None]:
    """Means of `points` (seconds, value) in `count` spans of `bin_s` seconds, newest last; None where empty."""
    if not points:
        return [None] * count
    # Spans begin at multiples of bin_s, so that bars move on and never change.
    last = math.floor(points[-1][0] / bin_s)
    spans: list[list[float]] = [[] for _ in range(count)]
    for when, value in reversed(points):
        index = count - 1 - (last - math.floor(when / bin_s))
        if index < 0:
            break
        if index < count:
            spans[index].append(value)
    return [sum(span) / len(span) if span else None for span in spans]


def bars(values: Sequence[float | None], rows: int, blocks: str = BLOCKS) -> list[str]:
    """A bar chart of `rows` lines, one column a value; the largest fills it, and any above 0 can be seen."""
    levels = len(blocks) - 1
    most = max((value for value in values if value is not None), default=0.0)
    heights = [
        max(1, round(value / most * rows * levels)) if value is not None and value > 0 else 0 for value in values
    ]
    return [
        "".join(blocks[min(levels, max(0, height - row * levels))] for height in heights)
        for row in reversed(range(rows))
    ]


def gauge(part: float, width: int, blocks: str = BLOCKS) -> str:
    """A part, 0..1, as a bar of `width` characters, the empty ones dots."""
    full = min(width, max(0, round(part * width)))
    return (
        blocks[-1] * full + "·" * (width - full) if blocks is BLOCKS else blocks[-1] * full + "." * (width - full)
    )
