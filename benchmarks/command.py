"""`vlac-queue bench`: the queue against what one would use instead."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.goals import Goal
from benchmarks.measuring import ApartError
from benchmarks.overlap import CASES
from benchmarks.peers import PEERS
from benchmarks.processes import machine
from benchmarks.sections import SECTIONS, Size, chosen_peers
from vlac_queue.console import errors_as_messages, writing
from vlac_queue.plot import figure_class
from vlac_queue.server import find_redis_server, server_version
from vlac_queue.signals import interrupt_on_signals

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(short_help="Measure the queue (in a checkout).")
@click.option(
    "--only",
    "sections",
    type=click.Choice(list(SECTIONS)),
    multiple=True,
    help="Measure this alone; may be given again.  [default: all]",
)
@click.option(
    "--peer",
    "names",
    type=click.Choice(list(PEERS)),
    multiple=True,
    help="Compare with this peer; may be given again.  [default: all that are installed]",
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Interleaved rounds.")
@click.option("--seconds", default=3.0, show_default=True, help="Time to measure each row in each round.")
@click.option(
    "--episodes",
    "at_once",
    default=64,
    show_default=True,
    type=click.IntRange(1, 512),
    help="Frames that are asked about at once, in the comparison with peers.",
)
@click.option("--most-episodes", default=512, show_default=True, type=click.IntRange(16), help="Most at once.")
@click.option("--most-workers", default=8, show_default=True, type=click.IntRange(2), help="Most workers.")
@click.option("--chunks", default=64, show_default=True, help="Action chunks of an episode of the rollouts.")
@click.option(
    "--rollout",
    "rollouts",
    type=click.Choice([name for name, case in CASES.items() if case]),
    multiple=True,
    help="Play this rollout, beside the one without a critic; may be given again.  [default: all]",
)
@click.option("--json", "json_file", type=_FILE, help="Write all figures.")
@click.option("--markdown", "markdown_file", type=_FILE, help="Write the tables as Markdown.")
@click.option("--plots", "plots_folder", type=_FOLDER, help="Draw pictures there.")
def bench(
    sections: tuple[str, ...],
    names: tuple[str, ...],
    json_file: Path | None,
    markdown_file: Path | None,
    plots_folder: Path | None,
    **size: Any,
) -> None:
    """Measures the queue on this machine, against what one would use instead.

    Rows are measured in interleaved rounds; what counts are ratios, and of those the median over the rounds.
    Everything that is started (Redis, workers, services) listens on 127.0.0.1 and is ended.
    """
    interrupt_on_signals()
    with errors_as_messages():
        if plots_folder:
            figure_class()  # better missed now than after the work
            with writing(plots_folder, "--plots"):
                plots_folder.mkdir(parents=True, exist_ok=True)
        try:
            tables, figures = _measure(Size(**size), sections or list(SECTIONS), names, plots_folder)
        except ApartError as error:
            raise click.ClickException(str(error)) from None
        if markdown_file:
            with writing(markdown_file, "--markdown"):
                markdown_file.write_text("\n".join(map(report.markdown, tables)))
        if json_file:
            with writing(json_file, "--json"):
                json_file.write_text(json.dumps(figures, indent=1) + "\n")


def _measure(
    size: Size, sections: Sequence[str], names: Sequence[str], plots_folder: Path | None
) -> tuple[list[Table], dict[str, Any]]:
    """Measure, and show what is known as soon as it is: a whole run takes half an hour."""
    console = Console()
    figures: dict[str, Any] = {
        "machine": machine(),
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": _versions(chosen_peers(names)),
        "size": asdict(size),
    }
    goals: list[Goal] = []
    tables: list[Table] = []
    for name in sections:
        section = SECTIONS[name](size, names)
        for table in section.tables:
            console.print(table)
        tables += section.tables
        goals += section.goals
        figures[name] = section.figures
        if plots_folder and section.draw:
            section.draw(plots_folder)
    tables.append(report.goals_table(goals, size.rounds))
    figures["goals"] = [{**asdict(goal), "met": goal.met} for goal in goals]
    versions = ", ".join(f"{name} {text}" for name, text in figures["versions"].items())
    console.print(tables[-1])
    console.print(f"{machine()}; {versions}", style="dim", highlight=False)
    return tables, figures


def _versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of what is measured: Redis and the peers' packages."""
    redis_version = ".".join(map(str, server_version(find_redis_server())))
    versions = {"redis-server": redis_version, "vlac-queue": version("vlac-queue")}
    for name in names:
        versions |= PEERS[name].versions() or {}
    return versions
