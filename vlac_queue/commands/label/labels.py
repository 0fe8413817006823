"""The labels of a dataset: a file that is added to episode by episode, and the table that LeRobot reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from msgspec import Struct

from vlac_queue.commands.label.asking import Answers
from vlac_queue.commands.score.figures import Score, make_score
from vlac_queue.errors import ProtocolError
from vlac_queue.messages import CriticIdentity, DoneVerdict, ValueVerdict

#: Names of the files in the folder of labels.
LABELS, PROGRESS = "labels.jsonl", "progress.parquet"
#: Version of the file of labels.
_VERSION = 1
#: Rows of the table that are in memory until they are written.
_ROWS = 1 << 16


class How(Struct, frozen=True, tag_field="kind", tag="labels"):
    """How labels were made: the first line of their file."""

    dataset: str  # its folder, in full
    camera: str  # "" where there is no choice
    task: str  # given in place of the dataset's; "" where it was not
    stride: int  # every stride-th frame was asked about, and the last
    value_stride: int  # distance between the frames of a value list, counted in frames asked about
    done_threshold: float  # a score above it means done, 0..1
    references: tuple[str, ...]  # as they were given
    version: int = _VERSION


class Labelled(Struct, frozen=True, tag_field="kind", tag="episode"):
    """What the critic says of one episode: a further line."""

    episode: int  # its number in the dataset
    name: str
    task: str
    first: int | None  # number of its first frame in the dataset; None where the lengths of those before it tell
    length: int
    scores: tuple[float, ...]  # done scores of the frames asked about, 0..1
    values: tuple[float, ...]  # nominally 0..100; none where there is one frame
    critics: tuple[float, ...]  # pair-wise scores, nominally -100..100
    critic: CriticIdentity

    def score(self, how: How) -> Score:
        """Return its figures."""
        return make_score(
            [DoneVerdict(s > how.done_threshold, s, place) for place, s in enumerate(self.scores)],
            ValueVerdict(self.values, self.critics) if self.values else None,
            source=self.name, task=self.task, stride=how.stride, done_threshold=how.done_threshold,
            value_stride=how.value_stride, length=self.length,
        )  # fmt: skip


_LINE: msgspec.json.Decoder[How | Labelled] = msgspec.json.Decoder(How | Labelled)


def labelled(answers: Answers) -> Labelled:
    """Return what is kept of the answers about a recording."""
    recording, value = answers.recording, answers.value
    return Labelled(
        episode=recording.index,
        name=recording.name,
        task=recording.task,
        first=recording.first,
        length=answers.length,
        scores=tuple(verdict.score for verdict in answers.verdicts),
        values=value.values if value else (),
        critics=value.critics if value else (),
        critic=answers.critic,
    )


class Labels:
    """The file of labels, in a folder of its own. Where each episode stands is in memory, and nothing more.

    Attributes:
        path: the file.
        how: how the labels were made.
        critic: who made them; None while there are none.
    """

    def __init__(self, path: Path, how: How, places: dict[int, int], critic: CriticIdentity | None) -> None:
        self.path = path
        self.how = how
        self.critic = critic
        self._places = places

    def __contains__(self, episode: int) -> bool:
        return episode in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Labelled]:
        with self.path.open("rb") as file:
            for episode in sorted(self._places):
                file.seek(self._places[episode])
                yield _LINE.decode(file.readline())  # type: ignore[misc]

    def add(self, made: Labelled) -> None:
        """Keep an episode's labels; they are on the disk when this returns, as far as this process can tell.

        Raises:
            ProtocolError: another critic made those before.
            OSError: the file can't be written.
        """
        if self.critic not in (None, made.critic):
            raise ProtocolError(
                f"{self.path} holds labels of another critic ({_named(self.critic)}) than now answers "
                f"({_named(made.critic)}); start workers of that one, or choose another --out."
            )
        self.critic = made.critic
        with self.path.open("ab") as file:
            place = file.tell()
            file.write(msgspec.json.encode(made) + b"\n")
        self._places[made.episode] = place


def _named(critic: CriticIdentity | None) -> str:
    return " ".join(filter(None, (critic.name, critic.model, critic.prompt))) if critic else ""


def open_labels(folder: Path, how: How) -> Labels:
    """Begin labels in a folder, or go on with those that are there.

    Raises:
        ProtocolError: those that are there were made otherwise.
        OSError: the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LABELS
    if not path.exists() or not path.stat().st_size:
        path.write_bytes(msgspec.json.encode(how) + b"\n")
    labels, end = _read(path)
    for name in how.__struct_fields__:
        then, now = getattr(labels.how, name), getattr(how, name)
        if then != now:
            raise ProtocolError(
                f"{path} was made with {name} {then!r}, and now it is {now!r}; choose another --out, or delete "
                f"{folder}."
            )
    os.truncate(path, end)
    return labels


def read_labels(folder: Path) -> Labels:
    """Read labels that `vlac-queue label` made.

    Raises:
        ProtocolError: there are none, or they are damaged.
    """
    path = folder / LABELS
    if not path.is_file():
        raise ProtocolError(f"{folder} holds no {LABELS}; give the folder that `vlac-queue label` wrote.")
    return _read(path)[0]


def _read(path: Path) -> tuple[Labels, int]:
    """Return the labels of a file, and where the last whole line ends."""
    places: dict[int, int] = {}
    critic: CriticIdentity | None = None
    how: How | None = None
    with path.open("rb") as file:
        end = 0
        for number, text in enumerate(_whole_lines(file), 1):
            try:
                line = _LINE.decode(text)
            except msgspec.MsgspecError as error:
                raise ProtocolError(f"{path}, line {number}: {error}; delete the folder to begin anew.") from None
            if isinstance(line, How) != (number == 1):
                raise ProtocolError(f"{path}, line {number}: labels begin with one line of kind 'labels'.")
            if isinstance(line, How):
                how = line
            else:
                places[line.episode], critic = end, line.critic
            end += len(text)
    if how is None or how.version != _VERSION:
        raise ProtocolError(f"{path} is of another version of vlac-queue; choose another --out.")
    return Labels(path, how, places, critic), end


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines but for one that was cut short when its program ended."""
    for text in file:
        if text.endswith(b"\n"):
            yield text


def write_progress(labels: Labels, path: Path) -> int:
    """Write the table that LeRobot reads: a row for each frame of the episodes that have labels.

    Its columns are index (of the frame in the dataset), episode_index, frame_index, progress_sparse (0..1: the
    values between those asked for are interpolated), and of frames asked about done_score (0..1), value
    (nominally 0..100) and pair_score (nominally -100..100, from the frame of the value before); NaN for no such.

    Returns:
        How many rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole, floats = pa.int64(), pa.float32()
    schema = pa.schema(
        [(name, whole) for name in ("index", "episode_index", "frame_index")]
        + [(name, floats) for name in ("progress_sparse", "done_score", "value", "pair_score")],
        metadata={"vlac_queue": msgspec.json.encode(labels.how), "critic": _named(labels.critic)},
    )
    partial, count, first = path.with_name(f".{path.name}"), 0, 0
    with pq.ParquetWriter(partial, schema) as writer:
        waiting: list[dict[str, Any]] = []
        for made in labels:
            first = first if made.first is None else made.first
            waiting.append(_columns(made, labels.how, first))
            first, count = first + made.length, count + made.length
            if sum(len(columns["index"]) for columns in waiting) >= _ROWS:
                writer.write_table(_table(waiting, schema))
                waiting = []
        if waiting:
            writer.write_table(_table(waiting, schema))
    os.replace(partial, path)
    return count


def _table(parts: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    return pa.table({name: np.concatenate([part[name] for part in parts]) for name in schema.names}, schema=schema)


def _columns(made: Labelled, how: How, first: int) -> dict[str, Any]:
    score, frames = made.score(how), np.arange(made.length)
    columns: dict[str, Any] = {
        name: np.full(made.length, np.nan, np.float32) for name in ("done_score", "value", "pair_score")
    }
    columns["done_score"][list(score.frames)] = score.done_scores
    progress = columns["value"].copy()
    if score.values:
        columns["value"][list(score.value_frames)] = score.values
        columns["pair_score"][list(score.value_frames[1:])] = score.critics
        progress = np.interp(frames, score.value_frames, np.clip(np.array(score.values) / 100, 0, 1))
    return columns | {
        "index": first + frames,
        "episode_index": np.full(made.length, made.episode),
        "frame_index": frames,
        "progress_sparse": progress.astype(np.float32),
    }
