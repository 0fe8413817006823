"""Notices a critic that hangs: its thread can't be ended, but its process can."""

from __future__ import annotations

import sys
import threading
import time
import traceback


class Watchdog:
    """Times what the critic does at the moment.

    It may take half of the time for which its queries are waited for: then the other half is left for another
    worker. But not less than a quarter of `timeout_s`, since queries may have waited long before they came here.

    Args:
        timeout_s: seconds for which queries are waited for.
        limit_s: seconds that a batch may take, whatever its queries say; 0: as above.
    """

    def __init__(self, timeout_s: float, limit_s: float = 0.0) -> None:
        self._timeout_s = timeout_s
        self._fixed_s = limit_s
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._began: float | None = None
        self._thread: int | None = None
        self._looked = time.monotonic()

    def begin(self, left_s: float) -> None:
        """The calling thread begins to work, on queries that are waited for `left_s` seconds more."""
        with self._lock:
            self.limit_s = self._fixed_s or max(self._timeout_s / 4, left_s / 2)
            self._began, self._thread = time.monotonic(), threading.get_ident()

    def end(self) -> None:
        """It has ended."""
        with self._lock:
            self._began = None

    def look(self, every_s: float) -> str:
        """To be called every `every_s` seconds.

        Returns:
            Where the critic hangs, if it has worked for longer than the limit; else "".
        """
        now = time.monotonic()
        with self._lock:
            asleep_s = now - self._looked - every_s
            self._looked = now
            if self._began is None or self._thread is None:
                return ""
            if asleep_s > every_s:  # the whole process stood still: that is not the critic's time
                self._began += asleep_s
            if now - self._began <= self.limit_s:
                return ""
            frame = sys._current_frames().get(self._thread)
        return "".join(traceback.format_stack(frame)) if frame else "its thread has ended"
