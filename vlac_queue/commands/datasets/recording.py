"""A dataset of recorded episodes, whatever its kind, read while it is used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vlac_queue.commands.score.reading import Clip


@dataclass(frozen=True)
class Recording:
    """One episode of a dataset.

    Attributes:
        index: its number in the dataset, from 0.
        name: what people call it, such as "episode 3".
        task: what the robot should do, in words.
        length: how many frames it has; None where only reading it tells.
        first: number of its first frame in the whole dataset; None where the lengths of those before it tell.
        reference: a successful run of the same task, where the dataset names one.
        clip: opens it at a stride: frames 0, stride, 2 * stride, ... and the last. Errors as `open_clip`.
        reference_name: how the dataset names the reference, wherever the dataset lies; "" where it names none.
    """

    index: int
    name: str
    task: str
    length: int | None
    first: int | None
    reference: Path | None
    clip: Callable[[int], Clip] = field(repr=False)
    reference_name: str = ""


@dataclass(frozen=True)
class Dataset:
    """A dataset of recorded episodes.

    Attributes:
        path: its folder.
        camera: the camera chosen; "" where there is no choice.
        episodes: how many there are.
        recordings: gives each of them, in the order of their numbers, reading as it goes. Raises FrameError.
        damage: why there are fewer than there should be; empty where nothing is amiss.
    """

    path: Path
    camera: str
    episodes: int
    recordings: Callable[[], Iterator[Recording]] = field(repr=False)
    damage: tuple[str, ...] = ()


def chosen_episodes(text: str) -> Callable[[int], bool]:
    """Return whether an episode is among those of a text such as "0-9,12,40-": numbers and ranges from 0.

    Raises:
        ValueError: it is no such text.
    """
    ranges = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:(-)(\d*))?\s*", part)
        if found is None:
            raise ValueError(f"--episodes takes numbers and ranges such as 0-9,12,40- and not {text!r}.")
        first = int(found[1])
        last = first if not found[2] else int(found[3]) if found[3] else None
        ranges.append((first, last))
    return lambda index: any(first <= index and (last is None or index <= last) for first, last in ranges)
