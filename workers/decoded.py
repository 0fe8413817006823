"""An episode's decoded frames, kept so that a new frame costs one XOR, and a value list little or no decoding."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import numpy as np

from vlac_queue.errors import FrameError, ProtocolError
from vlac_queue.frames import Base, EncodedBatch, Frames, follow, write_all
from workers import memory

#: Frames for which there is room at first, and most bytes of it. Memory that is not written to costs nothing.
_FIRST_ROOM, _FIRST_ROOM_BYTES = 128, 32 << 20
#: Bytes by which memory comes where it is written to.
_PAGE = mmap.PAGESIZE
#: Bytes from which on frames get pages of their own (see `_room`).
_LARGE = 1 << 20
#: Bytes that an encoded batch takes beside its block: for small frames, most of it.
_BESIDE = 512


class History:
    """An episode's frames as far as they are known here: all of them, or the last one alone.

    Of a frame that is not the last, only its encoding is kept until somebody wants all frames, or has time
    (`catch_up`). What was handed out never changes: later frames are written behind it.

    Args:
        limit: most bytes of pixels.
    """

    def __init__(self, limit: int) -> None:
        #: Whether all frames are known, and not the last one alone.
        self.whole = True
        self._limit = limit
        # Of each batch, how many frames there are up to its last.
        self._ends: list[int] = []
        # The last frame.
        self._base: Base | None = None
        # uint8 (room, H, W, 3), of which the first self._written frames are there, and what follows them, encoded.
        self._frames: Frames | None = None
        self._written = 0
        self._written_base: Base | None = None
        self._behind: list[EncodedBatch] = []
        self._behind_bytes = 0

    @property
    def batches(self) -> int:
        """How many batches are known."""
        return len(self._ends)

    @property
    def behind(self) -> bool:
        """Whether there are frames to decode ahead."""
        return bool(self._behind)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        last = self._base.frame.nbytes if self._base else 0
        return last + -(-self._written * last // _PAGE) * _PAGE + self._behind_bytes

    def extend(self, payloads: Sequence[bytes], *, every_frame: bool) -> None:
        """Takes the batches that come next; where one is damaged, nothing changes.

        Args:
            payloads: encoded batches.
            every_frame: whether all frames are wanted now, and not the last one alone.

        Raises:
            FrameError: as `vlac_queue.frames.follow` and `decode`.
            OutOfMemory: there is too little memory for them.
        """
        if not payloads:
            if every_frame:
                self.catch_up()
            return
        count = self._ends[-1] if self._ends else 0
        batches = follow(payloads, first=count, limit=self._limit)
        size = self._base.frame.shape if self._base else batches[0].shape[1:]
        if any(batch.shape[1:] != size for batch in batches):
            self.forget()  # frames of several sizes don't go into one array
        known_bytes = count * self._base.frame.nbytes if self._base else 0
        if self.whole and known_bytes + sum(batch.raw_bytes for batch in batches) > self._limit:
            if every_frame:
                raise FrameError(f"the episode has more than {self._limit} bytes of pixels; refused.")
            self.forget()
        if every_frame and self.whole:
            self._base = self._write([*self._behind, *batches])
        else:
            base = self._base
            memory.require(2 * max(batch.raw_bytes for batch in batches), "a batch of frames")
            for batch in batches:
                base = batch.base(batch.decode(base))
            self._base = base
            if self.whole:
                self._behind += batches
                self._behind_bytes += sum(len(batch.block) + _BESIDE for batch in batches)
        for batch in batches:
            count += batch.shape[0]
            self._ends.append(count)

    def catch_up(self) -> None:
        """Decodes what is known by its encoding only."""
        if self._behind:
            self._write(self._behind)

    def last(self, batch: int, frame: int) -> Frames:
        """The last frame of a batch, uint8 (1,H,W,3), read-only.

        Args:
            batch: its index; where the history is not whole, that of the last one.
            frame: index of that frame.

        Raises:
            ProtocolError: it is another frame's.
        """
        self._check(batch, frame)
        if batch < self.batches - 1:
            return self.until(batch, frame)[-1:]
        assert self._base is not None
        return _read_only(self._base.frame[None])

    def until(self, batch: int, frame: int) -> Frames:
        """All frames up to the last one of a batch, uint8 (T,H,W,3), read-only; of a whole history only.

        Raises as `last`.
        """
        self._check(batch, frame)
        if frame >= self._written:
            self.catch_up()
        assert self.whole and self._frames is not None
        return _read_only(self._frames[: frame + 1])

    def all(self) -> Frames:
        """All frames, as `until` gives them."""
        return self.until(self.batches - 1, self._ends[-1] - 1)

    def forget(self) -> None:
        """Keeps the last frame alone."""
        if self._base is not None and self._frames is not None:
            # A view would keep all of them.
            self._base = Base(self._base.frame.copy(), self._base.checksum)
        self.whole = False
        self._frames, self._written, self._written_base = None, 0, None
        self._behind, self._behind_bytes = [], 0

    def _write(self, batches: Sequence[EncodedBatch]) -> Base:
        """Decodes batches behind the frames that are there; the base of what follows them."""
        end = self._written + sum(batch.shape[0] for batch in batches)
        grows = self._frames is None or end > len(self._frames)
        frame_bytes = batches[0].raw_bytes // batches[0].shape[0]
        unpacking = max(batch.raw_bytes for batch in batches)
        memory.require(frame_bytes * (end if grows else end - self._written) + unpacking, "the query's frames")
        if grows:
            first_room = min(_FIRST_ROOM, _FIRST_ROOM_BYTES // frame_bytes)
            room = max(end, min(2 * self._written, self._limit // frame_bytes), first_room)
            if not memory.fits(frame_bytes * room + unpacking):
                room = end
            grown = _room((room, *batches[0].shape[1:]))
            if self._frames is not None:
                grown[: self._written] = self._frames[: self._written]
            self._frames = grown
        assert self._frames is not None
        base = write_all(batches, self._frames[self._written : end], self._written_base)
        assert base is not None, "there is at least one batch"
        self._written, self._written_base = end, base
        self._behind, self._behind_bytes = [], 0
        return base

    def _check(self, batch: int, frame: int) -> None:
        if frame + 1 != self._ends[batch]:
            raise ProtocolError(f"frame {frame} is not the last of batch {batch}.")


def _room(shape: tuple[int, ...]) -> Frames:
    """An array to be written to: where it is large, on pages that go back to the system together with it.

    From 4 MiB on numpy would ask for huge pages, so that a few frames take 2 MiB; and what malloc has on its heap
    stays there when it is freed.
    """
    nbytes = math.prod(shape)
    if nbytes < _LARGE:
        return np.empty(shape, np.uint8)
    try:
        pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes for frames ({error})") from error
    return np.frombuffer(pages, np.uint8).reshape(shape)


def _read_only(frames: Frames) -> Frames:
    frames.setflags(write=False)
    return frames
