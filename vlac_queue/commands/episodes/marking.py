"""`vlac-queue episodes mark`: a person says which logged episodes succeeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click

from vlac_queue.commands.episodes import log
from vlac_queue.commands.episodes.marks import add_mark
from vlac_queue.commands.episodes.record import EpisodeRecord
from vlac_queue.commands.episodes.sheet import write_episode
from vlac_queue.console import errors_as_messages, note, writing
from vlac_queue.errors import FrameError, ProtocolError
from vlac_queue.files import replacing
from vlac_queue.plot import figure_class
from vlac_queue.texts import clean, many

#: The picture that shows the episode asked about, in the log's folder.
_PICTURE = "marking.png"
_KEYS = {"s": "success", "f": "failure", " ": "passed over"}


@click.command()
@click.argument("episode", metavar="ID", required=False)
@click.argument("verdict", type=click.Choice(["success", "failure"]), required=False)
@click.option(
    "--log",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="The decision log.",
)
@click.option("--frame", type=click.IntRange(min=0), help="The first frame in which the task is done.")
@click.option(
    "--all", "each", is_flag=True, help="Go through all that have neither a mark nor a simulator's word."
)
@click.option("--open/--no-open", "shown", default=True, show_default=True, help="Open the picture of --all.")
def mark(
    episode: str | None, verdict: str | None, folder: Path, frame: int | None, each: bool, shown: bool
) -> None:
    """Say whether a logged episode succeeded, for `vlac-queue calibrate` and `vlac-queue export`.

    Kept in marks.jsonl beside the log's folders; the last word on an episode counts, and counts more than a
    simulator's. The beginning of ID is enough where only one episode has it.

    With --all each episode is drawn to marking.png in the log's folder, and a key says what it is: s success,
    f failure, space pass it over, q end.
    """
    if each and (episode is not None or frame is not None):
        raise click.UsageError("--all goes through all: give it neither an ID nor --frame.")
    if not each and (episode is None or verdict is None):
        raise click.UsageError("give an ID and success or failure, or --all.")
    if frame is not None and verdict == "failure":
        raise click.UsageError("--frame is the first frame that is done, and a failure has none.")
    with errors_as_messages():
        if episode is None:
            _mark_all(folder, shown)
            return
        record = log.find_episode(folder, episode.removesuffix(".."), note)
        if frame is not None and record.frames is not None and frame >= record.frames:
            raise FrameError(
                f"episode {record.id!r} has no frame {frame}: it has {many(record.frames, 'frame')}, from 0 on."
            )
        with writing(folder, "--log"):
            add_mark(folder, record.id, record.token, verdict == "success", frame)
    click.echo(f"{record.id}: {verdict}")


def _mark_all(folder: Path, shown: bool) -> None:
    figure_class()  # better missed now than after the work
    total = sum(1 for _ in _open_ones(folder))
    if not total:
        click.echo("every episode has a mark, or a simulator's word")
        return
    picture, given = folder / _PICTURE, Counter[str]()
    click.echo(f"{many(total, 'episode')}; s success, f failure, space pass over, q end. Look at {picture}")
    for number, record in enumerate(_open_ones(folder), 1):
        try:
            with writing(picture, "--log"), replacing(picture) as whole:
                write_episode(record, partial(log.read_batches, record, note), whole)
        except FrameError as error:
            note(f"{record.id}: {error}")
            continue
        if shown and number == 1:
            click.launch(str(picture))
        click.echo(f"{number} of {total}  {clean(record.id)}  {clean(record.task)}  ", nl=False)
        key = _key()
        click.echo(_KEYS.get(key, "ended"))
        if key == "q":
            break
        if key != " ":
            with writing(folder, "--log"):
                add_mark(folder, record.id, record.token, key == "s")
        given[_KEYS[key]] += 1
    click.echo(", ".join(f"{count} {name}" for name, count in given.items()) or "nothing was marked")


def _open_ones(folder: Path) -> Iterator[EpisodeRecord]:
    """Yield the episodes of which nobody has said whether they succeeded."""
    try:
        for record in log.read_log(folder, lambda text: None):
            if record.mark is None and not record.truth_known and record.frames != 0:
                yield record
    except ProtocolError as error:
        raise ProtocolError(f"{error} What was marked so far is kept.") from None


def _key() -> str:
    """Wait for a key that means something, and return it; Ctrl-D is an end, too."""
    try:
        while (key := click.getchar()) not in (*_KEYS, "q"):
            pass
    except EOFError:
        return "q"
    except OSError as error:
        raise RuntimeError(f"--all takes keys from a terminal, and there is none ({error.strerror}).") from None
    return key
