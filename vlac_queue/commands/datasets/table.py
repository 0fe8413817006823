"""Recordings in files, listed in a CSV file: what each shows, and which runs succeeded."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vlac_queue.commands.datasets.recording import Dataset, Recording
from vlac_queue.commands.score.reading import open_clip
from vlac_queue.errors import FrameError

#: Name of the table in a folder of recordings.
TABLE = "episodes.csv"
_NEEDED = "it needs the columns file and task, and may have reference, separated by commas"


def open_table(path: Path, *, task: str | None = None) -> Dataset:
    """Open a table of recordings: a CSV file with the columns `file` and `task`, and perhaps `reference`.

    Args:
        path: the file, or the folder that has one called episodes.csv. Its paths are relative to its folder.
        task: what the robot should do in all of them; there need be no column `task` then.

    Raises:
        FrameError: there is no table, or it lacks a column.
    """
    table = path / TABLE if path.is_dir() else path
    if path.is_dir() and not table.is_file():
        raise FrameError(
            f"{path} is no LeRobot dataset (it has no meta/info.json) and has no {TABLE}; write one: {_NEEDED}."
        )
    count = sum(1 for _ in _rows(table, task))
    return Dataset(table.parent, "", count, partial(_recordings, table, task))


def _recordings(table: Path, task: str | None) -> Iterator[Recording]:
    for index, row in enumerate(_rows(table, task)):
        file = table.parent / row["file"]
        reference = row["reference"]
        yield Recording(
            index=index,
            name=row["file"],
            task=task or row["task"],
            length=None,
            first=None,
            reference=table.parent / reference if reference else None,
            clip=partial(open_clip, file, keep_last=True),
            reference_name=reference,
        )


def _rows(table: Path, task: str | None) -> Iterator[dict[str, str]]:
    """Yield the rows, their cells without spaces at the ends; `reference` may be empty."""
    needed = ["file"] if task else ["file", "task"]
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            if missing := [name for name in needed if name not in (rows.fieldnames or ())]:
                begin = ",".join(rows.fieldnames or ())[:80]
                raise FrameError(f"{table} has no column {missing[0]} (it begins with {begin!r}); {_NEEDED}.")
            for row in rows:
                cells = {name: (row.get(name) or "").strip() for name in ("file", "task", "reference")}
                if missing := [name for name in needed if not cells[name]]:
                    raise FrameError(f"{table}, line {rows.line_num}: no {' and no '.join(missing)}; {_NEEDED}.")
                yield cells
    except (OSError, UnicodeError, csv.Error) as error:
        raise FrameError(f"{table} is no table of recordings in UTF-8 ({error}); {_NEEDED}.") from None
