"""The main memory that this process may still take, looked at before much of it is taken."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

from vlac_queue.errors import VlacQueueError

#: Bytes up to which nothing is looked at: most frames are small, and a look costs about 1 ms.
_SMALL = 32 << 20
#: Bytes that are left for everything else.
_SPARE = 32 << 20
#: Where the kernel shows control groups, and what it calls their figures (cgroup v2, v1).
_CGROUPS = Path("/sys/fs/cgroup")
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


class OutOfMemory(VlacQueueError, MemoryError):
    """There is less main memory than a query needs; raised before any is taken.

    Attributes:
        missing: how many bytes less.
    """

    def __init__(self, message: str, missing: int) -> None:
        super().__init__(message)
        self.missing = missing


def fits(nbytes: int) -> bool:
    """Return whether `nbytes` more bytes may be taken."""
    return nbytes <= _SMALL or nbytes + _SPARE <= min(_left())[0]


def require(nbytes: int, what: str) -> None:
    """Return if `nbytes` more bytes may be taken.

    Args:
        nbytes: how many.
        what: what would take them, for the message.

    Raises:
        OutOfMemory: the machine, a control group or a limit of the process leaves less.
    """
    if fits(nbytes):
        return
    left, where = min(_left())
    left -= _SPARE
    raise OutOfMemory(
        f"{what} would take {nbytes / 2**20:,.0f} MiB of the worker's main memory, and {where} leaves "
        f"{max(0, left) / 2**20:,.0f} MiB; push fewer or smaller frames (frame_stride), or give the "
        "worker more memory.",
        missing=nbytes - left,
    )


def give_back() -> None:
    """Give freed memory back to the system; glibc keeps what is freed between pieces that are in use."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _left() -> Iterator[tuple[int, str]]:
    """Bytes that may still be taken, and of what, for each limit."""
    yield psutil.virtual_memory().available, "the machine"
    taken = psutil.Process().memory_info()
    for limit, name, used in (
        (resource.RLIMIT_AS, "RLIMIT_AS", taken.vms),
        (resource.RLIMIT_DATA, "RLIMIT_DATA", getattr(taken, "data", 0)),
    ):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            yield most - used, f"the limit {name} of its process"
    yield from _left_of_cgroups(_CGROUPS, Path("/proc/self/cgroup"))


def _left_of_cgroups(root: Path, membership: Path) -> Iterator[tuple[int, str]]:
    """The same for the control groups that this process is in; `membership` says which, as /proc/PID/cgroup."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # a system without them
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = root, _V2
        elif "memory" in controllers.split(","):
            top, names = root / "memory", _V1
        else:
            continue
        # In a container the path may be the host's, and what is mounted its own group: then that one counts.
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            if (left := _left_of(top.joinpath(*parts[:depth]), *names)) is not None:
                yield left, f"the limit of its control group /{'/'.join(parts[:depth])}"


def _left_of(folder: Path, limit: str, usage: str, reclaimable: tuple[str, str]) -> int | None:
    """What one control group leaves; None where it has no limit."""
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or the top of version 2, which has no figures
        return None
    # Version 1 writes a number near 2**63 for no limit: the machine's own memory is less.
    return None if most == "max" else int(most) - used + sum(int(stat.get(name, 0)) for name in reclaimable)
