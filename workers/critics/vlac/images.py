"""The images of rows: each frame is made ready once, however many rows show it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np

from vlac_queue.frames import Frames
from workers.critics.vlac.rows import Row

#: Threads that make images ready; a call has up to max_images of them, at some milliseconds each.
_THREADS = 4

Made = TypeVar("Made")


class Images(Protocol):
    """Makes the images that GAC_model's get_infer_requests takes."""

    def of(self, rows: Sequence[Row]) -> list[list[Any]]:
        """Return each row's images, for the next call."""

    def clear(self) -> None:
        """Free the memory of what is kept for later calls."""

    def close(self) -> None:
        """Free everything."""


class PreparedImages:
    """Makes PIL images ready by VLAC's own function, several at a time.

    Args:
        prepare: GAC_model's; takes and returns a PIL image.
    """

    def __init__(self, prepare: Callable[[Any], Any]) -> None:
        self._prepare = prepare
        # Pillow lets go of the interpreter's lock while it resizes.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="vlac-images")

    def of(self, rows: Sequence[Row]) -> list[list[Any]]:
        """Return each row's images. get_infer_requests makes them ready again, which then only copies."""
        return made_once(rows, self.prepared)

    def prepared(self, frames: Sequence[Frames], then: Callable[[Any], Made] = lambda image: image) -> list[Made]:
        """Return what `then` makes of each frame's image."""
        from PIL import Image

        return list(self._threads.map(lambda frame: then(self._prepare(Image.fromarray(frame))), frames))

    def clear(self) -> None:
        """Do nothing: no image is kept."""

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def made_once(rows: Sequence[Row], make: Callable[[list[Frames]], Iterable[Made]]) -> list[list[Made]]:
    """Return each row's images as `make` makes them of the distinct frames of all rows, in order.

    Rows that show a frame share its array, so frames are told apart by where they are in memory.
    """
    frames = {_address(frame): frame for row in rows for frame in row.images}
    made = dict(zip(frames, make(list(frames.values())), strict=True))
    return [[made[_address(frame)] for frame in row.images] for row in rows]


def content(frame: Frames) -> bytes:
    """Return 32 bytes that only frames of this content have."""
    name = hashlib.sha256(str(frame.shape).encode())
    name.update(np.ascontiguousarray(frame).data)
    return name.digest()


def _address(frame: Frames) -> tuple[Any, ...]:
    """Return the same for arrays that show the same memory in the same way."""
    return frame.__array_interface__["data"][0], frame.shape, frame.strides
