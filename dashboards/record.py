"""Recordings: a line of JSON that says what it is, then one for each look (docs/dashboard.md)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from dashboards.diagnosis import Diagnosis
from dashboards.snapshot import SCHEMA, Look, from_json, to_json
from vlac_queue.texts import clean

_KIND = "vlac-queue record"
#: Most bytes of a line: thousands of workers.
_MAX_LINE = 16 << 20


def document(look: Look, diagnoses: Sequence[Diagnosis]) -> dict[str, Any]:
    """A look and what it means, as JSON values."""
    return {
        "at": to_json(look.at),
        "error": look.error,
        "verdicts": to_json(diagnoses),
        "snapshot": to_json(look.snapshot),
    }


def head(url: str, queue: str, interval_s: float) -> dict[str, Any]:
    """What a recording begins with, and what `--json` prints with its one look.

    Args:
        url: Redis, without password.
    """
    return {"kind": _KIND, "schema": SCHEMA, "url": url, "queue": queue, "interval_s": interval_s}


class Recorder:
    """Writes a recording; each look is in the file at once.

    Raises:
        FileExistsError, OSError: the file is there already, or can't be written.
    """

    def __init__(self, path: str, url: str, queue: str, interval_s: float) -> None:
        # A recording is made once; one that is there must not be lost to a command typed again.
        self._file: TextIO = sys.stdout
        if path != "-":
            self._file = open(path, "x" if _would_lose(path) else "w", encoding="utf-8")  # noqa: SIM115
        self._write(head(url, queue, interval_s))

    def add(self, look: Look, diagnoses: Sequence[Diagnosis]) -> None:
        self._write(document(look, diagnoses))

    def close(self) -> None:
        if self._file is not sys.stdout:
            self._file.close()

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")
        self._file.flush()


class Recording:
    """A recording to read.

    Attributes:
        url, queue, interval_s: what was looked at, and how often.
        truncated: after `looks()`: whether its last line is incomplete, since the recorder was ended in it.

    Raises:
        ValueError: the file is no recording of this version.
        OSError: it can't be read.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.truncated = False
        with self._path.open("rb") as file:
            line = file.readline(_MAX_LINE)
        try:
            said = json.loads(line)
            kind, schema = said["kind"], said["schema"]
        except (ValueError, TypeError, KeyError, RecursionError):
            kind = schema = None
        if kind != _KIND:
            raise ValueError(f"{path} is no recording; make one with: python -m dashboards.live --record FILE")
        if schema != SCHEMA:
            raise ValueError(f"{path} has version {schema!r:.20}, this reads {SCHEMA}: update vlac-queue")
        try:
            self.url, self.queue = clean(said["url"]), clean(said["queue"])
            self.interval_s = min(3600.0, max(0.1, float(said["interval_s"])))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path}: its first line lacks url, queue or interval_s") from None

    def looks(self) -> Iterator[tuple[Look, tuple[Diagnosis, ...]]]:
        """The looks and what they were found to mean, in their order.

        Raises:
            ValueError: a line other than the last can't be read.
        """
        with self._path.open("rb") as file:
            file.readline(_MAX_LINE)
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 2):
                try:
                    yield _parse(line)
                except (ValueError, RecursionError) as error:
                    if not line.endswith(b"\n"):
                        self.truncated = True
                        return
                    raise ValueError(f"{self._path}, line {number}: {error}") from None


def _parse(line: bytes) -> tuple[Look, tuple[Diagnosis, ...]]:
    said = json.loads(line)
    if not isinstance(said, dict):
        raise ValueError("it is no JSON object")
    look = from_json(Look, said)
    diagnoses = from_json(tuple[Diagnosis, ...], said.get("verdicts", []))
    if not diagnoses:
        raise ValueError("it has no diagnosis")
    return look, diagnoses


def _would_lose(path: str) -> bool:
    return not os.path.exists(path) or os.path.isfile(path)
