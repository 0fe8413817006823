"""What a check of the installation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "broken", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    state: State  # "broken" does not work, "warning" works and may not be meant, "skipped" could not be looked at
    found: str  # what there is, or for "skipped" why nothing could be found out; never with a password
    remedy: str = ""  # what to do; a command stands on a line of its own, whole
    check: str = ""  # the check's name


def release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "3.12.6.dev0" is (3, 12, 6)."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
