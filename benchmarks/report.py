"""Tables of the figures, and the figures as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from benchmarks.compare import Rounds, median_round, rate_over
from benchmarks.episodes import Asked, growth
from benchmarks.goals import Goal
from benchmarks.measuring import Round
from benchmarks.peers import OURS
from benchmarks.workers import CRITICS, Served


def peers_tables(
    measured: Rounds, titles: Mapping[str, str], absent: Mapping[str, str], at_once: int
) -> list[Table]:
    """How quick every peer is, and what a query costs; medians over the rounds."""
    title = f"{at_once} frames of 256x256x3 asked at once, critic of zero cost"
    quick = _table(title, "queries/s", "ours over it", "step p50", "p99 ms", "single p50", "p99 ms")
    costs = _table("CPU time and bytes of a query", "client ms", "Redis ms", "worker ms", "wire kB")
    for name, rounds in measured.items():
        each = median_round(rounds)
        style = "bold" if name == OURS else None
        over = "" if name == OURS or OURS not in measured else f"{rate_over(measured, OURS, name).median:.2f}"
        steps = (f"{1000 * seconds:.1f}" for seconds in (each.step_p50_s, each.step_p99_s))
        singles = (f"{1000 * seconds:.2f}" for seconds in (each.single_p50_s, each.single_p99_s))
        quick.add_row(titles[name], f"{each.queries_per_s:,.0f}", over, *steps, *singles, style=style)
        costs.add_row(titles[name], *_costs(each), style=style)
    if absent:
        quick.caption = "; ".join(f"{title}: {reason}" for title, reason in absent.items())
    return [quick, costs]


def episodes_table(measured: Sequence[Asked]) -> Table:
    """The queue by workload and by the number of episodes that ask at once."""
    made = _table(
        "vlac-queue as episodes grow, critic of zero cost",
        *("at once", "queries/s", "step p50", "p99 ms", "client ms", "Redis ms", "worker ms", "wire kB"),
    )
    groups: dict[tuple[str, int], list[Round]] = {}
    for asked in measured:
        groups.setdefault((asked.workload, asked.episodes), []).append(asked.round)
    for (workload, episodes), rounds in groups.items():
        each = median_round(rounds)
        steps = (f"{1000 * seconds:.1f}" for seconds in (each.step_p50_s, each.step_p99_s))
        made.add_row(workload, str(episodes), f"{each.queries_per_s:,.0f}", *steps, *_costs(each))
    fitted, exponent = growth(measured)
    made.caption = (
        f"simulator: a step takes {1000 * fitted.fixed:.1f} ms + {1000 * fitted.each:.3f} ms an episode; "
        f"time ~ episodes ^ {exponent:.2f}"
    )
    return made


def _table(title: str, *columns: str) -> Table:
    made = Table(title=title)
    made.add_column("", no_wrap=True, min_width=12)
    for column in columns:
        made.add_column(column, justify="right", min_width=max(map(len, column.split())))
    return made


def _costs(each: Round) -> list[str]:
    """CPU milliseconds of client, Redis and workers, and kilobytes, of one query."""
    cpu = [f"{1000 * seconds:.2f}" for seconds in (each.client_s, each.redis_s, each.workers_s)]
    return [*cpu, "-" if each.wire_bytes is None else f"{each.wire_bytes / 1000:.1f}"]


def workers_table(measured: Sequence[Sequence[Served]]) -> Table:
    """Queries per second by critic and number of workers; medians over the rounds."""
    counts = sorted({each.workers for each in measured[0]})
    made = Table(title="Workers with a sleeping critic and an always-full queue: queries/s")
    made.add_column("")
    for count in counts:
        made.add_column(f"{count} worker{'s' if count > 1 else ''}", justify="right")
    for critic, title in CRITICS.items():
        rates = served_rates(measured, critic)
        cells = [f"{rate:,.0f} ({rate / rates[counts[0]]:.2f}x)" for rate in rates.values()]
        made.add_row(title, *cells)
    return made


def served_rates(measured: Sequence[Sequence[Served]], critic: str) -> dict[int, float]:
    """Median queries per second by the number of workers."""
    rates: dict[int, list[float]] = {}
    for each in (each for served in measured for each in served if each.critic == critic):
        rates.setdefault(each.workers, []).append(each.queries_per_s)
    return {count: statistics.median(values) for count, values in sorted(rates.items())}


def goals_table(goals: Sequence[Goal], rounds: int) -> Table:
    """What should be reached, and what is."""
    made = Table(title="Goals", caption=f"median (least..most) of {rounds} interleaved rounds")
    made.add_column("")
    for column in ("measured", "goal", "met"):
        made.add_column(column, justify="right", no_wrap=True)
    for goal in goals:
        bound = f"{'at least' if goal.at_least else 'at most'} {goal.bound:g}"
        made.add_row(goal.what, str(goal.measured), bound, "[green]yes" if goal.met else "[red]no")
    return made


def markdown(table: Table) -> str:
    """A table as Markdown, for docs/performance.md."""
    columns = [[Text.from_markup(str(cell)).plain for cell in column.cells] for column in table.columns]
    names = [Text.from_markup(str(column.header)).plain for column in table.columns]
    ruler = "---:|" * (len(names) - 1)
    rows = [names, *map(list, zip(*columns, strict=True))]
    drawn = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    lines = [str(table.title), "", drawn[0], f"|---|{ruler}", *drawn[1:]]
    return "\n".join(lines + (["", str(table.caption)] if table.caption else [])) + "\n"


def goals_json(goals: Sequence[Goal]) -> list[dict[str, Any]]:
    """The goals as data."""
    return [{**asdict(goal), "met": goal.met} for goal in goals]
