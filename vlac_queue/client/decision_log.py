"""The decision log: every verdict as a line of JSON, and the frames that it was about.

A folder holds one folder a client process, so that many may log side by side; docs/decision-log.md describes
what stands in it. This module writes; `vlac_queue.commands.episodes.log` reads.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlac_queue.client.episode import Episode, Pending
from vlac_queue.config import VlacConfig
from vlac_queue.errors import DecisionLogError
from vlac_queue.frames import Frames
from vlac_queue.messages import DoneVerdict, Failure, Query, ValueVerdict, check_id

#: Version of the layout and of the lines.
LOG_VERSION = 1
#: Name of the file of lines in a client's folder.
LINES = "verdicts.jsonl"


def frames_path(writer: Path, episode: str, token: str) -> Path:
    """Return the file of an episode's encoded frame batches, one after another.

    Args:
        writer: folder of one client process.

    Raises:
        ProtocolError: id or token may not stand in a name.
    """
    return writer / "frames" / f"{check_id(episode)}.{check_id(token, 'token')}.vlqf"


def reference_path(folder: Path, reference: str) -> Path:
    """Return the file of a reference's encoded frame batches; `folder` is the whole log."""
    return folder / "references" / f"{check_id(reference, 'reference id')}.vlqf"


def pixel_hash(frame: Frames) -> str:
    """Return the SHA-256 of a frame's pixels, uint8 (H,W,3) in C order; 64 hexadecimal digits."""
    return sha256(frame.data if frame.flags.c_contiguous else frame.tobytes()).hexdigest()


class DecisionLog:
    """Writes the log of one client process. Threads may share it.

    What was written stays if the process dies. The first error ends the log: it is raised, and again by
    every later call but `closed`, so that no log has a gap that nobody knows of.

    Args:
        config: `decision_log` is the folder; threshold and stride go into each line.

    Raises:
        DecisionLogError: the folder can't be written.
    """

    def __init__(self, config: VlacConfig) -> None:
        self.folder = Path(config.decision_log)
        self._config = config
        self._broken = ""
        self.begin_in_child()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{uuid.uuid4().hex}"
            try:
                probe.write_bytes(bytes(4096))
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise self._failed(error) from error

    def begin_in_child(self) -> None:
        """Begin anew in a forked process, which writes to a folder of its own, made with its first episode."""
        self._lock = threading.Lock()
        self._file = -1
        self._hashes: dict[str, dict[int, str]] = {}
        #: Folder of this process.
        self.writer = Path()

    def opened(self, episode: Episode) -> None:
        """Note a new episode, and keep its encoded reference unless the log has it."""
        with self._writing():
            if episode.meta.reference:
                self._keep_reference(episode.meta.reference, episode.reference)
            self._hashes[episode.meta.token] = {}
            self._write(
                self._line("opened", episode),
                reference=episode.meta.reference,
                threshold=self._config.done_threshold,
                stride=self._config.value_stride,
            )

    def pushing(self, episode: Episode, frames: Frames) -> None:
        """Hash the last of `frames`, uint8 (T,H,W,3), that are about to be sent: its answer may come at once."""
        self._hashes[episode.meta.token][episode.frames + len(frames) - 1] = pixel_hash(frames[-1])

    def pushed(self, episode: Episode, payload: bytes) -> None:
        """Keep an encoded batch that is on Redis now."""
        with self._writing():
            path = frames_path(self.writer, episode.id, episode.meta.token)
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                _write_all(file, payload)
            finally:
                os.close(file)

    def answered(self, pending: Pending[Any]) -> None:
        """Note a verdict or a failure as it becomes known."""
        query, answer, critic = pending.query, pending.answer, pending.critic
        said: dict[str, Any]
        if isinstance(answer, DoneVerdict):
            kind = "done"
            said = {"done": answer.done, "score": answer.score, "threshold": self._config.done_threshold}
        elif isinstance(answer, ValueVerdict):
            kind = "value"
            said = {"values": answer.values, "critics": answer.critics, "stride": self._config.value_stride}
        elif isinstance(answer, Failure):
            kind, said = "failure", {"asked": query.kind, "error": answer.message, "traceback": answer.traceback}
        else:
            error = f"{type(answer).__name__}: {answer}"
            kind, said = "failure", {"asked": query.kind, "error": error, "traceback": ""}
        with self._writing():
            self._write(
                self._line(kind, pending.episode),
                query=query.id,
                frame=query.frame,
                sha256=self._hashes[query.token][query.frame],
                **said,
                critic=critic.name,
                model=critic.model,
                prompt=critic.prompt,
                latency_s=round(pending.answer_s or pending.latency_s, 6),
            )

    def truth(self, episode: Episode, frame: int | None) -> None:
        """Note the simulator's word: the first frame that is done; None: none of them."""
        with self._writing():
            self._write(self._line("truth", episode), frame=frame)

    def closed(self, episode: Episode, unanswered: Sequence[Query]) -> None:
        """Note the end of an episode, and which of its queries had no answer by then."""
        self._hashes.pop(episode.meta.token, None)
        if self._broken:
            return  # was raised when it broke; closing must go on
        with self._writing():
            open_ones = [[query.kind, query.frame] for query in unanswered]
            self._write(self._line("closed", episode), frames=episode.frames, unanswered=open_ones)

    def close(self) -> None:
        """Close the file; what comes after goes to a new one."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def _line(self, kind: str, episode: Episode) -> dict[str, Any]:
        return {
            "kind": kind,
            "time": round(time.time(), 3),
            "episode": episode.id,
            "token": episode.meta.token,
            "task": episode.task,
        }

    def _keep_reference(self, reference_id: str, batches: Sequence[bytes]) -> None:
        path = reference_path(self.folder, reference_id)
        if path.exists():
            return
        path.parent.mkdir(exist_ok=True)
        # Several clients may keep the same one at a time: whole under its name, or not there.
        partial = path.with_name(f".{self.writer.name}.{uuid.uuid4().hex[:8]}")
        try:
            partial.write_bytes(b"".join(batches))
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            if self._broken:
                raise DecisionLogError(self._broken)
            try:
                if self._file < 0:
                    self._begin()
                yield
            except OSError as error:
                raise self._failed(error) from error

    def _failed(self, error: OSError) -> DecisionLogError:
        self._broken = (
            f"can't write the decision log in {self.folder} ({error.strerror or error}): free space there or mend "
            "its permissions, and start again; or leave decision_log empty, to go on without a log. What it holds "
            "is right up to here, and no answer is lost: the queries hold theirs."
        )
        return DecisionLogError(self._broken)

    def _begin(self) -> None:
        host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "host"
        began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.writer = self.folder / f"{began}-{host}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        (self.writer / "frames").mkdir(parents=True)
        self._file = os.open(self.writer / LINES, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
        line = {"kind": "log", "version": LOG_VERSION, "time": round(time.time(), 3)}
        self._write(line, host=host, pid=os.getpid(), queue=self._config.queue)

    def _write(self, line: dict[str, Any], **fields: Any) -> None:
        text = json.dumps(line | fields, separators=(",", ":"), allow_nan=False)
        _write_all(self._file, text.encode() + b"\n")


def _write_all(file: int, data: bytes) -> None:
    """A nearly full disk takes a part, and only the next call says why."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
