"""The batching decision: when is a batch ready, and how much may wait?"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from workers.pace import Pace

Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """Collects items from one thread into batches for another.

    A batch is ready when it is full, when its oldest item has waited for `max_wait_s`, or when more is not
    worth waiting for (`Pace`). While the taker is busy the next batch fills up; beyond that `room` is 0, so that
    jobs stay on Redis for other workers.

    Args:
        max_batch: most items of a batch.
        max_wait_s: seconds that the oldest item waits for more to come.
        max_bytes: bytes of waiting items above which there is no room.
        pace: when items come and what batches take; the taker tells it the latter.
    """

    def __init__(
        self, max_batch: int, max_wait_s: float, max_bytes: int = 1 << 30, pace: Pace | None = None
    ) -> None:
        self.pace = pace or Pace()
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self.max_bytes = max_bytes
        self._items: deque[tuple[Item, int, float]] = deque()
        self._bytes = self._held = 0
        self._closed = False
        self._poked = False
        self._changed = threading.Condition()

    def room(self) -> int:
        """How many more items may be put now."""
        with self._changed:
            return self._room()

    def wait_for_room(self, timeout_s: float) -> int:
        """As `room`, after waiting for at least one place for up to `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._room() > 0, timeout_s)
            return self._room()

    def put(self, items: Sequence[tuple[Item, int]]) -> None:
        """Adds items, each with its size in bytes. Never blocks and never refuses: ask `room` first."""
        now = time.monotonic()
        with self._changed:
            self.pace.arrive(now, 2 * self.max_wait_s)
            for item, size in items:
                self._items.append((item, size, now))
                self._bytes += size
            self._changed.notify_all()

    def hold(self, nbytes: int) -> None:
        """Notes how many bytes the taker has taken and not done with."""
        self._held = nbytes

    @property
    def full(self) -> bool:
        """Whether the taker has as many bytes at hand as may wait."""
        return self._held >= self.max_bytes

    def take(self, timeout_s: float | None) -> list[Item]:
        """The next batch, in order; empty after `timeout_s` seconds without any, or when poked or closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._poked or bool(self._items), timeout_s)
            self._poked = False
            while not self._closed and self._items and len(self._items) < self.max_batch:
                until = self.pace.wait_until(len(self._items), self._items[0][2], self.max_wait_s)
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._closed:
                return []
            batch: list[Item] = []
            while self._items and len(batch) < self.max_batch:
                item, size, _ = self._items.popleft()
                self._bytes -= size
                batch.append(item)
            self._changed.notify_all()
            return batch

    def poke(self) -> None:
        """Has a waiting `take`, or the next one, return even where there is nothing to take."""
        with self._changed:
            self._poked = True
            self._changed.notify_all()

    def remove(self, unwanted: Callable[[Item], bool]) -> int:
        """Takes items out that wait; how many."""
        with self._changed:
            kept = [each for each in self._items if not unwanted(each[0])]
            removed = len(self._items) - len(kept)
            self._items = deque(kept)
            self._bytes = sum(size for _, size, _ in kept)
            self._changed.notify_all()
            return removed

    def close(self) -> None:
        """Ends taking: `take` returns nothing from now on, and what waits is dropped."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._bytes = 0
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def _room(self) -> int:
        return 0 if self._bytes >= self.max_bytes else max(0, self.max_batch - len(self._items))
