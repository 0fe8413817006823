"""`vlac-queue episodes`: list them, or draw one; closing.py and marking.py have the other commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import redis
from msgspec import structs

from vlac_queue.commands.episodes import live, log
from vlac_queue.commands.episodes.closing import close
from vlac_queue.commands.episodes.marking import mark
from vlac_queue.commands.episodes.record import EpisodeRecord
from vlac_queue.commands.episodes.sheet import write_episode
from vlac_queue.console import connected, errors_as_messages, note, print_table, queue_options, writing
from vlac_queue.errors import RedisDenied
from vlac_queue.keys import Keys
from vlac_queue.plot import figure_class
from vlac_queue.reading import QueueReader
from vlac_queue.records import Episode
from vlac_queue.texts import clean, duration, many, size

_log_option = click.option(
    "--log",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="A decision log to look into, instead of Redis.",
)


@click.group(short_help="List, draw, mark and close episodes.")
def episodes() -> None:
    """Show episodes: those open on Redis, or those of a decision log (--log)."""


episodes.add_command(mark)
episodes.add_command(close)


@episodes.command("list")
@_log_option
@click.option(
    "--limit",
    type=click.IntRange(min=1, max=10_000),
    default=50,
    show_default=True,
    help="Show that many at most.",
)
@queue_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_episodes(folder: Path | None, limit: int, redis_url: str, queue: str, as_json: bool) -> None:
    """Show the episodes that are open, those used last first; of a log, those opened last.

    Changes nothing on Redis, and reads three round trips however many are open.
    """
    with errors_as_messages():
        if folder is not None:
            rows, count = _logged(folder, limit)
        else:
            with _reading(redis_url) as connection:
                found = QueueReader(connection, Keys(queue)).episodes(limit)
            rows, count = [_open_row(episode) for episode in found.untouched], found.open
    if as_json:
        click.echo(json.dumps({"count": count, "episodes": rows}, indent=2))
        return
    if rows:
        shown = (
            ("pushes", "size", "asked", "expires") if folder is None else ("frames", "asked", "done at", "value")
        )
        cells = _cells_open if folder is None else _cells_logged
        table = [(clean(row["id"]), clean(row["task"]), *cells(row)) for row in rows]
        print_table(("episode", "task", *shown), table, texts=2)
    of = "" if len(rows) == count else f" ({len(rows)} shown; --limit shows more)"
    where = f"in {folder}" if folder is not None else f"open on queue {queue!r}"
    click.echo(f"{many(count, 'episode')} {where}{of}")


@episodes.command()
@click.argument("episode", metavar="ID")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="PNG file to write.",
)
@_log_option
@queue_options
def show(episode: str, out: Path, folder: Path | None, redis_url: str, queue: str) -> None:
    """Draw an episode: frames with their done scores, the value curve and the done curve (needs matplotlib).

    The beginning of ID is enough where only one episode has it. Long episodes are drawn by 40 frames, evenly
    chosen: the first, the last and the one that was found done are always among them. A green border marks what
    the critic found done, a brown one the end without it.
    """
    with errors_as_messages():
        figure_class()  # better missed now than after the work
        episode = episode.removesuffix("..")  # as copied from a dashboard, which cuts ids so
        if folder is not None:
            record = log.find_episode(folder, episode, note)
            shown, count = _draw(record, partial(log.read_batches, record, note), out)
        else:
            keys = Keys(queue)
            with _reading(redis_url) as connection:
                episode = live.find_episode(connection, keys, episode)
                record = live.read_episode(connection, keys, episode)
                shown, count = _draw(record, partial(live.read_batches, connection, keys, episode), out)
    click.echo(f"Written: {out} ({shown} of {many(count, 'frame')})")


@contextmanager
def _reading(redis_url: str) -> Iterator[redis.Redis]:
    try:
        with connected(redis_url) as connection:
            yield connection
    except RedisDenied as error:
        raise RedisDenied(
            f"{error} `episodes list` needs the rights of vlac-dashboard (with Redis 7 or newer), `episodes show` "
            "those of vlac-worker."
        ) from None


def _draw(record: EpisodeRecord, batches: Callable[[], Any], out: Path) -> tuple[int, int]:
    with writing(out, "-o"):
        return write_episode(record, batches, out)


def _logged(folder: Path, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Return the episodes opened last, and how many there are."""
    newest, count = log.read_newest(folder, limit, note)
    return [_row(record) for record in newest], count


def _open_row(episode: Episode) -> dict[str, Any]:
    return {
        "id": episode.id,
        "task": episode.task,
        "batches": episode.pushes,
        "bytes": episode.frame_bytes,
        "queries": episode.queries,
        "expires_s": episode.expires_s,
    }


def _row(record: EpisodeRecord) -> dict[str, Any]:
    value = record.value
    return {
        "id": record.id,
        "task": record.task,
        "opened": record.opened,
        "frames": record.frames,
        "queries": len(record.asked),
        "first_done": record.first_done,
        "value": value.values[-1] if value else None,
        "failures": len(record.failures),
        "truth": record.truth if record.truth_known else "unknown",
        "mark": record.mark.success if record.mark else None,
        "critics": [structs.asdict(critic) for critic in record.critics],
    }


def _cells_open(row: dict[str, Any]) -> tuple[str, ...]:
    return f"{row['batches']:,}", size(row["bytes"]), f"{row['queries']:,}", duration(row["expires_s"])


def _cells_logged(row: dict[str, Any]) -> tuple[str, ...]:
    frames = "-" if row["frames"] is None else f"{row['frames']:,}"
    done = "-" if row["first_done"] is None else str(row["first_done"])
    return frames, f"{row['queries']:,}", done, "-" if row["value"] is None else f"{row['value']:.1f}"
