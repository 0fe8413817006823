"""`python -m dashboards.live`: the queue in a terminal, refreshed every second.

It only reads from Redis. Run it as often and wherever you like; Ctrl-C ends it.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dashboards.snapshot import CriticState, PlainWorker, Snapshot, read_snapshot
from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.credentials import with_credentials
from vlac_queue.errors import ConfigError
from vlac_queue.keys import Keys

#: Seconds until a silent Redis counts as away; shorter than elsewhere, since somebody looks at the screen.
_TIMEOUT_S = 2.0
#: Seconds of queries/s that the chart shows, at least.
CHART_S = 300.0
_CHART_ROWS = 3
#: Lines that the frame takes besides the rows of its table: header, panels, chart, the table's own, footer.
_FIXED_LINES = 1 + 6 + _CHART_ROWS + 2 + 3 + 1
_BLOCKS, _ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_STATE_STYLES = {"busy": "green", "loading": "yellow", "silent": "yellow", "gone": "red", "no critic": "yellow"}


@dataclass(frozen=True)
class View:
    """What one frame shows.

    Attributes:
        url: Redis, without password.
        queue: the queue's name.
        interval_s: seconds between two looks.
        snapshot: what the last look saw, or None where it failed.
        error: why it failed, or "".
        rates: (seconds on a steady clock, queries/s) of the looks so far.
    """

    url: str
    queue: str
    interval_s: float
    snapshot: Snapshot | None
    error: str = ""
    rates: Sequence[tuple[float, float]] = ()


class Watcher:
    """Looks at the queue again and again, and remembers what rates and chart need."""

    def __init__(self, config: VlacConfig, interval_s: float) -> None:
        """
        Raises:
            ConfigError: the URL can't be parsed.
        """
        self._url = redact_url(config.redis_url)
        self._keys = Keys(config.queue)
        self._interval_s = interval_s
        self._previous: Snapshot | None = None
        self._rates: deque[tuple[float, float]] = deque(maxlen=4096)
        try:
            # One more try right away: the server closes idle connections, and they all break with a restart.
            self._connection = redis.Redis.from_url(
                config.redis_url,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),
            )
        except ValueError as error:
            raise ConfigError(f"Redis URL {self._url} can't be used: {error}") from None

    def look(self) -> View:
        """The queue now; a failure is part of the view."""
        snapshot, error = None, ""
        url = self._url
        try:
            snapshot = read_snapshot(self._connection, self._keys, self._previous)
        except redis.exceptions.AuthenticationError as failure:
            error = f"Redis at {url} refused the password ({_reason(failure)}); correct --redis-url"
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as failure:
            error = f"Redis at {url} can't be reached ({_reason(failure)})"
        except redis.exceptions.RedisError as failure:
            error = f"Redis at {url} refused to be read ({_reason(failure)})"
        if snapshot is not None:
            self._previous = snapshot
            if snapshot.queries_per_s is not None:
                self._rates.append((time.monotonic(), snapshot.queries_per_s))
        return View(url, self._keys.queue, self._interval_s, snapshot, error, tuple(self._rates))


@click.command()
@click.option(
    "--redis-url",
    envvar=["VLAC_REDIS_URL", "RQ_REDIS_URL"],
    default="redis://localhost:6379/0",
    help="Redis to look at; VLAC_REDIS_URL or RQ_REDIS_URL where not given, else redis://localhost:6379/0.",
)
@click.option("--queue", envvar="VLAC_QUEUE", default="vlac", help="RQ queue to look at (default vlac).")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between two looks; workers report every second.",
)
@click.option("--once", is_flag=True, help="Print one frame and exit; 1 where Redis can't be reached.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a look instead of a picture.")
def main(redis_url: str, queue: str, interval: float, once: bool, as_json: bool) -> None:
    """Shows the queue, its workers and what they do. Only reads from Redis; Ctrl-C ends it."""
    try:
        watcher = Watcher(VlacConfig(redis_url=with_credentials(redis_url), queue=queue), interval)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    # Ending in order gives the terminal back as it was.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    try:
        if once:
            _show_once(watcher, console, as_json)
        elif as_json:
            _print_each(watcher, interval)
        else:
            _show(watcher, console, interval)
    except KeyboardInterrupt:
        pass


def _show_once(watcher: Watcher, console: Console, as_json: bool) -> None:
    view = watcher.look()
    if view.snapshot is None:
        raise click.ClickException(f"{view.error}.")
    if as_json:
        click.echo(json.dumps(asdict(view.snapshot)))
    else:
        console.print(frame(view, console.width, blocks=_blocks(console)))


def _print_each(watcher: Watcher, interval_s: float) -> None:
    while True:
        view = watcher.look()
        click.echo(json.dumps(asdict(view.snapshot) if view.snapshot else {"error": view.error}))
        time.sleep(interval_s)


def _show(watcher: Watcher, console: Console, interval_s: float) -> None:
    if not console.is_terminal or console.is_dumb_terminal:
        while True:
            console.print(frame(watcher.look(), console.width, blocks=_blocks(console)))
            time.sleep(interval_s)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            view = watcher.look()
            next_look = time.monotonic() + interval_s
            drawn_for = None
            while (left_s := next_look - time.monotonic()) > 0:
                if console.size != drawn_for:  # right after a look, and whenever the window changes
                    drawn_for = console.size
                    picture = frame(view, drawn_for.width, drawn_for.height, blocks=_blocks(console))
                    live.update(picture, refresh=True)
                time.sleep(min(0.25, left_s))


def _reason(failure: Exception) -> str:
    return str(failure).rstrip(". ") or type(failure).__name__


def _blocks(console: Console) -> str:
    return _BLOCKS if console.encoding.lower().startswith("utf") else _ASCII_BLOCKS


# The picture: pure functions of a view.


def frame(view: View, width: int, height: int | None = None, *, blocks: str = _BLOCKS) -> RenderableType:
    """One picture of the queue.

    Args:
        view: what to show.
        width: columns of the terminal; 80 or more look tidy.
        height: its lines, 24 or more; None shows every worker however many there are.
        blocks: nine characters from empty to full, for the chart.
    """
    snapshot = view.snapshot
    if snapshot is None:
        message = Text(f"{view.error}; retrying every {view.interval_s:g} s.", style="red")
        return Group(_header(view, width), Panel(message, box=box.ROUNDED, border_style="red"))
    rows = None if height is None else max(1, height - _FIXED_LINES)
    parts: list[RenderableType] = [_header(view, width), _panels(snapshot), _chart(view, width, blocks)]
    if snapshot.listening:
        parts.append(_workers(snapshot, width, rows))
    else:
        parts.append(_no_workers(view, snapshot))
    if height is not None:
        parts.append(Text("Ctrl-C ends it; nothing here changes Redis.", style="dim"))
    return Group(*parts)


def _status(view: View) -> tuple[str, str]:
    """What the queue is at, in a few words, and their style."""
    snapshot = view.snapshot
    if snapshot is None:
        return "Redis is away", "bold red"
    if not snapshot.listening:
        return "no workers", "bold red"
    states = {critic.state for critic in snapshot.critics if critic.state != "gone"}
    if states == {"loading"}:
        return "loading the critic", "bold yellow"
    if snapshot.queue.waiting or snapshot.queue.taken or "busy" in states or snapshot.queries_per_s:
        return "working", "bold green"
    if snapshot.queue.episodes:
        return "waiting for queries", "bold green"
    return "the queue is empty", "bold green"


def _header(view: View, width: int) -> Table:
    status, style = _status(view)
    header = Table.grid(expand=True)
    header.add_column(no_wrap=True, overflow="crop", ratio=1)
    header.add_column(no_wrap=True, justify="right")
    clock = time.strftime("%H:%M:%S")
    where = f"queue {view.queue} at {view.url}"
    room = width - len(status) - len(clock) - 4
    header.add_row(Text(elide(where, room), style="bold"), Text.assemble((status, style), "  ", (clock, "dim")))
    return header


def _panels(snapshot: Snapshot) -> Table:
    server, queue, critics = snapshot.redis, snapshot.queue, snapshot.critics
    limit = f" of {size(server.max_bytes)}" if server.max_bytes else ""
    live = [critic for critic in critics if critic.state != "gone"]
    oldest = f", {duration(queue.oldest_s)}" if queue.oldest_s is not None else ""
    queries, failures = sum(c.queries for c in live), sum(c.failures for c in live)
    busy = sum(critic.busy for critic in live) / len(live) if live else 0.0
    columns = [
        _panel(
            "Queue",
            [
                (
                    "waiting",
                    f"{many(queue.waiting, 'job')}{oldest}",
                    "yellow" if (queue.oldest_s or 0) > 10 else "",
                ),
                ("taken", many(queue.taken, "job"), ""),
                ("failed", many(queue.failed, "job"), "red" if queue.failed else ""),
                ("episodes", f"{queue.episodes:,}, {size(queue.frame_bytes)}", ""),
            ],
        ),
        _panel(
            "Critics",
            [
                ("workers", _count_workers(snapshot), "" if snapshot.listening else "red"),
                ("queries", f"{queries:,}", ""),
                ("failed", f"{failures:,}", "red" if failures else ""),
                ("busy", f"{busy:.0%}", ""),
            ],
        ),
        _panel(
            "Redis",
            [
                ("version", server.version, ""),
                ("memory", f"{size(server.used_bytes)}{limit}", _memory_style(snapshot)),
                ("policy", server.policy, "red" if server.may_evict else ""),
                ("clients", f"{server.clients:,}", ""),
            ],
        ),
    ]
    panels = Table.grid(expand=True)
    for _ in columns:
        panels.add_column(ratio=1)
    panels.add_row(*columns)
    return panels


def _panel(title: str, lines: Sequence[tuple[str, str, str]]) -> Panel:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(no_wrap=True, overflow="crop")
    for name, value, style in lines:
        grid.add_row(name, Text(value, style=style))
    return Panel(grid, title=title, title_align="left", box=box.ROUNDED, border_style="dim")


def _count_workers(snapshot: Snapshot) -> str:
    """Such as "3, 1 without critic"."""
    return f"{snapshot.listening}" + (f", {len(snapshot.plain)} no critic" if snapshot.plain else "")


def _memory_style(snapshot: Snapshot) -> str:
    server = snapshot.redis
    return "red" if server.max_bytes and server.used_bytes > 0.9 * server.max_bytes else ""


def _chart(view: View, width: int, blocks: str) -> Panel:
    columns = max(10, width - 4)
    # Wider than the time between two looks, so that no column stays empty in between.
    column_s = max(CHART_S / columns, 1.5 * view.interval_s)
    values = bins(view.rates, columns, column_s)
    lines = bars(values, _CHART_ROWS, blocks)
    now = view.snapshot.queries_per_s if view.snapshot else None
    most = max((value for value in values if value is not None), default=None)
    title = f"Queries/s: {number(now)} now, {number(most)} at most in {duration(columns * column_s)}"
    text = Text("\n".join(lines), style="green", no_wrap=True, overflow="crop")
    return Panel(text, title=title, title_align="left", box=box.ROUNDED, border_style="dim")


def bins(rates: Sequence[tuple[float, float]], count: int, bin_s: float) -> list[float | None]:
    """Means of `rates` (seconds, value) in `count` spans of `bin_s` seconds, the newest last; None where empty."""
    if not rates:
        return [None] * count
    # Spans begin at multiples of bin_s, so that bars move on and never change.
    last = math.floor(rates[-1][0] / bin_s)
    spans: list[list[float]] = [[] for _ in range(count)]
    for when, value in rates:
        index = count - 1 - (last - math.floor(when / bin_s))
        if 0 <= index < count:
            spans[index].append(value)
    return [sum(span) / len(span) if span else None for span in spans]


def bars(values: Sequence[float | None], rows: int, blocks: str = _BLOCKS) -> list[str]:
    """A bar chart of `rows` lines, one column a value; the largest fills it, and any above 0 can be seen."""
    levels = len(blocks) - 1
    most = max((value for value in values if value is not None), default=0.0)
    heights = [
        max(1, round(value / most * rows * levels)) if value is not None and value > 0 else 0 for value in values
    ]
    return [
        "".join(blocks[min(levels, max(0, height - row * levels))] for height in heights)
        for row in reversed(range(rows))
    ]


def _no_workers(view: View, snapshot: Snapshot) -> Panel:
    gone = [critic for critic in snapshot.critics if critic.state == "gone"]
    text = Text(f"No worker listens on the queue {view.queue!r}. Start one where the critic should run:\n\n")
    text.append(f"  RQ_REDIS_URL={view.url} \\\n", style="bold")
    text.append(f"  RQ_WORKER_CLASS=workers.CriticWorker rq worker {view.queue} --with-scheduler", style="bold")
    if gone:
        jobs = many(sum(critic.taken for critic in gone), "job")
        text.append(f"\n\n{jobs} of workers that died wait for it too.", style="red")
    return Panel(text, box=box.ROUNDED, border_style="red")


@dataclass(frozen=True)
class _Column:
    """A column of the workers' table: its title, its width, and which is left out first (the highest)."""

    title: str
    width: int
    rank: int
    right: bool = True


_NAME_WIDTH = 20
_COLUMNS = (
    _Column("host", 14, 9, right=False),
    _Column("pid", 7, 10),
    _Column("critic", 9, 2, right=False),
    _Column("state", 9, 0, right=False),
    _Column("up", 6, 7),
    _Column("busy", 4, 0),
    _Column("q/s", 6, 1),
    _Column("queries", 8, 4),
    _Column("jobs", 7, 8),
    _Column("failed", 6, 3),
    _Column("batch", 5, 2),
    _Column("memory", 8, 5),
    _Column("GPU", 8, 6),
)


def _workers(snapshot: Snapshot, width: int, rows: int | None) -> Panel:
    columns = _columns_for(width - 4)
    name_width = max(_NAME_WIDTH, width - 4 - sum(column.width + 1 for column in columns))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True, expand=True)
    table.add_column("worker", no_wrap=True, ratio=1, overflow="crop", header_style="dim")
    for column in columns:
        table.add_column(
            column.title,
            width=column.width,
            no_wrap=True,
            overflow="crop",
            justify="right" if column.right else "left",
            header_style="dim",
        )
    workers: list[CriticState | PlainWorker] = [*snapshot.critics, *snapshot.plain]
    # The last line says how many are left out.
    shown = workers if rows is None or len(workers) <= rows else workers[: rows - 1]
    for worker in shown:
        cells = _plain_cells(worker) if isinstance(worker, PlainWorker) else _critic_cells(worker)
        table.add_row(
            Text(elide(worker.name, name_width)),
            *(
                Text(
                    elide(cells.get(column.title, ""), column.width),
                    style=_STATE_STYLES.get(cells["state"], "") if column.title == "state" else "",
                )
                for column in columns
            ),
        )
    if len(shown) < len(workers):
        table.add_row(Text(f"and {len(workers) - len(shown)} more", style="dim"))
    return Panel(table, title="Workers", title_align="left", box=box.ROUNDED, border_style="dim")


def _columns_for(width: int) -> list[_Column]:
    """Those columns that fit beside the name, by their rank."""
    chosen: set[str] = set()
    left = width - _NAME_WIDTH
    for column in sorted(_COLUMNS, key=lambda each: each.rank):
        left -= column.width + 1
        if left < 0:
            break
        chosen.add(column.title)
    return [column for column in _COLUMNS if column.title in chosen]


def _critic_cells(critic: CriticState) -> dict[str, str]:
    if critic.state == "gone":
        return {"state": "gone", "jobs": f"{critic.taken:,}"}
    return {
        "host": critic.host,
        "pid": str(critic.pid),
        "critic": critic.critic,
        "state": critic.state,
        "up": duration(critic.uptime_s),
        "busy": f"{critic.busy:.0%}",
        "q/s": number(critic.queries_per_s),
        "queries": f"{critic.queries:,}",
        "jobs": f"{critic.jobs:,}",
        "failed": f"{critic.failures:,}",
        "batch": number(critic.mean_batch),
        "memory": size(critic.rss_bytes),
        "GPU": size(critic.accelerator_bytes) if critic.accelerator_bytes else "-",
    }


def _plain_cells(worker: PlainWorker) -> dict[str, str]:
    return {"host": worker.host, "pid": str(worker.pid), "state": "no critic", "critic": "-"}


# Texts.


def elide(text: str, width: int) -> str:
    """The text, cut to `width` characters; two dots show that it was."""
    return text if len(text) <= width else text[: max(0, width - 2)] + ".."[: max(0, width)]


def size(count: float) -> str:
    """Bytes for people: "512 B", "1.2 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds for people: "0.4 s", "42 s", "5 min", "3.2 h", "12 d"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} d"


def number(value: float | None) -> str:
    """A rate for people: "-" where unknown, one decimal below 1,000."""
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 999.95 else f"{value:,.0f}"


def many(count: int, noun: str) -> str:
    """ "1 job", "2,000 jobs"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


if __name__ == "__main__":
    main(prog_name="python -m dashboards.live")
