"""Read an episode ahead in a thread of its own, a bounded number of frames."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from vlac_queue.commands.datasets.recording import Recording
from vlac_queue.errors import FrameError, VlacQueueError
from vlac_queue.frames import Frames

#: Most decoded frames of an episode that wait to be sent, and most bytes of them.
_AHEAD, _AHEAD_BYTES = 32, 16 << 20


class Reading:
    """The frames of a recording, decoded ahead.

    Attributes:
        error: what ended the reading early; None where nothing did. To be looked at once `ended`.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._frames: deque[tuple[int, Frames]] = deque()
        self._finished = False
        self._given_up = False
        self.error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether all frames were taken, or reading failed."""
        return self._finished and not self._frames

    def take(self) -> tuple[int, Frames]:
        """Return the next frame, uint8 (H,W,3), and its number in the recording. One must be ready."""
        with self._changed:
            numbered = self._frames.popleft()
            self._changed.notify_all()
        return numbered

    @property
    def ready(self) -> bool:
        """Whether there is a frame to take."""
        return bool(self._frames)

    def give_up(self) -> None:
        """Read no further."""
        with self._changed:
            self._given_up = True
            self._frames.clear()
            self._changed.notify_all()

    def run(self, recording: Recording, stride: int) -> None:
        """Decode; in a thread of its own."""
        try:
            for number, frame in recording.clip(stride).askable:
                with self._changed:
                    most = max(1, min(_AHEAD, _AHEAD_BYTES // frame.nbytes))
                    self._changed.wait_for(lambda most=most: self._given_up or len(self._frames) < most)  # type: ignore[misc]
                    if self._given_up:
                        return
                    self._frames.append((number, frame))
                    self._changed.notify_all()
        except (VlacQueueError, ImportError, OSError) as error:
            self.error = error
        except Exception as error:
            # Of one damaged file among thousands; without an error it would count as read to its end.
            self.error = FrameError(f"{recording.name} can't be read ({type(error).__name__}: {error}).")
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()


class Decoder:
    """Reads several recordings at the same time."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.changed = threading.Condition()
        self._readings: list[Reading] = []

    def read(self, recording: Recording, stride: int) -> Reading:
        """Begin to read a recording: every stride-th frame and the last."""
        reading = Reading(self.changed)
        self._readings = [each for each in self._readings if not each.ended]
        self._readings.append(reading)
        self._pool.submit(reading.run, recording, stride)
        return reading

    def give_up(self) -> None:
        """End all reading."""
        for reading in self._readings:
            reading.give_up()


@contextmanager
def decoder(recordings: int) -> Iterator[Decoder]:
    """Return a decoder of up to so many recordings at a time; its threads end with the `with` statement."""
    with ThreadPoolExecutor(recordings, thread_name_prefix="decode") as pool:
        made = Decoder(pool)
        try:
            yield made
        finally:
            made.give_up()
