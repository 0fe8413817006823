"""Find the recorded run to score: a file or folder, an episode of a dataset, or a run that ships."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

from vlac_queue.commands.datasets.lerobot import is_lerobot
from vlac_queue.commands.datasets.opening import find_recording, open_dataset
from vlac_queue.commands.datasets.recording import Recording
from vlac_queue.commands.demo.rollouts import read_rollout
from vlac_queue.commands.score.reading import open_clip, read_reference, stacked
from vlac_queue.errors import FrameError
from vlac_queue.frames import Frames

#: A run that ships, for messages.
EXAMPLE = "drawer-open-v3_expert_s1"


def find_source(source: str, *, episode: int | None, camera: str | None, task: str | None) -> Recording:
    """Return the run that is meant.

    Args:
        source: a recording's path, a dataset's with `episode`, or the name of a run that ships.
        task: what the robot should do, instead of what the dataset says; a recording alone needs it.

    Raises:
        FrameError: there is no such run, or no task is known.
        ImportError: an extra is missing.
    """
    path = Path(source)
    if not path.exists():
        return _shipped(source, task)
    if episode is not None:
        return find_recording(open_dataset(path, camera=camera, task=task), episode)
    if is_lerobot(path):
        raise FrameError(f"{path} is a LeRobot dataset: choose one of its episodes, such as --episode 0.")
    if task is None:
        raise FrameError(f"say what the robot should do in {path}, such as --task 'open the drawer'.")
    return Recording(0, path.name, task, None, None, None, clip=partial(open_clip, path, keep_last=True))


def find_reference(
    source: str, recording: Recording, given: str | None, *, of_dataset: bool, camera: str | None, stride: int
) -> Frames | None:
    """Return the successful run that a run is compared with, uint8 (T,H,W,3); None for the configuration's.

    Args:
        given: a recording's path, or with `of_dataset` the number of an episode; None takes the one that the
            dataset names.

    Raises:
        FrameError: there is none, or it can't be read.
    """
    if given is not None and given.isdecimal() and of_dataset:
        episode = find_recording(open_dataset(Path(source), camera=camera), int(given))
        return stacked(episode.clip(stride), episode.name)
    known = recording.reference if given is None else Path(given)
    return None if known is None else read_reference(known, stride)


def _shipped(name: str, task: str | None) -> Recording:
    """Return a run that ships, with the one that succeeds from the same start as its reference."""
    folder = Path(str(files("vlac_queue.commands.demo") / "rollouts"))
    path = folder / f"{name}.npz"
    if path not in folder.glob("*.npz"):
        raise FrameError(
            f"{name} does not exist; give a video, an .npz, an .npy, a folder of png or jpg files, a dataset with "
            f"--episode, or the name of a run that ships, such as {EXAMPLE}."
        )
    rollout = read_rollout(path)
    (reference,) = folder.glob(f"{rollout.env}_reference_*.npz")
    recording = Recording(
        0, name, rollout.task, len(rollout.frames), 0, reference, partial(open_clip, path, keep_last=True)
    )
    return replace(recording, task=task or rollout.task)
