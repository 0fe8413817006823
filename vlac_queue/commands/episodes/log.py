"""Reading a decision log (docs/decision-log.md): its lines, and the frames beside them.

What a client that died left half written at the end of a file is passed over, and said. Anything else that
is not as documented is an error that names the file and the line.

The file is long since all that knows how a log lies on disk stands here.
"""

from __future__ import annotations

import heapq
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct

from vlac_queue.client.decision_log import LINES, LOG_VERSION, frames_path, reference_path
from vlac_queue.commands.episodes.marks import read_marks
from vlac_queue.commands.episodes.record import Asked, EpisodeRecord, one_of
from vlac_queue.errors import FrameError, ProtocolError
from vlac_queue.frames import HEADER_BYTES, MAX_BATCH_BYTES, Frames, decode_episode
from vlac_queue.messages import (
    ID_WORDS,
    INDEX_WORDS,
    MAX_ANSWER_BYTES,
    UNNAMED,
    Answer,
    CriticIdentity,
    DoneVerdict,
    Failure,
    Id,
    Index,
    Kind,
    OptionalId,
    Values,
    ValueVerdict,
    check_id,
    read_json,
)

#: Called with what a reader should know: something was left out, and why.
Note = Callable[[str], object]

#: Most bytes of a line: an answer, and what else is said of it.
_MAX_LINE = MAX_ANSWER_BYTES + (64 << 10)
#: Most bytes of an encoded batch's lz4 block: lz4 makes what it can't pack 0.4% longer.
_MAX_BLOCK = MAX_BATCH_BYTES + MAX_BATCH_BYTES // 250 + 64

#: Where a line names its episode, before any text that others chose.
_EPISODE = re.compile(rb'"episode":"([^"\\]*)","token":"([^"\\]*)"')

#: Why a file ends in the middle of something.
_UNFINISHED = "its client died while writing, or still writes"


def writers(folder: Path) -> list[Path]:
    """Return the folders of the clients that logged, by name: it begins with the second of their first episode.

    Raises:
        ProtocolError: there is none.
    """
    found = sorted(each.parent for each in folder.glob(f"*/{LINES}"))
    if not found:
        raise ProtocolError(
            f"{folder} is no decision log: no */{LINES} in it; give the folder that decision_log named."
        )
    return found


def read_log(
    folder: Path, note: Note, wanted: Callable[[str, str], bool] = lambda episode, token: True
) -> Iterator[EpisodeRecord]:
    """Yield the episodes of a log, client by client, once they are closed; the others at the end of their client.

    Only what is open at a time is held in memory.

    Args:
        wanted: whether an episode is, by its id and token; lines about others are passed over unread.

    Raises:
        ProtocolError: the folder holds no log, or a line is not as documented.
    """
    marks = read_marks(folder)
    for writer in writers(folder):
        for record in _read_writer(writer, note, wanted):
            mark = marks.get(record.token)
            yield replace(record, mark=mark) if mark else record


def read_newest(folder: Path, most: int, note: Note) -> tuple[list[EpisodeRecord], int]:
    """Return the episodes opened last, the last one first, and how many there are in all.

    Goes through the log twice, and reads only the lines about these. Raises as `read_log`.
    """
    count = 0
    newest: list[tuple[float, int, str]] = []
    for writer in writers(folder):
        for number, text in _lines(writer / LINES, note):
            if text.startswith(b'{"kind":"opened"'):
                count += 1
                line = _read_line(text, writer / LINES, number)
                assert isinstance(line, _Opened)
                heapq.heappush(newest, (line.time, count, line.token))
                if len(newest) > most:
                    heapq.heappop(newest)
    order = {token: place for place, (_, _, token) in enumerate(sorted(newest, reverse=True))}
    found = read_log(folder, lambda text: None, lambda episode, token: token in order)
    return sorted(found, key=lambda record: order[record.token]), count


def find_episode(folder: Path, start: str, note: Note) -> EpisodeRecord:
    """Return the episode that is called so, or, where there is none, the only one whose id begins so.

    Where a log has several of that id, it is the last one.

    Raises:
        ProtocolError: as `read_log`, or there is no such episode, or there are several.
    """
    check_id(start)
    found: list[EpisodeRecord] = []
    ids: set[str] = set()
    for record in read_log(folder, note, lambda episode, token: episode.startswith(start)):
        ids.add(record.id)
        # Of many episodes that are not meant, only the ids are kept.
        if len(ids) == 1 or record.id == start:
            found.append(record)
    name = start if start in ids else one_of(ids, start)
    if name is None:
        raise ProtocolError(f"no episode {start!r} in {folder}; see `vlac-queue episodes list --log {folder}`.")
    found = sorted((each for each in found if each.id == name), key=lambda record: record.opened or 0.0)
    if len(found) > 1:
        note(f"{len(found)} episodes have the id {name!r}; this is the last one")
    return found[-1]


def read_batches(record: EpisodeRecord, note: Note) -> Iterator[bytes]:
    """Yield the encoded frame batches of a logged episode, in order.

    Raises:
        FrameError: the file holds something else, or can't be read.
    """
    assert record.writer is not None
    path = frames_path(record.writer, record.id, record.token)
    try:
        file = path.open("rb")
    except OSError as error:
        if record.frames == 0:
            return
        raise FrameError(
            f"the frames of episode {record.id!r} can't be read: {path} ({error.strerror})."
        ) from None
    with file:
        yield from _batches(file, path, note)


def read_reference(folder: Path, reference: str, note: Note) -> Frames:
    """Return the reference frames that a log holds, uint8 (T,H,W,3).

    Raises:
        FrameError: they are gone or damaged.
    """
    path = reference_path(folder, reference)
    try:
        with path.open("rb") as file:
            batches = list(_batches(file, path, note))
    except OSError as error:
        raise FrameError(f"reference frames can't be read: {path} ({error.strerror}).") from None
    if not batches:
        raise FrameError(f"{path} holds no frames.")
    try:
        return decode_episode(batches)
    except FrameError as error:
        raise FrameError(f"{path}: {error}") from None


def _batches(file: BinaryIO, path: Path, note: Note) -> Iterator[bytes]:
    while head := file.read(HEADER_BYTES):
        if len(head) == HEADER_BYTES:
            if not head.startswith(b"VLQF"):
                raise FrameError(f"{path}: no encoded frame batch at byte {file.tell() - HEADER_BYTES}.")
            (size,) = struct.unpack_from("<I", head, 28)
            if size > _MAX_BLOCK:
                raise FrameError(f"{path}: a batch of {size} bytes exceeds the limit; the file is damaged.")
            block = file.read(size)
            if len(block) == size:
                yield head + block
                continue
        note(f"{path} ends within a batch, which was left out: {_UNFINISHED}")
        return


class _Log(Struct, tag_field="kind", tag="log"):
    """The first line."""

    version: Any


class _Opened(Struct, tag_field="kind", tag="opened"):
    token: Id
    episode: Id
    task: str
    reference: OptionalId
    threshold: float
    stride: Index
    time: float


class _Answered(Struct):
    """What the lines about a query have in common."""

    token: Id
    frame: Index
    sha256: str
    critic: str
    model: str
    prompt: str


class _Done(_Answered, tag_field="kind", tag="done"):
    done: bool
    score: float


class _Value(_Answered, tag_field="kind", tag="value"):
    values: Values
    critics: tuple[float, ...]


class _Failed(_Answered, tag_field="kind", tag="failure"):
    asked: Kind
    error: str
    traceback: str


class _Truth(Struct, tag_field="kind", tag="truth"):
    token: Id
    frame: Index | None = None


class _Closed(Struct, tag_field="kind", tag="closed"):
    token: Id
    frames: Index
    unanswered: list[tuple[Kind, Index]]


_Line = _Log | _Opened | _Done | _Value | _Failed | _Truth | _Closed
_LINE: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line)

#: What must stand where in a line; where nothing is said here, msgspec's own words do.
_WORDS = {
    "": "not a JSON object",
    "kind": "an unknown kind",
    "token": f"token must be {ID_WORDS}",
    "episode": f"episode id must be {ID_WORDS}",
    "reference": f"reference id must be {ID_WORDS}",
    "frame": f"frame must be {INDEX_WORDS}",
    "score": "score must be a finite number",
    "done": "done must be true or false",
}


@dataclass
class _Open:
    """An episode whose end was not read yet."""

    record: EpisodeRecord
    asked: list[Asked] = field(default_factory=list)

    def note(self, kind: Kind, answer: Answer, line: _Answered) -> None:
        critic = CriticIdentity(line.critic, line.model, line.prompt)
        self.asked.append(Asked(kind, answer, line.frame, None if critic == UNNAMED else critic, line.sha256))

    def finished(self, **fields: Any) -> EpisodeRecord:
        return replace(self.record, asked=tuple(self.asked), **fields)


def _read_writer(writer: Path, note: Note, wanted: Callable[[str, str], bool]) -> Iterator[EpisodeRecord]:
    path = writer / LINES
    reading: dict[str, _Open] = {}
    for number, text in _lines(path, note):
        about = _EPISODE.search(text) if number > 1 else None
        if about and not wanted(about[1].decode(errors="replace"), about[2].decode(errors="replace")):
            continue
        line = _read_line(text, path, number)
        try:
            closed = _take_in(line, number, reading, writer)
        except ProtocolError as error:
            raise ProtocolError(f"{path}, line {number}: {error}") from None
        if closed is not None:
            yield closed
    for each in reading.values():
        yield each.finished()


def _lines(path: Path, note: Note) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, from 1 on."""
    number = 0
    with path.open("rb") as file:
        while text := file.readline(_MAX_LINE + 1):
            number += 1
            if not text.endswith(b"\n"):
                if len(text) > _MAX_LINE:
                    raise ProtocolError(f"{path}, line {number}: longer than {_MAX_LINE} bytes.")
                note(f"{path} ends within a line, which was left out: {_UNFINISHED}")
                return
            yield number, text
    if number == 0:
        note(f"{path} is empty: its client died as it began")


def _read_line(text: bytes, path: Path, number: int) -> _Line:
    try:
        return read_json(_LINE, text.decode(errors="surrogateescape"), "line", _WORDS)
    except ProtocolError as error:
        raise ProtocolError(f"{path}, line {number}: {error}") from None


def _take_in(line: _Line, number: int, reading: dict[str, _Open], writer: Path) -> EpisodeRecord | None:
    """Take a line in, and return the episode that it closes."""
    if isinstance(line, _Log) != (number == 1):
        raise ProtocolError("a log begins with one line of kind 'log'.")
    if isinstance(line, _Log):
        if line.version != LOG_VERSION:
            raise ProtocolError(
                f"the log is of version {str(line.version)[:20]}, this program reads version {LOG_VERSION}; "
                "install the vlac-queue that wrote it."
            )
        return None
    if isinstance(line, _Opened):
        reading[line.token] = _Open(_record(line, writer))
        return None
    episode = reading.get(line.token)
    if episode is None:
        raise ProtocolError(f"a line about an episode that is not open here (token {line.token}).")
    match line:
        case _Closed():
            del reading[line.token]
            episode.asked += [Asked(kind, None, frame) for kind, frame in line.unanswered]
            return episode.finished(frames=line.frames)
        case _Truth():
            episode.record = replace(episode.record, truth_known=True, truth=line.frame)
        case _Done():
            episode.note("done", DoneVerdict(line.done, line.score, line.frame), line)
        case _Value():
            episode.note("value", ValueVerdict(line.values, line.critics), line)
        case _Failed():
            episode.note(line.asked, Failure(line.error, line.traceback), line)
    return None


def _record(line: _Opened, writer: Path) -> EpisodeRecord:
    return EpisodeRecord(
        id=line.episode,
        token=line.token,
        task=line.task,
        reference=line.reference,
        done_threshold=line.threshold,
        value_stride=line.stride,
        opened=line.time,
        writer=writer,
    )
