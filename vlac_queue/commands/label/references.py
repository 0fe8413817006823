"""The successful runs that a dataset's episodes are compared with."""

from __future__ import annotations

from pathlib import Path

from vlac_queue.commands.datasets.opening import find_recording
from vlac_queue.commands.datasets.recording import Dataset, Recording
from vlac_queue.commands.score.reading import read_reference, stacked
from vlac_queue.errors import FrameError
from vlac_queue.frames import Frames


class References:
    """The reference of each recording: the dataset's own, that of its task, or the one for all.

    Raises:
        FrameError: one of them can't be read.
    """

    def __init__(self, dataset: Dataset, given: tuple[str, ...], stride: int) -> None:
        self._stride = stride
        self._by_task: dict[str, Frames] = {}
        self._by_path: dict[Path, Frames] = {}
        self._other: Frames | None = None
        for text in given:
            if text.isdecimal():
                recording = find_recording(dataset, int(text))
                self._by_task[recording.task] = stacked(recording.clip(stride), recording.name)
            elif self._other is None:
                self._other = read_reference(Path(text), stride)
            else:
                raise FrameError("give one --reference PATH for all tasks; others by the number of an episode.")

    def of(self, recording: Recording) -> Frames | None:
        """Return the frames, uint8 (T,H,W,3); None for the configuration's."""
        if (path := recording.reference) is not None:
            if path not in self._by_path:
                self._by_path = dict(list(self._by_path.items())[-7:])  # a few tasks' references stay in memory
                self._by_path[path] = read_reference(path, self._stride)
            return self._by_path[path]
        return self._by_task.get(recording.task, self._other)
