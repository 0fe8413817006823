"""Open a dataset of whichever kind."""

from __future__ import annotations

from pathlib import Path

from vlac_queue.commands.datasets.lerobot import is_lerobot, open_lerobot
from vlac_queue.commands.datasets.recording import Dataset, Recording
from vlac_queue.commands.datasets.table import open_table
from vlac_queue.errors import FrameError


def open_dataset(path: Path, *, camera: str | None = None, task: str | None = None) -> Dataset:
    """Open a LeRobotDataset v3 folder, a folder of recordings with its episodes.csv, or such a CSV file.

    Args:
        camera: which of a LeRobot dataset's cameras: its key or the end of it; may be None where there is one.
        task: what the robot should do in all episodes, instead of what the dataset says.

    Raises:
        FrameError: it is none of these, or not usable.
        ImportError: the extra `datasets` is missing.
    """
    if is_lerobot(path):
        return open_lerobot(path, camera=camera, task=task)
    if camera is not None:
        raise FrameError(f"--camera is for LeRobot datasets, and {path} is none: it has no meta/info.json.")
    return open_table(path, task=task)


def find_recording(dataset: Dataset, index: int) -> Recording:
    """Return one episode of a dataset.

    Raises:
        FrameError: there is none of that number.
    """
    for recording in dataset.recordings():
        if recording.index == index:
            return recording
    raise FrameError(f"{dataset.path} has no episode {index}; it has {dataset.episodes}, numbered from 0.")
