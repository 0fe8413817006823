"""The dashboard's tables: columns, and which of them a terminal has room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from rich.text import Text

from dashboards.frame import pad
from dashboards.snapshot import Worker
from vlac_queue.records import Episode, Failed, PlainWorker
from vlac_queue.texts import duration, number, percent, size

#: What a row shows.
Item: TypeAlias = Worker | PlainWorker | Episode | Failed

#: States of workers and their styles, the most striking first.
_STATES = {
    "lost": "bold red",
    "loading": "yellow",
    "plain": "yellow",
    "busy": "green",
    "idle": "",
    "asleep": "cyan",
}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        width: columns on the terminal; of the widest column the least, since it takes what is left.
        rank: which is left out first where there is no room: the highest.
        text: the cell of a row.
        right: whether the cells stand at the right.
        style: of a cell, or "".
        grows: whether it takes what is left; one of a table does.
    """

    title: str
    width: int
    rank: int
    text: Callable[[Any], str]
    right: bool = False
    style: Callable[[Any], str] = lambda item: ""
    grows: bool = False


def _of_worker(text: Callable[[Worker], str]) -> Callable[[Worker | PlainWorker], str]:
    """Empty for plain workers, which have no critic yet to tell of."""
    return lambda worker: text(worker) if isinstance(worker, Worker) else ""


def _clock(at: float) -> str:
    """The time of day of seconds since 1970."""
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def _state(worker: Worker | PlainWorker) -> str:
    return worker.state if isinstance(worker, Worker) else "plain"


def _memory(worker: Worker) -> str:
    if not worker.accelerator_bytes and not worker.accelerator_limit_bytes:
        return "-"
    gib = 1 << 30
    limit = f"/{worker.accelerator_limit_bytes / gib:.1f}" if worker.accelerator_limit_bytes else ""
    return f"{worker.accelerator_bytes / gib:.1f}{limit}"


def _near_limit(worker: Worker | PlainWorker) -> str:
    if not isinstance(worker, Worker) or not worker.accelerator_limit_bytes:
        return ""
    return "red" if worker.accelerator_bytes > 0.95 * worker.accelerator_limit_bytes else ""


def _batch(worker: Worker) -> str:
    return f"{number(worker.mean_batch)}/{worker.max_batch}" if worker.max_batch else number(worker.mean_batch)


WORKER_COLUMNS = (
    Column("worker", 16, 0, lambda worker: worker.name, grows=True),
    Column("host", 12, 7, lambda worker: worker.host),
    Column("pid", 7, 13, lambda worker: str(worker.pid), right=True),
    Column("device", 7, 5, _of_worker(lambda worker: worker.device or "-")),
    Column("critic", 10, 4, _of_worker(lambda worker: worker.critic.rpartition(":")[2])),
    Column("model", 18, 12, _of_worker(lambda worker: worker.model or "-")),
    Column("state", 7, 0, _state, style=lambda worker: _STATES.get(_state(worker), "")),
    Column("busy", 5, 1, _of_worker(lambda worker: percent(worker.busy)), right=True),
    Column("q/s", 6, 1, _of_worker(lambda worker: number(worker.queries_per_s)), right=True),
    Column("batch", 8, 3, _of_worker(_batch), right=True),
    Column("queries", 9, 9, _of_worker(lambda worker: f"{worker.queries:,}"), right=True),
    Column("failed", 6, 3, _of_worker(lambda worker: f"{worker.failures:,}"), right=True,
           style=lambda worker: "red" if isinstance(worker, Worker) and worker.failures else ""),
    Column("GPU GiB", 9, 6, _of_worker(_memory), right=True, style=_near_limit),
    Column("memory", 8, 8, _of_worker(lambda worker: size(worker.rss_bytes)), right=True),
    Column("jobs", 7, 11, _of_worker(lambda worker: f"{worker.jobs:,}"), right=True),
    Column("up", 6, 10, _of_worker(lambda worker: duration(worker.uptime_s)), right=True),
    Column("beat", 6, 2, _of_worker(lambda worker: duration(worker.silent_s)), right=True,
           style=lambda worker: "red" if _state(worker) == "lost" else ""),
    Column("last error", 40, 14, _of_worker(
        lambda worker: f"{_clock(worker.last_error_at)} {worker.last_error}" if worker.last_error else "")),
)  # fmt: skip

EPISODE_COLUMNS = (
    Column("episode", 18, 0, lambda episode: episode.id),
    Column("untouched", 9, 1, lambda episode: duration(episode.untouched_s), right=True,
           style=lambda episode: "yellow" if episode.untouched_s > 60 else ""),
    Column("expires", 8, 5, lambda episode: duration(episode.expires_s), right=True),
    Column("pushes", 6, 3, lambda episode: f"{episode.pushes:,}", right=True),
    Column("frames", 9, 2, lambda episode: size(episode.frame_bytes), right=True),
    Column("queries", 7, 4, lambda episode: f"{episode.queries:,}", right=True),
    Column("task", 24, 0, lambda episode: episode.task, grows=True),
)  # fmt: skip

FAILURE_COLUMNS = (
    Column("time", 8, 0, lambda failed: _clock(failed.at)),
    Column("worker", 16, 2, lambda failed: failed.worker),
    Column("episode", 14, 3, lambda failed: failed.episode),
    Column("query", 5, 1, lambda failed: failed.query),
    Column("frame", 5, 4, lambda failed: f"{failed.frame:,}", right=True),
    Column("task", 20, 5, lambda failed: failed.task),
    Column("error", 40, 0, lambda failed: failed.error, grows=True, style=lambda failed: "red"),
)

#: What workers may be sorted by, and how.
SORTS: dict[str, Callable[[Worker], Any]] = {
    "name": lambda worker: worker.name,
    "state": lambda worker: list(_STATES).index(worker.state) if worker.state in _STATES else -1,
    "busy": lambda worker: -(worker.busy or 0.0),
    "q/s": lambda worker: -(worker.queries_per_s or 0.0),
    "failed": lambda worker: -worker.failures,
    "GPU": lambda worker: -worker.accelerator_bytes,
    "beat": lambda worker: -worker.silent_s,
}


def columns_for(columns: Sequence[Column], width: int) -> list[tuple[Column, int]]:
    """Those columns that fit, by their rank, each with its width."""
    chosen: set[str] = set()
    left = width + 1
    for column in sorted(columns, key=lambda each: each.rank):
        if left < column.width + 1:
            break
        left -= column.width + 1
        chosen.add(column.title)
    # The one that grows needs no more than a long name does.
    return [(column, column.width + (left if column.grows else 0)) for column in columns if column.title in chosen]


def lines_of(
    columns: Sequence[Column], items: Sequence[Item], width: int, rows: int | None, scroll: int = 0
) -> list[Text]:
    """The table: a line of titles, and at most `rows` lines below it, the last telling what is left out."""
    shown = columns_for(columns, width)
    lines = [Text(" ".join(pad(column.title, room, right=column.right) for column, room in shown), "dim")]
    if rows is None or len(items) <= rows:
        visible, rest = items, 0
    else:
        scroll = max(0, min(scroll, len(items) - rows + 1))
        visible = items[scroll : scroll + rows - 1]
        rest = len(items) - scroll - len(visible)
    for item in visible:
        # One text with few spans: a table may have a thousand cells, a second.
        cells = [pad(column.text(item), room, right=column.right) for column, room in shown]
        line, start = Text(" ".join(cells)), 0
        for (column, _), cell in zip(shown, cells, strict=True):
            if style := column.style(item):
                line.stylize(style, start, start + len(cell))
            start += len(cell) + 1
        lines.append(line)
    if len(visible) < len(items):
        above = f"{scroll} above" if scroll else ""
        below = f"{rest} more below" if rest else ""
        lines.append(Text(", ".join(filter(None, (above, below))), "dim"))
    return lines
