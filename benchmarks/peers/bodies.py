"""Bodies of HTTP requests: packed frames, each after its length."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from benchmarks.peers import pack
from vlac_queue.frames import Frames

_LENGTH = struct.Struct("<I")


def body_of(frames: Sequence[Frames]) -> bytes:
    """Return a body of frames."""
    packed = [pack(frame) for frame in frames]
    return b"".join(part for each in packed for part in (_LENGTH.pack(len(each)), each))


def frames_in(body: bytes) -> Iterator[memoryview]:
    """Yield the packed frames of a body."""
    view, start = memoryview(body), 0
    while start < len(view):
        (length,) = _LENGTH.unpack_from(view, start)
        start += _LENGTH.size
        yield view[start : start + length]
        start += length
