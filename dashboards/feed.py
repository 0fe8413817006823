"""Looks at a queue, or those of a recording, in a thread of their own."""

from __future__ import annotations

import os
import queue as queues
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from dashboards.diagnosis import Diagnosis, judge
from dashboards.reading import Reader
from dashboards.record import Recording
from dashboards.shown import Shown
from dashboards.snapshot import Look
from vlac_queue.reading import EPISODES_SHOWN

#: Seconds that the last look may take at the end.
_LAST_LOOK_S = 1.0

#: A look and what it means.
Judged = tuple[Look, Sequence[Diagnosis]]


class Feed(threading.Thread):
    """Looks in a thread of their own, so that keys work while Redis is slow.

    Args:
        looks: gives them, waiting in between.
        stop: ends them.
        takers: are given each look before it is shown.
    """

    def __init__(
        self, looks: Iterator[Judged], stop: threading.Event, takers: Sequence[Callable[[Judged], None]] = ()
    ) -> None:
        super().__init__(name="looks", daemon=True)
        self._looks = looks
        self._stop_looking = stop
        self._takers = takers
        self._given: queues.SimpleQueue[Judged | Exception | None] = queues.SimpleQueue()
        #: Becomes readable with each look.
        self.wake, self._waker = os.pipe()
        os.set_blocking(self.wake, False)
        self.start()

    def run(self) -> None:
        try:
            for judged in self._looks:
                for taker in self._takers:
                    taker(judged)
                self._give(judged)
            self._give(None)
        except Exception as error:  # whoever shows the looks must learn of it
            self._give(error)

    def next(self) -> Judged | None:
        """The next look, waiting for it; None after the last.

        Raises:
            Exception: whatever ended the looks.
        """
        given = self._given.get()
        if isinstance(given, Exception):
            raise given
        return given

    def news(self) -> list[Judged | None]:
        """What came since the last call, without waiting; None is the end."""
        try:
            count = len(os.read(self.wake, 4096))
        except BlockingIOError:
            return []
        return [self.next() for _ in range(count)]

    def drain(self) -> None:
        """Takes all looks that come."""
        while self.next() is not None:
            pass

    def close(self) -> None:
        """Ends the looks, after the one at hand; one that Redis keeps waiting is left behind."""
        self._stop_looking.set()
        self.join(_LAST_LOOK_S)

    def _give(self, given: Judged | Exception | None) -> None:
        self._given.put(given)
        os.write(self._waker, b".")


def watched(
    reader: Reader, interval_s: float, stop: threading.Event, shown: Shown, *, episodes: int = 0
) -> Iterator[Judged]:
    """Looks at Redis every `interval_s` seconds.

    Args:
        shown: single episodes are read where it shows them.
        episodes: how many to read where it does not.
    """
    due = time.monotonic()
    while not stop.is_set():
        look = reader.look(episodes=EPISODES_SHOWN if shown.page == "episodes" else episodes)
        yield look, judge(look, url=reader.url, queue=reader.keys.queue)
        due = max(due + interval_s, time.monotonic())
        stop.wait(due - time.monotonic())


def replayed(recording: Recording, speed: float, stop: threading.Event, shown: Shown) -> Iterator[Judged]:
    """The looks of a recording at their own pace, `speed` times as fast; while `shown` is paused, none."""
    before: float | None = None
    for look, diagnoses in recording.looks():
        left_s = 0.0 if before is None else min(3600.0, max(0.0, look.at - before) / speed)
        before = look.at
        while left_s > 0 or shown.paused:
            started = time.monotonic()
            if stop.wait(min(left_s, 0.1) if not shown.paused else 0.1):
                return
            if not shown.paused:
                left_s -= time.monotonic() - started
        yield look, diagnoses
