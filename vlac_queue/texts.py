"""Texts for people: what others wrote made fit for a terminal, and numbers with units."""

from __future__ import annotations

import math
from typing import Any

#: Most characters kept of a text from Redis.
MAX_TEXT = 200
#: Numbers from Redis beyond this are cut to it, as Redis' own counters are: sums and shares of them stay numbers.
MAX_NUMBER = 2**63 - 1


def clean(value: object, most: int = MAX_TEXT, keep: str = "") -> str:
    """Return a text that others chose (bytes from Redis), fit for a terminal or a page.

    Args:
        most: characters after which it is cut.
        keep: characters that stay although they are not printable, such as line ends.
    """
    text = (value.decode(errors="replace") if isinstance(value, bytes) else str(value))[:most]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else "?" for char in text)


def as_float(value: Any) -> float:
    """Return the finite number, or 0.0: a field that some other version leaves out must not hide all the rest."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return max(-float(MAX_NUMBER), min(float(MAX_NUMBER), number)) if math.isfinite(number) else 0.0


def as_int(value: Any) -> int:
    """Return the whole number, or 0; see `as_float`."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = int(as_float(value))
    return max(-MAX_NUMBER, min(MAX_NUMBER, number))


def size(count: float) -> str:
    """Return bytes for people: "512 B", "1.2 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Return seconds for people: "0.4 s", "42 s", "5 min", "3.2 h", "12 d"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} d"


def latency(seconds: float | None) -> str:
    """Return a short time for people: "-" where unknown, "0.8 ms", "45 ms", "1.23 s", "12.3 s", "4 min"."""
    if seconds is None:
        return "-"
    if seconds < 0.00995:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    return f"{seconds:.1f} s" if seconds < 99.95 else duration(seconds)


def number(value: float | None) -> str:
    """Return a rate for people: "-" where unknown, one decimal below 1,000."""
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 999.95 else f"{value:,.0f}"


def percent(part: float | None) -> str:
    """Return "87 %" for 0.87; "-" where unknown."""
    return "-" if part is None else f"{part * 100:.0f} %"


def many(count: int, noun: str) -> str:
    """Return a count with its noun: "1 job", "2,000 jobs", "3 queries"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def ordinal(number: int) -> str:
    """Return "1st", "2nd", "3rd", "11th"."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"
