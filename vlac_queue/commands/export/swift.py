"""A fine-tuning set for VLAC, as ms-swift reads it: frames done or not, and pairs that lead on or back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from vlac_queue.commands.episodes.log import Note
from vlac_queue.commands.export.prompts import Prompts
from vlac_queue.commands.export.truth import Known, known_episodes
from vlac_queue.errors import FrameError
from vlac_queue.files import replacing
from vlac_queue.plot import evenly

#: Files of the set, and the folder of its images.
TRAINING, VALIDATION, IMAGES = "train.jsonl", "validation.jsonl", "images"


@dataclass(frozen=True)
class Choice:
    """What goes into the set.

    Attributes:
        frames: most frames of an episode; of more, those are taken that are spread evenly, and all false dones.
        false_dones: how many times a false done is there.
        validation: part of the episodes that are for validation, 0..1.
    """

    frames: int = 16
    false_dones: int = 1
    validation: float = 0.1


@dataclass(frozen=True)
class _Row:
    """A prompt's images by their frames, and the answer that is right."""

    kind: str  # "done", "not done", "false done" or "pair"
    frames: tuple[int, ...]
    answer: str


def write_set(folder: Path, out: Path, prompts: Prompts, choice: Choice, note: Note) -> Counter[str]:
    """Write the episodes of a log whose end is known.

    Returns:
        How many rows of each kind, and how many episodes of each file.

    Raises:
        ProtocolError: the folder holds no log.
        FrameError: no episode has an end that is known.
    """
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        training, validation = (
            stack.enter_context(stack.enter_context(replacing(out / name)).open("w", encoding="utf-8"))
            for name in (TRAINING, VALIDATION)
        )
        for known in known_episodes(folder, note):
            apart = _share(known) < choice.validation
            try:
                written = _write(known, out, prompts, choice, validation if apart else training, note)
            except FrameError as error:
                note(f"episode {known.record.id!r} is left out: {error}")
                continue
            counts += written
            counts["validation episodes" if apart else "training episodes"] += bool(written)
        if not counts:
            raise FrameError(f"{folder} has no episode whose end is known; see `vlac-queue episodes mark`.")
    return counts


def _share(known: Known) -> float:
    """Return a number of 0..1 that stands for an episode, the same in each export."""
    return int(sha256(known.record.token.encode()).hexdigest()[:8], 16) / 2**32


def _write(known: Known, out: Path, prompts: Prompts, choice: Choice, file: TextIO, note: Note) -> Counter[str]:
    rows = list(_rows(known, choice))
    wanted = {frame for row in rows for frame in row.frames}
    names = {frame: f"{IMAGES}/{known.record.id}.{known.record.token}.{frame}.png" for frame in wanted}
    there = set()
    for number, frame in known.frames(wanted, note):
        prompts.write_image(frame, out / names[number])
        there.add(number)
    counts: Counter[str] = Counter()
    for row in rows:
        if there.issuperset(row.frames):
            file.write(json.dumps(_line(known, row, prompts, names), ensure_ascii=False) + "\n")
            counts[row.kind] += 1
    return counts


def _line(known: Known, row: _Row, prompts: Prompts, names: dict[int, str]) -> dict[str, Any]:
    prompt = prompts.pair if row.kind == "pair" else prompts.done
    said = [("system", prompts.system), ("user", prompt(known.record.task)), ("assistant", row.answer)]
    return {
        "messages": [{"role": role, "content": text} for role, text in said if text],
        "images": [names[frame] for frame in row.frames],
    }


def _rows(known: Known, choice: Choice) -> Iterator[_Row]:
    asked = [frame for frame in known.record.done_verdicts if known.done(frame) is not None]
    if not asked:
        return
    false = set(known.false_dones())
    places = evenly(len(asked), choice.frames, [place for place, frame in enumerate(asked) if frame in false])
    chosen = sorted({asked[place] for place in places} | false)
    for frame in chosen:
        if frame in false:
            yield from [_Row("false done", (frame,), "0")] * choice.false_dones
        else:
            done = known.done(frame)
            yield _Row("done" if done else "not done", (frame,), "1" if done else "0")
    success = known.truth.frame
    if success is None:
        return
    # Which way a failed episode goes nobody knows. A success goes on, as far as is known evenly in time.
    for first, second in pairwise(frame for frame in chosen if frame <= success):
        closer = str(round(100 * (second - first) / (success - first)))
        yield _Row("pair", (first, second), closer)
        yield _Row("pair", (second, first), f"-{closer}")
