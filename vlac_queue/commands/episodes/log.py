"""Reading a decision log (docs/decision-log.md): its lines, and the frames beside them.

What a client that died left half written at the end of a file is passed over, and said. Anything else that
is not as documented is an error that names the file and the line.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from vlac_queue.client.decision_log import LINES, LOG_VERSION, frames_path, reference_path
from vlac_queue.commands.episodes.record import Asked, EpisodeRecord, one_of
from vlac_queue.errors import FrameError, ProtocolError
from vlac_queue.frames import HEADER_BYTES, MAX_BATCH_BYTES, Frames, decode_episode
from vlac_queue.messages import (
    MAX_ANSWER_BYTES,
    Answer,
    CriticIdentity,
    DoneVerdict,
    Failure,
    ValueVerdict,
    check_id,
)

#: Called with what a reader should know: something was left out, and why.
Note = Callable[[str], object]

#: Most bytes of a line: an answer, and what else is said of it.
_MAX_LINE = MAX_ANSWER_BYTES + (64 << 10)
#: Most bytes of an encoded batch's lz4 block: lz4 makes what it can't pack 0.4% longer.
_MAX_BLOCK = MAX_BATCH_BYTES + MAX_BATCH_BYTES // 250 + 64

#: Why a file ends in the middle of something.
_UNFINISHED = "its client died while writing, or still writes"


def writers(folder: Path) -> list[Path]:
    """The folders of the clients that logged, by name: it begins with the second of their first episode.

    Raises:
        ProtocolError: there is none.
    """
    found = sorted(each.parent for each in folder.glob(f"*/{LINES}"))
    if not found:
        raise ProtocolError(
            f"{folder} is no decision log: no */{LINES} in it; give the folder that decision_log named."
        )
    return found


def read_log(folder: Path, note: Note) -> Iterator[EpisodeRecord]:
    """The episodes of a log, client by client, each once it is closed; the others at the end of their client.

    Only what is open at a time is held in memory.

    Raises:
        ProtocolError: the folder holds no log, or a line is not as documented.
    """
    for writer in writers(folder):
        yield from _read_writer(writer, note)


def find_episode(folder: Path, start: str, note: Note) -> EpisodeRecord:
    """The episode that is called so, or, where there is none, the only one whose id begins so; the last one where
    a log has several of that id.

    Raises:
        ProtocolError: as `read_log`, or there is no such episode, or there are several.
    """
    check_id(start)
    found: list[EpisodeRecord] = []
    ids: set[str] = set()
    for record in read_log(folder, note):
        if record.id.startswith(start):
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
    """The encoded frame batches of a logged episode, in order.

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
    """Reference frames that a log holds, uint8 (T,H,W,3).

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


@dataclass
class _Open:
    """An episode whose end was not read yet."""

    record: EpisodeRecord
    asked: list[Asked] = field(default_factory=list)

    def finished(self, **fields: Any) -> EpisodeRecord:
        return replace(self.record, asked=tuple(self.asked), **fields)


def _read_writer(writer: Path, note: Note) -> Iterator[EpisodeRecord]:
    path = writer / LINES
    reading: dict[str, _Open] = {}
    number = 0
    with path.open("rb") as file:
        while text := file.readline(_MAX_LINE + 1):
            number += 1
            if not text.endswith(b"\n"):
                if len(text) > _MAX_LINE:
                    raise ProtocolError(f"{path}, line {number}: longer than {_MAX_LINE} bytes.")
                note(f"{path} ends within a line, which was left out: {_UNFINISHED}")
                break
            try:
                line = _Line.read(text)
                closed = _take_in(line, number, reading, writer)
            except ProtocolError as error:
                raise ProtocolError(f"{path}, line {number}: {error}") from None
            if closed is not None:
                yield closed
    if number == 0:
        note(f"{path} is empty: its client died as it began")
    for each in reading.values():
        yield each.finished()


def _take_in(line: _Line, number: int, reading: dict[str, _Open], writer: Path) -> EpisodeRecord | None:
    """Takes a line in; the episode that it closes."""
    kind = line.text("kind")
    if (kind == "log") != (number == 1):
        raise ProtocolError("a log begins with one line of kind 'log'.")
    if kind == "log":
        if (version := line.fields.get("version")) != LOG_VERSION:
            raise ProtocolError(
                f"the log is of version {str(version)[:20]}, this program reads version {LOG_VERSION}; "
                "install the vlac-queue that wrote it."
            )
        return None
    token = check_id(line.fields.get("token"), "token")
    if kind == "opened":
        reading[token] = _Open(
            EpisodeRecord(
                id=check_id(line.fields.get("episode")),
                token=token,
                task=line.text("task"),
                reference=line.text("reference") and check_id(line.fields["reference"], "reference id"),
                done_threshold=line.number("threshold"),
                value_stride=line.index("stride"),
                opened=line.number("time"),
                writer=writer,
            )
        )
        return None
    episode = reading.get(token)
    if episode is None:
        raise ProtocolError(f"a line about an episode that is not open here (token {token}).")
    if kind == "closed":
        del reading[token]
        episode.asked += line.unanswered()
        return episode.finished(frames=line.index("frames"))
    if kind == "truth":
        truth = None if line.fields.get("frame") is None else line.index("frame")
        episode.record = replace(episode.record, truth_known=True, truth=truth)
        return None
    episode.asked.append(line.asked(kind))
    return None


@dataclass(frozen=True)
class _Line:
    fields: dict[str, Any]

    @classmethod
    def read(cls, text: bytes) -> _Line:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"not JSON ({error}).") from None
        if not isinstance(fields, dict):
            raise ProtocolError("not a JSON object.")
        return cls(fields)

    def asked(self, kind: str) -> Asked:
        answer: Answer
        frame = self.index("frame")
        asked = kind
        if kind == "done":
            if not isinstance(self.fields.get("done"), bool):
                raise ProtocolError("done must be true or false.")
            answer = DoneVerdict(self.fields["done"], self.number("score"), frame)
        elif kind == "value":
            answer = ValueVerdict(self.numbers("values"), self.numbers("critics"))
            if not answer.values:
                raise ProtocolError("a value list is empty.")
        elif kind == "failure":
            answer = Failure(self.text("error"), self.text("traceback"))
            asked = self.text("asked")
        if asked not in ("done", "value"):
            raise ProtocolError(f"an unknown kind: {asked[:40]!r}.")
        identity = [self.text(name) for name in ("critic", "model", "prompt")]
        return Asked(
            kind=asked,  # type: ignore[arg-type]
            answer=answer,
            frame=frame,
            critic=CriticIdentity(*identity) if any(identity) else None,
            sha256=self.text("sha256"),
        )

    def unanswered(self) -> list[Asked]:
        queries = self.fields.get("unanswered")
        try:
            return [Asked(kind, None, _Line({"frame": frame}).index("frame")) for kind, frame in queries]  # type: ignore[union-attr]
        except (TypeError, ValueError):
            raise ProtocolError("unanswered must be a list of kinds and frames.") from None

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise ProtocolError(f"{name} must be a text, not {type(value).__name__}.")
        return value

    def index(self, name: str) -> int:
        value = self.fields.get(name)
        if type(value) is not int or not 0 <= value < 2**32:
            raise ProtocolError(f"{name} must be an index within 0..2**32-1, not {str(value)[:40]}.")
        return value

    def number(self, name: str) -> float:
        return _finite(self.fields.get(name), name)

    def numbers(self, name: str) -> tuple[float, ...]:
        values = self.fields.get(name)
        if not isinstance(values, list):
            raise ProtocolError(f"{name} must be a list of numbers, not {type(values).__name__}.")
        return tuple(_finite(value, name) for value in values)


def _finite(value: Any, name: str) -> float:
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass  # an integer beyond any float: refused like the rest
    raise ProtocolError(f"{name} must hold finite numbers, not {str(value)[:40]}.")
