"""The successful runs that a dataset's episodes are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from vlac_queue.client.reference import load_frames
from vlac_queue.commands.datasets.opening import find_recording
from vlac_queue.commands.datasets.recording import Dataset, Recording
from vlac_queue.commands.score.reading import read_reference, stacked
from vlac_queue.errors import FrameError
from vlac_queue.frames import Frames


class References:
    """The reference of each recording: the dataset's own, that of its task, or the one for all.

    Args:
        given: numbers of episodes, each for its task, and at most one path of a recording, for all others.
        stride: takes every stride-th of their frames, and the last.
        default: the configuration's file, which the client reads where nothing else is given; None for none.

    Attributes:
        said: what was given, by its last name and the beginning of the SHA-256 of its pixels.

    Raises:
        FrameError: one of them can't be read.
    """

    def __init__(self, dataset: Dataset, given: tuple[str, ...], stride: int, default: str | None) -> None:
        self._stride = stride
        self._by_task: dict[str, Frames] = {}
        self._by_path: dict[Path, Frames] = {}
        self._other: Frames | None = None
        self.said = tuple(self._read(dataset, given))
        if default and self._other is None:
            self.said += (_said(default, load_frames(Path(default))),)

    def _read(self, dataset: Dataset, given: tuple[str, ...]) -> Iterator[str]:
        for text in given:
            if text.isdecimal():
                recording = find_recording(dataset, int(text))
                if recording.task in self._by_task:
                    raise FrameError(
                        f"--reference {text} is a second one for the task {recording.task!r}; give one for each."
                    )
                frames = stacked(recording.clip(self._stride), recording.name)
                self._by_task[recording.task] = frames
            elif self._other is None:
                frames = self._other = read_reference(Path(text), self._stride)
            else:
                raise FrameError("give one --reference PATH for all tasks; others by the number of an episode.")
            yield _said(text, frames)

    def of(self, recording: Recording) -> Frames | None:
        """Return the frames, uint8 (T,H,W,3); None for the configuration's."""
        if (path := recording.reference) is not None:
            if path not in self._by_path:
                self._by_path = dict(list(self._by_path.items())[-7:])  # a few tasks' references stay in memory
                self._by_path[path] = read_reference(path, self._stride)
            return self._by_path[path]
        return self._by_task.get(recording.task, self._other)


def _said(text: str, frames: Frames) -> str:
    return f"{Path(text).name} ({sha256(frames.data).hexdigest()[:12]})"
