"""Episodes with done scores whose end is known: from a decision log, or from labels and a table of successes."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vlac_queue.commands.episodes.log import read_log
from vlac_queue.commands.episodes.record import EpisodeRecord
from vlac_queue.commands.label.labels import LABELS, read_labels
from vlac_queue.errors import ProtocolError
from vlac_queue.texts import many

#: Columns of a table of successes, and what may stand in the second one.
_COLUMNS = ("episode", "success", "frame")
_TRUTHS = dict.fromkeys(("1", "true", "yes", "success"), True) | dict.fromkeys(
    ("0", "false", "no", "failure"), False
)
#: Most names that a note repeats.
_TOLD = 5


@dataclass(frozen=True)
class Truth:
    """What became of an episode.

    Attributes:
        success: whether the task was done.
        frame: the first frame in which it was; None where that is not known, or it failed.
    """

    success: bool
    frame: int | None = None


@dataclass(frozen=True)
class Judged:
    """An episode's done scores, and what became of it.

    Attributes:
        id, task: which one.
        frames: numbers of the frames asked about, ascending.
        scores: the done score of each, 0..1.
        whole: whether it went on to its end. A training episode ends where the critic finds it done: what the
            critic would have said later is not known.
        threshold: the threshold then, 0..1.
        truth: what became of it; None where nobody says.
    """

    id: str
    task: str
    frames: tuple[int, ...]
    scores: tuple[float, ...]
    whole: bool
    threshold: float
    truth: Truth | None


def read_judged(folder: Path, table: Path | None, note: Callable[[str], object]) -> Iterator[Judged]:
    """Yield the episodes of a decision log, or of labels, that have done scores; one in memory at a time.

    Args:
        table: a CSV file with the columns episode (its id; of labels its number or name), success, and perhaps
            frame; counts more than what the log says.

    Raises:
        ProtocolError: the folder holds neither, or the table is not usable.
    """
    truths = {} if table is None else _read_table(table)
    left = set(truths)
    for judged, names in _of_labels(folder) if (folder / LABELS).is_file() else _of_log(folder, note):
        told = [truths[name] for name in names if name in truths]
        left.difference_update(names)
        if len(set(told)) > 1:
            raise ProtocolError(f"{table} says two things of episode {judged.id!r}, by its name and its number.")
        if judged.scores:
            yield replace(judged, truth=told[0]) if told else judged
    if left:
        some = ", ".join(map(repr, sorted(left)[:_TOLD])) + (", ..." if len(left) > _TOLD else "")
        note(f"{table} names what is not in {folder}: {many(len(left), 'episode')}, {some}")


def _of_log(folder: Path, note: Callable[[str], object]) -> Iterator[tuple[Judged, tuple[str, ...]]]:
    for record in read_log(folder, note):
        verdicts = record.done_verdicts
        judged = Judged(
            id=record.id,
            task=record.task,
            frames=tuple(verdicts),
            scores=tuple(verdict.score for verdict in verdicts.values()),
            whole=record.first_done is None or record.value is not None,
            threshold=record.done_threshold,
            truth=truth_of(record),
        )
        yield judged, (record.id,)


def truth_of(record: EpisodeRecord) -> Truth | None:
    """Return a person's word, or else the simulator's; where both know of a success, the simulator's frame."""
    if (mark := record.mark) is not None:
        return Truth(
            mark.success, (mark.frame if mark.frame is not None else record.truth) if mark.success else None
        )
    return Truth(record.truth is not None, record.truth) if record.truth_known else None


def _of_labels(folder: Path) -> Iterator[tuple[Judged, tuple[str, ...]]]:
    labels = read_labels(folder)
    for made in labels:
        score = made.score(labels.how)
        names = (str(made.episode), made.name)
        yield (
            Judged(made.name, made.task, score.frames, score.done_scores, True, labels.how.done_threshold, None),
            names,
        )


def _read_table(table: Path) -> dict[str, Truth]:
    truths: dict[str, Truth] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            if not {"episode", "success"} <= set(rows.fieldnames or ()):
                raise ProtocolError(
                    f"{table} begins with {','.join(rows.fieldnames or ())[:80]!r}, and not with the names of its "
                    "columns, separated by commas: episode,success and perhaps frame."
                )
            for row in rows:
                name, success, frame = ((row.get(column) or "").strip() for column in _COLUMNS)
                told = _TRUTHS.get(success.lower())
                if not name or told is None or not re.fullmatch("[0-9]{0,15}", frame):
                    raise ProtocolError(
                        f"{table}, line {rows.line_num}: it needs an episode, success (1 or 0), and may have the "
                        "frame of the success."
                    )
                truth = Truth(told, int(frame) if frame and told else None)
                if truths.setdefault(name, truth) != truth:
                    raise ProtocolError(
                        f"{table}, line {rows.line_num}: {name!r} stands there before, with another end."
                    )
    except (OSError, UnicodeError, csv.Error) as error:
        raise ProtocolError(f"{table} is no table of successes in UTF-8 ({error}).") from None
    return truths
