"""What the commands share: options, a connection, errors as sentences, tables and progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

import click
import redis
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from vlac_queue.connection import connect
from vlac_queue.credentials import with_credentials
from vlac_queue.errors import VlacQueueError
from vlac_queue.faults import redis_errors
from vlac_queue.texts import clean

Command = TypeVar("Command", bound=Callable[..., Any])

redis_url_option = click.option(
    "--redis-url",
    envvar=["VLAC_REDIS_URL", "RQ_REDIS_URL"],
    default="redis://localhost:6379/0",
    # Not show_default: with an environment variable set, click would print the password in it.
    help="Redis to use.  [env: VLAC_REDIS_URL, RQ_REDIS_URL; default: redis://localhost:6379/0]",
)
queue_option = click.option("--queue", envvar="VLAC_QUEUE", default="vlac", show_default=True, help="RQ queue.")


def queue_options(command: Command) -> Command:
    """Give a command the options --redis-url and --queue."""
    return redis_url_option(queue_option(command))


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Show our errors, missing extras and unusable values as one sentence with exit code 1."""
    try:
        yield
    except (VlacQueueError, ImportError, RuntimeError, ValueError) as error:
        raise click.ClickException(_shown(error)) from error


def _shown(text: object) -> str:
    """Return a message fit for a terminal: it may repeat what stands in a file or on Redis."""
    return clean(text, 100_000, keep="\n")


class _NotWritten(click.ClickException):
    exit_code = 2


@contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """Show that a file or folder can't be written as one sentence that names the option, with exit code 2."""
    try:
        yield
    except OSError as error:
        reason = f"can't write to {path} ({error.strerror or error}); choose another {option}."
        raise _NotWritten(_shown(reason)) from error


@contextmanager
def connected(redis_url: str, user: str = "") -> Iterator[redis.Redis]:
    """Connect to Redis with the user and password of the environment, and have its errors raised as ours.

    Args:
        user: the one of `vlac-queue acl` that may do what the command does, for messages; "" for any.
    """
    url = with_credentials(redis_url)
    with redis_errors(url, user), connect(url) as connection:
        yield connection


def note(text: str) -> None:
    """Say on stderr what is worth knowing and no error."""
    click.echo(f"note: {_shown(text)}", err=True)


def plain_table(**options: Any) -> Table:
    """Return a table with a line below its headers and no others."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), **options)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> None:
    """Print a table whose first `texts` columns are texts and the others numbers.

    Where the terminal is narrow the last text is cut, down to 12 characters, and nothing else: longer lines
    wrap.
    """
    console = Console()
    widths = [max(cell_len(row[place]) for row in (headers, *rows)) for place in range(len(headers))]
    others = sum(widths[: texts - 1]) + sum(widths[texts:]) + 2 * (len(headers) - 1)
    room = max(12, console.width - others)
    console = Console(width=max(console.width, others + min(room, widths[texts - 1])))
    table = plain_table()
    for place, header in enumerate(headers):
        least = None if place == texts - 1 else widths[place]
        table.add_column(header, justify="left" if place < texts else "right", no_wrap=True, min_width=least)
    for row in rows:
        cells = list(row)
        if cell_len(cells[texts - 1]) > room:
            cells[texts - 1] = set_cell_size(cells[texts - 1], room - 2).rstrip() + ".."
        table.add_row(*map(escape, cells))
    console.print(table, soft_wrap=True)


def progress_bar(unit: str = "", *, left: bool = False) -> Progress:
    """Return a bar on stderr that counts `unit`, with the time that it took, or that is `left`.

    There is none where nothing can be redrawn.
    """
    console = Console(stderr=True)
    counts = (MofNCompleteColumn(), TextColumn(unit)) if unit else (MofNCompleteColumn(),)
    times = (TimeRemainingColumn(), TextColumn("left")) if left else (TimeElapsedColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, *times)
    return Progress(*columns, console=console, transient=True, disable=not _redraws(console))


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say on stderr what takes some seconds: a line that goes again, or stays where nothing can be redrawn."""
    console = Console(stderr=True)
    if _redraws(console):
        # The usual spinner is of Braille.
        spinner = "dots" if console.encoding.startswith("utf") else "line"
        with console.status(what, spinner=spinner):
            yield
    else:
        click.echo(f"{what} ...", err=True)
        yield


def _redraws(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal


def replace_what_can_not_be_shown() -> None:
    """Have letters that the terminal's encoding lacks written as question marks, and not end the program."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
