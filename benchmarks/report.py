"""Tables of the figures, on the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median

from rich.table import Table
from rich.text import Text

from benchmarks import overlap
from benchmarks.compare import Rounds, median_round, over
from benchmarks.episodes import Grown, growth
from benchmarks.figures import ratio
from benchmarks.goals import Goal
from benchmarks.measuring import Round
from benchmarks.peers import OURS
from benchmarks.workers import CRITICS, Served
from vlac_queue.costs import COSTS


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    bold: str = "",
    wrap: bool = False,
) -> Table:
    """Return a table: names in the first column, figures in the others.

    Args:
        bold: the name of a row that stands out.
        wrap: whether names may take several lines where room is short; figures never do.
    """
    made = Table(title=title, caption=caption or None)
    names, *figures = zip(*rows, strict=True)
    made.add_column(columns[0], no_wrap=not wrap, min_width=min(12, max(map(len, names))))
    for column, cells in zip(columns[1:], figures, strict=True):
        whole = [Text.from_markup(cell).cell_len for cell in cells]
        made.add_column(column, justify="right", min_width=max(*map(len, column.split()), *whole))
    for row in rows:
        made.add_row(*row, style="bold" if bold and row[0] == bold else None)
    return made


def markdown(table: Table) -> str:
    """Return a table as Markdown, for docs/performance.md."""
    columns = [[Text.from_markup(str(cell)).plain for cell in column.cells] for column in table.columns]
    names = [Text.from_markup(str(column.header)).plain for column in table.columns]
    ruler = "---:|" * (len(names) - 1)
    rows = [names, *map(list, zip(*columns, strict=True))]
    drawn = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    lines = [str(table.title), "", drawn[0], f"|---|{ruler}", *drawn[1:]]
    return "\n".join(lines + (["", str(table.caption)] if table.caption else [])) + "\n"


def peers_tables(
    measured: Rounds, titles: Mapping[str, str], absent: Mapping[str, str], at_once: int
) -> list[Table]:
    """Return how quick every peer is, and what a query costs; medians over the rounds."""
    quick, costs = [], []
    for name, rounds in measured.items():
        one = median_round(rounds)
        rate_over = "" if name == OURS else f"{over(measured, name, 'queries_per_s').median:.2f}"
        singles = _milliseconds(2, one.single_p50_s, one.single_p99_s)
        quick.append([titles[name], f"{one.queries_per_s:,.0f}", rate_over, *_steps(one), *singles])
        costs.append([titles[name], *_costs(one)])
    return [
        table(
            f"{at_once} frames of 256x256x3 asked at once, critic of zero cost",
            ("", "queries/s", "ours over it", "step p50", "p99 ms", "single p50", "p99 ms"),
            quick,
            caption="; ".join(f"{title}: {reason}" for title, reason in absent.items()),
            bold=titles[OURS],
        ),
        table("CPU time and bytes of a query", ("", *_COSTS), costs, bold=titles[OURS]),
    ]


def episodes_table(measured: Grown) -> Table:
    """Return the queue's figures by workload and by the number of episodes that ask at once."""
    rows = []
    for (workload, episodes), rounds in measured.items():
        one = median_round(rounds)
        rows.append([workload, str(episodes), f"{one.queries_per_s:,.0f}", *_steps(one), *_costs(one)])
    fitted, exponent = growth(measured)
    return table(
        "vlac-queue as episodes grow, critic of zero cost",
        ("", "at once", "queries/s", "step p50", "p99 ms", *_COSTS),
        rows,
        caption=f"simulator: a step takes {1000 * fitted.fixed:.1f} ms + {1000 * fitted.each:.3f} ms an episode; "
        f"time ~ episodes ^ {exponent:.2f}",
    )


_COSTS = ("client ms", "Redis ms", "worker ms", "wire kB")


def _costs(one: Round) -> list[str]:
    """Return CPU milliseconds of client, Redis and workers, and kilobytes, of one query."""
    wire = "-" if one.wire_bytes is None else f"{one.wire_bytes / 1000:.1f}"
    return [*_milliseconds(2, one.client_s, one.redis_s, one.workers_s), wire]


def _steps(one: Round) -> list[str]:
    return _milliseconds(1, one.step_p50_s, one.step_p99_s)


def _milliseconds(digits: int, *seconds: float) -> list[str]:
    return [f"{1000 * each:.{digits}f}" for each in seconds]


def workers_table(measured: Served) -> Table:
    """Return queries per second by critic and number of workers; medians over the rounds."""
    counts = sorted({count for _, count in measured})
    rows = []
    for critic, title in CRITICS.items():
        rates = [median(measured[critic, count]) for count in counts]
        rows.append([title, *(f"{rate:,.0f} ({rate / rates[0]:.2f}x)" for rate in rates)])
    columns = [f"{count} worker{'s' if count > 1 else ''}" for count in counts]
    return table("Workers with a sleeping critic and an always-full queue: queries/s", ["", *columns], rows)


def rollouts_table(measured: Mapping[str, Sequence[overlap.Wall]], chunks: int) -> Table:
    """Return wall times, how they compare with no critic, and what the critics did; medians over the rounds."""
    bare = [wall.seconds for wall in measured["no critic"]]
    rows = []
    for name, walls in measured.items():
        middle = {figure: median(each) for figure, each in _columns(walls).items()}
        over = ratio([wall.seconds for wall in walls], bare).median
        cells = [f"{middle['seconds']:.2f}", f"{over:.2f}", f"{middle['after_s']:.2f}"]
        if middle["busy"]:
            waits = f"{middle['wait_p50_s']:.2f} / {middle['wait_p95_s']:.2f}"
            cells += [waits, f"{middle['vision']:.2f}", f"{middle['busy']:.0%}"]
        rows.append([name, *cells, *[""] * (6 - len(cells))])
    torch, vllm = COSTS["pt"], COSTS["vllm"]
    size = f"{overlap.RANKS} ranks x {overlap.EPISODES} episodes x {chunks} chunks"
    return table(
        f"{size}: policy {1000 * overlap.POLICY_S:.0f} ms, simulators {1000 * overlap.SIMULATOR_S:.0f} ms a chunk",
        # Short: all of them fit a terminal of 80 columns.
        ("", "seconds", "over none", "at end", "done waits", "vision", "busy"),
        rows,
        wrap=True,
        caption="over none: over the time without a critic; at end: seconds after the last chunk; done waits: for "
        "an answer, p50 / p95 seconds; vision: passes through it a frame; busy: the critics' GPUs.\n"
        f"VLAC: an image {1000 * torch.vision_s:.1f} ms of vision and {1000 * torch.language_s:.1f} of "
        f"language, a call {1000 * torch.call_s:.0f} ms (with references, on vLLM, {1000 * vllm.call_s:.0f}); "
        f"{torch.source}",
    )


def _columns(walls: Sequence[overlap.Wall]) -> dict[str, list[float]]:
    each = [asdict(wall) for wall in walls]
    return {figure: [one[figure] for one in each] for figure in each[0]}


def goals_table(goals: Sequence[Goal], rounds: int) -> Table:
    """Return what should be reached, and what is."""
    rows = [
        [
            goal.what,
            str(goal.measured),
            f"{'at least' if goal.at_least else 'at most'} {goal.bound:g}",
            "[green]yes" if goal.met else "[red]no",
        ]
        for goal in goals
    ]
    caption = f"median (least..most) of {rounds} interleaved rounds"
    return table("Goals", ("", "measured", "goal", "met"), rows, caption=caption, wrap=True)
