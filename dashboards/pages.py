"""The dashboard's pages: pure functions from a View to lines of text, each as wide as the terminal or less.

The file is long since all pages stand here, and share their rows and columns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from rich.text import Text

from dashboards.charts import ASCII_BLOCKS, BLOCKS, bars, bins, gauge
from dashboards.diagnosis import Diagnosis
from dashboards.frame import Frame, ascii_only, elide, fit
from dashboards.history import Series
from dashboards.snapshot import Look, Snapshot
from dashboards.tables import EPISODE_COLUMNS, FAILURE_COLUMNS, SORTS, WORKER_COLUMNS, Column, Item, lines_of
from vlac_queue.control import TRY_OUT, start_line
from vlac_queue.metrics import PHASES
from vlac_queue.texts import duration, latency, many, number, percent, size

Page = Literal["overview", "workers", "episodes", "failures", "help"]
#: Seconds that charts show, at least.
CHART_S = 300.0
#: Columns from which on the overview has three blocks.
_THREE_BLOCKS = 150
#: Lines from which on charts are taller than one.
_TALL = 40
#: Lines below the workers from which on the last failures are shown there.
_ROOM = 6

_SEVERITY = {"bad": (" BAD ", "bold white on red"), "warning": (" WARN ", "black on yellow"),
             "ok": (" OK ", "black on green")}  # fmt: skip
_KEYS = {
    "overview": "q quit  p pause  s sort  w workers  e episodes  f failures  ? help",
    "workers": "q quit  p pause  s sort  o overview  e episodes  f failures  ? help",
    "episodes": "q quit  p pause  o overview  w workers  f failures  ? help",
    "failures": "q quit  p pause  o overview  w workers  e episodes  ? help",
    "help": "q quit  o overview  w workers  e episodes  f failures",
}
_HELP = """\
q or Ctrl-C   quit               p   pause: the picture stands still
o or Esc      overview           s   sort workers by the next column
w             all workers        arrows, PgUp, PgDn, Home, End: move through
e             open episodes          a long list
f             failed queries     ?   this page

BAD    answers do not come, come wrong, or soon will: --json exits with 1
WARN   works, and could be better     OK      nothing to do

busy      part of the last 10 s for which a worker's critic worked
q/s       queries answered a second, over the last 10 s
batch     queries in a call of the critic, of max_batch
latency   of the last minute: waiting in the queue, decoding of frames, the
          critic's work, writing answers; total is from asking to the answer
lost      no beat for 3 s: it died, or can't reach Redis
value     mean reward, 0..1, of episodes that were never found done

The dashboard only reads from Redis; docs/dashboard.md tells the rest."""


@dataclass(frozen=True)
class View:
    """What one picture shows.

    Attributes:
        url, queue: Redis, without password, and the queue's name.
        look: the last look.
        diagnoses: of it, the worst first.
        interval_s: seconds between two looks; 0: there is only this one.
        series: what the charts show.
        page: which page.
        sort: one of SORTS.
        scroll: lines of the page's list that are above the screen.
        note: such as "paused" or "replay 4x", or "".
        ascii: whether the terminal knows no more than ASCII.
    """

    url: str
    queue: str
    look: Look
    diagnoses: Sequence[Diagnosis]
    interval_s: float = 1.0
    series: Series = field(default_factory=Series)
    page: Page = "overview"
    sort: str = "name"
    scroll: int = 0
    note: str = ""
    ascii: bool = False


def page(view: View, width: int, height: int | None = None) -> list[Text]:
    """The lines of one picture.

    Args:
        view: what to show.
        width: columns of the terminal; 80 or more look tidy.
        height: its lines, 24 or more; None shows all of every list.
    """
    frame = Frame(width, ascii_only=view.ascii)
    head = [
        _header(view, width),
        *_diagnosis_lines(view, width, 3 if height is None or height >= _TALL - 10 else 1),
    ]
    rows = None if height is None else max(1, height - len(head) - 1)
    if view.page == "help":
        body = [frame.top("Help"), *(frame.row(Text(line)) for line in _HELP.splitlines())]
    elif view.look.snapshot is None:
        body = [frame.top("Redis"), *(frame.row(line) for line in _away(view, frame.inner))]
    elif view.page == "overview":
        body = _overview(view, view.look.snapshot, frame, rows)
    else:
        body = _list(view, view.look.snapshot, frame, rows)
    if rows is not None:
        body = body[:rows] + [frame.row(Text())] * (rows - len(body))
    lines = [*head, *body, frame.bottom(_KEYS[view.page] if height is not None else "")]
    return [fit(ascii_only(line) if view.ascii else line, width) for line in lines]


def listed(view: View) -> int:
    """Lines of the list on the view's page; for scrolling."""
    snapshot = view.look.snapshot
    if snapshot is None:
        return 0
    return {
        "workers": len(snapshot.workers) + len(snapshot.plain),
        "episodes": len(snapshot.episodes.untouched),
        "failures": len(snapshot.failed),
    }.get(view.page, 0)


# The head.


def _header(view: View, width: int) -> Text:
    clock = datetime.fromtimestamp(view.look.at).strftime("%H:%M:%S")
    right = Text.assemble((f"{view.note}  " if view.note else "", "bold yellow"), (clock, "dim"))
    where = f"queue {view.queue} at {view.url}"
    room = width - right.cell_len - 2
    return Text.assemble(fit(Text(elide(where, room), "bold"), room), "  ", right)


def _diagnosis_lines(view: View, width: int, most: int) -> list[Text]:
    """The first diagnosis, and where there is room those after it that call for something."""
    further = [diagnosis for diagnosis in view.diagnoses[1:] if diagnosis.severity != "ok"]
    shown = [view.diagnoses[0], *further[: most - 1]]
    left_out = len(further) + 1 - len(shown)
    also = f" (+{left_out})" if left_out else ""
    lines = []
    for diagnosis in shown:
        label, style = _SEVERITY[diagnosis.severity]
        room = width - len(label) - 1 - len(also)
        lines.append(Text.assemble((label, style), " ", (elide(diagnosis.sentence, room), "bold")))
    lines[-1].append(also, "dim")
    return lines


def _away(view: View, width: int) -> list[Text]:
    error = [Text(line, "red") for line in textwrap.wrap(view.look.error, width)]
    again = [Text(), Text(f"Trying again every {view.interval_s:g} s.")] if view.interval_s else []
    return [Text(), *error, *again]


# The overview.


def _overview(view: View, snapshot: Snapshot, frame: Frame, rows: int | None) -> list[Text]:
    tall = rows is not None and rows >= _TALL
    wide = frame.inner >= _THREE_BLOCKS - 4
    right = 31 if frame.inner < 100 else 40
    left = frame.inner - right - 3
    times = _latency(snapshot, right)
    if wide:
        third = frame.inner - right - 3
        left, third = third // 2 - 1, third - third // 2 - 2
        blocks = frame.beside(
            [
                (_flow(view, snapshot, left, 3 if tall else 1), left),
                (times, right),
                (_server(snapshot, third), third),
            ]
        )
        body = [frame.top("Queue"), *blocks]
    else:
        body = [
            frame.top("Queue", "latency of the last minute"),
            *frame.beside([(_flow(view, snapshot, left, 3 if tall else 1), left), (times, right)]),
            frame.rule("Redis, training"),
            *(frame.row(line) for line in _server(snapshot, frame.inner)),
        ]
    left_over = None if rows is None else max(2, rows - len(body))
    if snapshot.workers or snapshot.plain:
        body += _workers(view, snapshot, frame, left_over, 0, frame.rule)
        room = 0 if rows is None else rows - len(body)
        if snapshot.failed and room > _ROOM:
            lines = lines_of(FAILURE_COLUMNS, snapshot.failed, frame.inner, room - 2)
            body += [frame.rule("Failures"), *map(frame.row, lines)]
        return body
    return [*body, frame.rule("Workers"), *map(frame.row, _no_workers(view, frame.inner))]


def _flow(view: View, snapshot: Snapshot, width: int, chart_rows: int) -> list[Text]:
    queue, rates, episodes = snapshot.queue, snapshot.rates, snapshot.episodes
    oldest = f" ({latency(queue.oldest_s)})" if queue.oldest_s is not None else ""
    failed = f", {queue.failed:,} failed" if queue.failed else ""
    most = max((worker.max_batch for worker in snapshot.alive), default=0)
    fill = f", {number(rates.mean_batch)} of {most} a batch" if rates.mean_batch is not None else ""
    limit = f" of {size(episodes.limit_bytes)}" if episodes.limit_bytes else ""
    waits = "yellow" if (queue.oldest_s or 0.0) > 10 else ""
    return [
        _named("jobs", Text(f"{queue.waiting:,} waiting{oldest}, {queue.taken:,} taken{failed}", waits)),
        *_chart(view, view.series.waiting, "", width, chart_rows, "yellow"),
        _named("queries", Text(f"{number(rates.queries_per_s)}/s{fill}")),
        *_chart(view, view.series.queries, "", width, chart_rows, "green"),
        _named("episodes", Text(f"{episodes.open:,} open, {size(episodes.frame_bytes)}{limit}")),
        _named("critics", _busy(view, snapshot, width - 9)),
        *_pairs(snapshot),
    ]


def _pairs(snapshot: Snapshot) -> list[Text]:
    """What was scored ahead of value queries; nothing where the critics compare no pairs."""
    ahead = sum(worker.pairs_ahead for worker in snapshot.workers)
    unused = sum(worker.pairs_unused for worker in snapshot.workers)
    return [_named("pairs", Text(f"{ahead:,} ahead, {percent(unused / ahead)} for nothing"))] if ahead else []


def _busy(view: View, snapshot: Snapshot, width: int) -> Text:
    busy = snapshot.rates.busy
    count = many(len(snapshot.alive), "worker") + (f" + {len(snapshot.plain)} plain" if snapshot.plain else "")
    if busy is None:
        return Text(count)
    said = f"{count}, {percent(busy)} busy "
    style = "yellow" if busy >= 0.9 else "green"
    return Text.assemble(said, (gauge(busy, max(0, min(20, width - len(said))), _blocks(view)), style))


def _chart(
    view: View, points: Sequence[tuple[float, float]], name: str, width: int, rows: int, style: str
) -> list[Text]:
    columns = max(10, width - 9)
    # Wider than the time between two looks, so that no column stays empty in between.
    values = bins(points, columns, max(CHART_S / columns, 1.5 * view.interval_s))
    return [_named(name, Text(line, style)) for line in bars(values, rows, _blocks(view))]


def _latency(snapshot: Snapshot, width: int) -> list[Text]:
    column = (width - 9) // 3
    lines = [Text("latency  " + "".join(f"{name:>{column}}" for name in ("p50", "p95", "p99")), "dim")]
    for phase in PHASES:
        times = snapshot.latency.get(phase)
        told = [latency(each) for each in (times.p50_s, times.p95_s, times.p99_s)] if times else ["-"] * 3
        style = "bold" if phase == "total" else ""
        lines.append(Text.assemble((f"{phase:<9}", "dim"), ("".join(f"{each:>{column}}" for each in told), style)))
    return lines


def _server(snapshot: Snapshot, width: int) -> list[Text]:
    server, training = snapshot.redis, snapshot.training
    limit = f" of {size(server.max_bytes)}" if server.max_bytes else ""
    evicts = server.max_bytes > 0 and server.policy != "noeviction"
    full = server.max_bytes > 0 and server.used_bytes > 0.9 * server.max_bytes
    redis = Text.assemble(
        (f"{size(server.used_bytes)}{limit}", "red" if full else ""), ", ",
        (server.policy, "red" if evicts else ""), f", {many(server.clients, 'client')}, version {server.version}",
    )  # fmt: skip
    lines = [_named("redis", redis), _named("training", Text(_told(snapshot)))]
    if training.audit:
        # No-break spaces keep a name and its figure on one line.
        audit = "  ".join(f"{name}\u00a0{_figure(value)}" for name, value in training.audit.items())
        for place, line in enumerate(textwrap.wrap(audit, width - 9)):
            lines.append(_named("" if place else "audit", Text(line.replace("\u00a0", " "))))
    failed, window = snapshot.rates.failures_in_window, snapshot.rates.queries_in_window
    total = sum(worker.failures for worker in snapshot.alive)
    counts = f"{failed:,} of {window:,} in a minute, {total:,} in all{_last_error(snapshot)}"
    lines.append(_named("failed", Text(counts, "red" if failed else "")))
    return [fit(line, width) for line in lines]


def _told(snapshot: Snapshot) -> str:
    training = snapshot.training
    if not training.episodes:
        return "no outcomes yet"
    masked = f", {training.masked:,} masked" if training.masked else ""
    value = f", value {training.mean_value:.2f}" if training.mean_value is not None else ""
    audited = f", {training.contradicted:,} of {training.audited:,} dones contradicted" if training.audited else ""
    return f"{many(training.episodes, 'episode')}, done {percent(training.done_rate)}{value}{masked}{audited}"


def _last_error(snapshot: Snapshot) -> str:
    """The last error and its age: it may be older than the workers, whose counts begin anew with them."""
    errors = [(failed.at, failed.error) for failed in snapshot.failed[:1]]
    errors = errors or [
        (worker.last_error_at, worker.last_error) for worker in snapshot.workers if worker.last_error
    ]
    if not errors:
        return ""
    at, error = max(errors)
    return f"; {duration(max(0.0, snapshot.time - at))} ago: {error}"


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _no_workers(view: View, width: int) -> list[Text]:
    return [
        Text(f"No worker listens on queue {view.queue!r}. Start one where the critic should run:"),
        Text(f"  {start_line(view.url, view.queue)}", "bold"),
        *map(Text, textwrap.wrap(f"{TRY_OUT[0].upper()}{TRY_OUT[1:]}.", width)),
    ]


# Lists.


def _list(view: View, snapshot: Snapshot, frame: Frame, rows: int | None) -> list[Text]:
    if view.page == "workers":
        return _workers(view, snapshot, frame, rows, view.scroll, frame.top)
    columns: Sequence[Column]
    items: Sequence[Item]
    if view.page == "episodes":
        columns, items = EPISODE_COLUMNS, snapshot.episodes.untouched
        more = f", the {len(items)} longest untouched" if len(items) < snapshot.episodes.open else ""
        title = f"Episodes: {snapshot.episodes.open:,} open{more}"
    else:
        columns, items = FAILURE_COLUMNS, snapshot.failed
        title = f"Failures: the last {len(items)}" if items else "Failures: none yet"
    left = None if rows is None else rows - 2
    body = [frame.top(title), *map(frame.row, lines_of(columns, items, frame.inner, left, view.scroll))]
    if view.page == "failures" and snapshot.failed:
        last = [Text(line, "red") for line in textwrap.wrap(snapshot.failed[0].error, frame.inner)]
        body += [frame.rule("The last error"), *map(frame.row, last)]
    return body if rows is None else body[:rows]


def _workers(
    view: View, snapshot: Snapshot, frame: Frame, rows: int | None, scroll: int, edge: Callable[[str, str], Text]
) -> list[Text]:
    workers: list[Item] = [*sorted(snapshot.workers, key=SORTS[view.sort]), *snapshot.plain]
    # Its own line and the titles'.
    left = None if rows is None else max(1, rows - 2)
    lines = lines_of(WORKER_COLUMNS, workers, frame.inner, left, scroll)
    return [edge(f"Workers: {len(workers):,}", f"by {view.sort}"), *map(frame.row, lines)]


# Texts.


def _named(name: str, text: Text) -> Text:
    return Text.assemble((f"{name:<9}", "dim"), text)


def _blocks(view: View) -> str:
    return ASCII_BLOCKS if view.ascii else BLOCKS
