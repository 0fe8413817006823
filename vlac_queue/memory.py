"""How much main memory this process may have; Docker, systemd and Slurm limit it by control groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: What the kernel calls a group's limit, what is used of it, and what of that it can take back (versions 2 and 1).
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


@dataclass(frozen=True)
class ControlGroup:
    """A control group that limits memory.

    Attributes:
        path: such as "/system.slice/job".
        limit: bytes that its processes may have together.
        used: bytes that they have and can't be taken back; 0 where that is not told.
    """

    path: str
    limit: int
    used: int


def allowed_bytes(root: Path = Path("/")) -> int:
    """Return the machine's main memory, or what the process's control groups allow where that is less.

    Args:
        root: holds `proc` and `sys`.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(group.limit for group in control_groups(root))])


def control_groups(root: Path = Path("/")) -> Iterator[ControlGroup]:
    """Yield the groups that limit this process: its own, and those around it."""
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # a system without them
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folder, names = top, _V2
        elif "memory" in controllers.split(","):
            folder, names = top / "memory", _V1
        else:
            continue
        # In a container the path may be the host's, and what is mounted its own group: then that one counts.
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            name = "/".join(parts[:depth])
            if (group := _read(folder / name, f"/{name}", *names)) is not None:
                yield group


def _read(folder: Path, path: str, limit: str, usage: str, reclaimable: tuple[str, str]) -> ControlGroup | None:
    """A group; None where it is not there or has no limit."""
    try:
        most = (folder / limit).read_text().strip()
    except OSError:
        return None
    if not most.isdigit():  # "max"; version 1 writes a number near 2**63, and the machine's own memory is less
        return None
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used = int((folder / usage).read_text()) - sum(int(stat.get(name, 0)) for name in reclaimable)
    except (OSError, ValueError):
        used = 0
    return ControlGroup(path, int(most), max(0, used))
