"""Frames that the critic took for the end and that are not: what the critic `reference` learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlac_queue.commands.episodes.log import Note
from vlac_queue.commands.export.truth import known_episodes
from vlac_queue.errors import FrameError
from vlac_queue.files import replacing
from vlac_queue.frames import Frames
from vlac_queue.plot import evenly


@dataclass(frozen=True)
class Negative:
    """A frame that is not done, uint8 (H,W,3), and the task that it isn't."""

    task: str
    frame: Frames


def write_negatives(folder: Path, path: Path, most: int, above: float | None, note: Note) -> dict[str, int]:
    """Write the frames of a log that were found done and are not, as VLAC_REFERENCE_NEGATIVES takes them.

    Args:
        most: frames of a task; of more, those are taken that are spread evenly over the log.
        above: takes all that were scored above it and are not done, 0..1; None: those that were found done.

    Returns:
        How many of each task.

    Raises:
        ProtocolError: the folder holds no log.
        FrameError: there is no such frame, or they are of several sizes.
    """
    # Through the log once for their numbers, so that no more frames are in memory than are written.
    found = Counter(known.record.task for known in known_episodes(folder, note) for _ in known.false_dones(above))
    chosen = {task: set(evenly(count, most)) for task, count in found.items()}
    negatives = list(_read(folder, chosen, above, note))
    if not negatives:
        raise FrameError(
            f"{folder} has no frame that was found done and is not, in episodes whose end is known; nothing is "
            "written. Mark some with `vlac-queue episodes mark`."
        )
    if len(sizes := {each.frame.shape for each in negatives}) > 1:
        shown = " and ".join(f"{width}x{height}" for height, width, _ in sorted(sizes)[:2])
        raise FrameError(
            f"the frames of {folder} are of several sizes, such as {shown}; export logs of one camera."
        )
    tasks = [each.task for each in negatives]
    with replacing(path) as partial, partial.open("wb") as file:
        frames = np.stack([each.frame for each in negatives])
        np.savez_compressed(file, frames=frames, task=tasks)
    return dict(Counter(tasks))


def _read(folder: Path, chosen: dict[str, set[int]], above: float | None, note: Note) -> Iterator[Negative]:
    seen: Counter[str] = Counter()
    for known in known_episodes(folder, lambda text: None):
        task, dones = known.record.task, known.false_dones(above)
        wanted = {frame for place, frame in enumerate(dones, seen[task]) if place in chosen.get(task, ())}
        seen[task] += len(dones)
        try:
            for _, frame in known.frames(wanted, note) if wanted else ():
                yield Negative(task, frame)
        except FrameError as error:
            note(f"episode {known.record.id!r} is left out: {error}")
