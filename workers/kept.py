"""What a worker keeps decoded between queries, all of it within one bound."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from vlac_queue.frames import Frames
from workers import memory
from workers.decoded import History

Entry = TypeVar("Entry")

#: Bytes that surround what is kept under one key; for small frames, most of it.
_BESIDE = 2 << 10


class _Shelf(Generic[Entry]):
    """Entries by key, the one used longest ago first, and how many bytes they take."""

    def __init__(self, share: int) -> None:
        #: Bytes up to which no other shelf may have its room.
        self.share = share
        self.nbytes = 0
        self.entries: OrderedDict[str, tuple[Entry, int]] = OrderedDict()

    def get(self, key: str) -> Entry | None:
        if key not in self.entries:
            return None
        self.entries.move_to_end(key)
        return self.entries[key][0]

    def put(self, key: str, entry: Entry, nbytes: int) -> None:
        self.pop(key)
        self.entries[key] = (entry, nbytes + _BESIDE)
        self.nbytes += nbytes + _BESIDE

    def pop(self, key: str | None = None) -> tuple[str, Entry] | None:
        """Takes an entry out: the one of `key`, or the oldest."""
        key = key or next(iter(self.entries), None)
        if key is None or key not in self.entries:
            return None
        entry, nbytes = self.entries.pop(key)
        self.nbytes -= nbytes
        return key, entry


class Kept:
    """Episodes and references, decoded.

    Where they take more than `limit`, whole episodes shrink to their last frame, then last frames go, then
    references; of each kind those used longest ago, and only while the kind has more than its share.

    Args:
        limit: bytes of main memory for all of them, once `settle` was called.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._whole: _Shelf[History] = _Shelf(limit // 4)
        self._last: _Shelf[History] = _Shelf(limit // 4)
        self._references: _Shelf[Frames] = _Shelf(limit // 2)
        # Episodes of which there are frames to decode ahead, the first to be the first.
        self._behind: OrderedDict[str, None] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of main memory that they take."""
        return self._whole.nbytes + self._last.nbytes + self._references.nbytes

    def history(self, token: str) -> History | None:
        """Return what is known of an episode; its token tells it from others of its id."""
        return self._whole.get(token) or self._last.get(token)

    def keep(self, token: str, history: History) -> None:
        """Keep what is known of an episode; to be called again when that has changed."""
        self._whole.pop(token)
        self._last.pop(token)
        self._behind.pop(token, None)
        if history.behind:
            self._behind[token] = None
        (self._whole if history.whole else self._last).put(token, history, history.nbytes)

    def reference(self, reference: str) -> Frames | None:
        """Return a reference's frames."""
        return self._references.get(reference)

    def keep_reference(self, reference: str, frames: Frames) -> None:
        """Keep a reference's frames."""
        self._references.put(reference, frames, frames.nbytes)

    def next_behind(self) -> str | None:
        """Return the token of an episode of which there are frames to decode ahead."""
        return next(iter(self._behind), None)

    def settle(self) -> None:
        """Have what is too much go."""
        while self.nbytes > self._limit:
            # They have more than the limit together, so one of them has more than its share.
            if self._whole.nbytes > self._whole.share:
                self._shrink_oldest()
            else:
                too_much = self._last if self._last.nbytes > self._last.share else self._references
                too_much.pop()

    def clear(self) -> None:
        """Have all go, at once."""
        for shelf in (self._whole, self._last, self._references):
            while shelf.pop():
                pass
        self._behind.clear()
        memory.give_back()

    def _shrink_oldest(self) -> None:
        if oldest := self._whole.pop():
            token, history = oldest
            history.forget()
            self.keep(token, history)
