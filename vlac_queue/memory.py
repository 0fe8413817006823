"""How much main memory this process may have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def allowed_bytes(root: Path = Path("/")) -> int:
    """Return the machine's main memory, or what the process's control groups allow where that is less.

    Docker, systemd and Slurm set such limits.

    Args:
        root: holds `proc` and `sys`.
    """
    allowed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in _limits(root):
        try:
            text = file.read_text().strip()
        except OSError:
            continue  # a group of another version, or one that this process can't see
        if text.isdigit():  # "max": none
            allowed = min(allowed, int(text))
    return allowed


def _limits(root: Path) -> Iterator[Path]:
    """The files that may hold a limit: a group is bound by those around it too."""
    groups = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2
            folder, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for around in (group, *group.parents):
            yield folder / around / name
