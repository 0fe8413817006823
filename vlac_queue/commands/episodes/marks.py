"""What a person says of logged episodes: whether they succeeded. A file of lines beside the log's folders."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from vlac_queue.errors import ProtocolError
from vlac_queue.messages import Id, Index

#: Name of the file in a log's folder.
MARKS = "marks.jsonl"


class Mark(Struct, frozen=True, tag_field="kind", tag="mark"):
    """A person's word on an episode.

    Attributes:
        episode, token: which one.
        success: whether the task was done in the end.
        frame: the first frame in which it is done; None where that is not said, or it failed.
        time: seconds since 1970.
    """

    episode: Id
    token: Id
    success: bool
    frame: Index | None = None
    time: float = 0.0


_LINE = msgspec.json.Decoder(Mark)


def read_marks(folder: Path) -> dict[str, Mark]:
    """Return the last mark of each episode that has one, by its token. A line that was cut short is left out.

    Raises:
        ProtocolError: the file holds something else.
    """
    path = folder / MARKS
    marks: dict[str, Mark] = {}
    if path.is_file():
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                mark = _LINE.decode(line)
            except msgspec.MsgspecError as error:
                raise ProtocolError(f"{path}, line {number}: {error}; mend or delete that line.") from None
            marks[mark.token] = mark
    return marks


def add_mark(folder: Path, episode: str, token: str, success: bool, frame: int | None = None) -> None:
    """Keep a mark; it takes the place of one that the episode had.

    Raises:
        OSError: the file can't be written.
    """
    mark = Mark(episode, token, success, frame if success else None, round(time.time(), 3))
    line = msgspec.json.encode(mark) + b"\n"
    file = os.open(folder / MARKS, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(file, "r+b", buffering=0) as marks:
        fcntl.flock(marks, fcntl.LOCK_EX)  # another may mark at the same time
        # After the last whole line: a program that died, or a full disk, may have left a part of one.
        end = marks.read().rfind(b"\n") + 1
        marks.truncate(end)
        if (written := marks.write(line)) != len(line):
            marks.truncate(end)
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were written")
