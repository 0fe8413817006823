"""What a check found, and how it is put into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

#: What a check comes to; see `Finding`.
State = Literal["ok", "warning", "broken", "skipped"]
#: Most characters of a text from Redis or another program.
_MAX_TEXT = 200


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        state: "broken" does not work, "warning" works and may not be meant, "skipped" could not be looked at.
        found: what there is, or for "skipped" why nothing could be found out; never with a password.
        remedy: what to do, or "".
        check: the check's name.
    """

    state: State
    found: str
    remedy: str = ""
    check: str = ""


def clean(text: object) -> str:
    """Fit for a terminal: others chose this text, escape sequences among it."""
    return "".join(char if char.isprintable() else " " for char in str(text)[:_MAX_TEXT])


def as_size(count: float) -> str:
    """Bytes for people: "512 B", "1.2 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def as_count(count: int, noun: str) -> str:
    """ "1 job", "2 jobs"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def as_int(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "3.12.6.dev0" is (3, 12, 6)."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
