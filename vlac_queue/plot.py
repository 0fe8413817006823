"""matplotlib, where it is installed (extra `plot`)."""

from __future__ import annotations

from typing import Any


def figure_class() -> Any:
    """matplotlib's Figure.

    Raises:
        ImportError: matplotlib is missing; the message says how to get it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the picture needs matplotlib: pip install 'vlac-queue[plot]', or pass --no-png"
        ) from error
    return Figure
