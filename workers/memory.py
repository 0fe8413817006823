"""The main memory that this process may still take, looked at before much of it is taken."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator

import psutil

from vlac_queue.errors import VlacQueueError
from vlac_queue.memory import control_groups

#: Bytes up to which nothing is looked at: most frames are small, and a look costs about 1 ms.
_SMALL = 32 << 20
#: Bytes that are left for everything else.
_SPARE = 32 << 20


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
    for group in control_groups():
        yield group.limit - group.used, f"the limit of its control group {group.path}"
