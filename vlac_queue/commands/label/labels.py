"""The labels of a dataset: a file that is added to episode by episode, and the table that LeRobot reads."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from vlac_queue.commands.datasets.recording import Recording
from vlac_queue.commands.label.asking import Answers
from vlac_queue.commands.score.figures import Score, make_score
from vlac_queue.errors import ProtocolError
from vlac_queue.files import replacing
from vlac_queue.messages import CriticIdentity, DoneVerdict, ValueVerdict

#: Names of the files in the folder of labels.
LABELS, PROGRESS = "labels.jsonl", "progress.parquet"
#: Version of the file of labels.
_VERSION = 1
#: Rows of the table that are in memory until they are written.
_ROWS = 1 << 16


class How(Struct, frozen=True, tag_field="kind", tag="labels"):
    """How labels were made: the first line of their file."""

    dataset: str  # its folder in full; from the folder of the labels where they lie in it, so that both may move
    camera: str  # "" where there is no choice
    task: str  # given in place of the dataset's; "" where it was not
    stride: int  # every stride-th frame was asked about, and the last
    value_stride: int  # distance between the frames of a value list, counted in frames asked about
    done_threshold: float  # a score above it means done, 0..1
    references: tuple[str, ...]  # as they were given, with the SHA-256 of their frames
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
    reference_name: str = ""  # of the recording that the dataset names for it; "" where it names none

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
        reference_name=recording.reference_name,
    )


class _Place(NamedTuple):
    """Where the labels of an episode stand in their file, and a hash of what they are of."""

    at: int
    what: int


class Labels:
    """The file of labels, in a folder of its own. Where each episode stands is in memory, and nothing more.

    Args:
        file: opened for adding, and locked; None where nothing is to be added.

    Attributes:
        path: the file.
        how: how the labels were made.
        critic: who made them; None while there are none.
    """

    def __init__(
        self,
        path: Path,
        how: How,
        places: dict[int, _Place],
        critic: CriticIdentity | None,
        file: FileIO | None = None,
    ) -> None:
        self.path = path
        self.how = how
        self.critic = critic
        self._places = places
        self._file = file

    def __contains__(self, episode: int) -> bool:
        return episode in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Labelled]:
        with self.path.open("rb") as file:
            for episode in sorted(self._places):
                file.seek(self._places[episode].at)
                yield _LINE.decode(file.readline())  # type: ignore[misc]

    def has(self, recording: Recording) -> bool:
        """Return whether an episode is labelled.

        Raises:
            ProtocolError: the labels of that number are of another recording.
        """
        place = self._places.get(recording.index)
        if place is not None and place.what != _what(recording):
            raise ProtocolError(
                f"{recording.name} is another recording than the one labelled in {self.path}, or has another task "
                f"or reference now; choose another --out, or delete {self.path.parent}."
            )
        return place is not None

    def add(self, made: Labelled) -> None:
        """Keep an episode's labels; they are on the disk when this returns, as far as this process can tell.

        Raises:
            ProtocolError: another critic made those before.
            OSError: the file can't be written; it is as before.
        """
        assert self._file is not None
        if self.critic not in (None, made.critic):
            raise ProtocolError(
                f"{self.path} holds labels of another critic ({_named(self.critic)}) than now answers "
                f"({_named(made.critic)}); start workers of that one, or choose another --out."
            )
        self.critic = made.critic
        place = self._file.seek(0, os.SEEK_END)
        try:
            _write(self._file, made)
        except OSError:
            self._file.truncate(place)
            raise
        self._places[made.episode] = _Place(place, _what(made))


def _what(of: Recording | Labelled) -> int:
    """Return a hash, of this process, of what makes a recording another one."""
    length = of.length if of.first is not None else None  # before it is read only a LeRobot dataset tells
    return hash((of.name, of.task, of.first, length, of.reference_name))


def _named(critic: CriticIdentity | None) -> str:
    return " ".join(filter(None, (critic.name, critic.model, critic.prompt))) if critic else ""


@contextmanager
def open_labels(folder: Path, how: How) -> Iterator[Labels]:
    """Begin labels in a folder, or go on with those that are there; nobody else adds to them meanwhile.

    Raises:
        ProtocolError: those that are there were made otherwise, or another process adds to them.
        OSError: the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LABELS
    with open(path, "ab", buffering=0, opener=_no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProtocolError(
                f"another `vlac-queue label` adds to {path}; wait for its end, or choose another --out."
            ) from None
        with path.open("rb") as begun:
            empty = not any(_whole_lines(begun))
        if empty:
            file.truncate(0)
            _write(file, how)
        labels, end = _read(path, file)
        if not len(labels) and labels.how != how:  # nothing is mixed where there is nothing
            file.truncate(0)
            _write(file, how)
            labels, end = _read(path, file)
        for name in how.__struct_fields__:
            then, now = getattr(labels.how, name), getattr(how, name)
            if then != now:
                raise ProtocolError(
                    f"{path} was made with {name} {then!r}, and now it is {now!r}; choose another --out, or "
                    f"delete {folder}."
                )
        file.truncate(end)
        yield labels


def _no_link(path: str, flags: int) -> int:
    """Open a file but no link to elsewhere: the folder may have come with somebody else's dataset."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def read_labels(folder: Path) -> Labels:
    """Read labels that `vlac-queue label` made.

    Raises:
        ProtocolError: there are none, or they are damaged.
    """
    path = folder / LABELS
    if not path.is_file():
        raise ProtocolError(f"{folder} holds no {LABELS}; give the folder that `vlac-queue label` wrote.")
    return _read(path)[0]


def _read(path: Path, adding: FileIO | None = None) -> tuple[Labels, int]:
    """Return the labels of a file, and where the last whole line ends."""
    places: dict[int, _Place] = {}
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
                places[line.episode], critic = _Place(end, _what(line)), line.critic
            end += len(text)
    if how is None or how.version != _VERSION:
        raise ProtocolError(f"{path} is of another version of vlac-queue; choose another --out.")
    return Labels(path, how, places, critic, adding), end


def _write(file: FileIO, line: How | Labelled) -> None:
    """Write a line; a nearly full disk takes a part of it, and only the next call says why."""
    left = memoryview(msgspec.json.encode(line) + b"\n")
    while left:
        left = left[file.write(left) :]


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
    count, first = 0, 0
    with replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
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
