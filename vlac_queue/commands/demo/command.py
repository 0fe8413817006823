"""`vlac-queue demo`."""

from __future__ import annotations

import atexit
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import redis
from rich.console import Console
from rich.progress import Progress

from vlac_queue.client import CriticClient
from vlac_queue.commands.demo import play, report
from vlac_queue.commands.demo.play import Report
from vlac_queue.commands.demo.processes import wait_until_ready, worker_processes
from vlac_queue.commands.demo.rollouts import load_rollouts
from vlac_queue.config import VlacConfig
from vlac_queue.console import doing, errors_as_messages, progress_bar, writing
from vlac_queue.plot import figure_class
from vlac_queue.server import RedisServer
from vlac_queue.signals import interrupt_on_signals, signals_held

#: The demo's references go on for one chunk beyond the goal: what looks like their last but one frame is done.
_DEMO_THRESHOLD = 0.85


@click.command(short_help="Play recorded episodes through the queue.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for the picture and the workers' logs.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file."
)
@click.option("--png/--no-png", default=True, show_default=True, help="Draw the picture (needs matplotlib).")
@click.option("--live", metavar="ENV", help="Run Meta-World itself, e.g. drawer-open-v3 (needs the extra sim).")
@click.option(
    "--workers", "count", type=click.IntRange(1, 64), default=2, show_default=True, help="Worker processes."
)
def demo(out: Path, json_file: Path | None, png: bool, live: str | None, count: int) -> None:
    """Play robot episodes through the real queue, and show how they end.

    Starts Redis and worker processes with the critic `reference`, plays Meta-World episodes as training (the
    critic decides) and as evaluation (the environment decides), and ends everything it started.
    """
    with errors_as_messages():
        interrupt_on_signals()
        if png:
            figure_class()  # better missed now than after the work
        started = time.monotonic()
        with writing(out, "--out"):
            out.mkdir(parents=True, exist_ok=True)
            (out / "worker-1.log").touch()
        if json_file:
            with writing(json_file, "--json"):
                json_file.touch()
        reports, asked = _run(live, count, out)
        console = Console()
        for table in report.tables(reports, console.width):
            console.print(table)
        console.print(report.LEGEND, style="dim")
        console.print(report.summary(reports, asked, time.monotonic() - started))
        if png:
            with doing("drawing the picture"):
                report.write_picture(reports, out / "episodes.png")
            console.print(f"Picture: {out / 'episodes.png'}")
        if json_file:
            figures = report.figures(reports, asked, time.monotonic() - started)
            json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            console.print(f"Figures: {json_file}")


def _run(live: str | None, count: int, logs: Path) -> tuple[list[Report], int]:
    """Start everything, play, and end everything; return the reports, and the answers during evaluation."""
    stack = ExitStack()
    # Ctrl-C may come even between two of the things that the stack ends.
    atexit.register(stack.close)
    with stack:
        with doing("starting Redis and workers"):
            with signals_held():
                server = stack.enter_context(RedisServer())
                processes = stack.enter_context(worker_processes(count, server.url, logs))
            config = VlacConfig(redis_url=server.url, done_threshold=_DEMO_THRESHOLD)
            client = stack.enter_context(CriticClient(config))
            runs = play.live_runs(live) if live else play.recorded_runs(load_rollouts())
            wait_until_ready(processes, client, logs)
        evaluated = runs[-2:] if live else [runs[index] for index in (0, 3, 6, 11)]
        with progress_bar("chunks") as bar:
            if bar.disable:
                click.echo(
                    f"playing {len(runs)} episodes as training, {len(evaluated)} as evaluation ...", err=True
                )
            reports = _play(bar, "training", runs, 8, partial(play.train, client))
            before = _answers_written(server)
            reports += _play(bar, "evaluation", evaluated, 4, play.evaluate)
            answers = _answers_written(server) - before
        with doing("ending Redis and workers"):
            stack.close()
    return reports, answers


def _play(
    bar: Progress,
    what: str,
    runs: list[play.Run],
    together: int,
    play_some: Callable[[list[play.Run], play.Progress], list[Report]],
) -> list[Report]:
    """Play the runs, so many together, while the bar goes on."""
    task = bar.add_task(what, total=sum(run.max_step for run in runs))
    reports: list[Report] = []
    for start in range(0, len(runs), together):
        reports += play_some(runs[start : start + together], lambda count: bar.advance(task, count))
    bar.update(task, completed=bar.tasks[task].total)
    return reports


def _answers_written(server: RedisServer) -> int:
    with redis.Redis.from_url(server.url) as connection:
        commands: Any = connection.info("commandstats")
    return int(commands.get("cmdstat_xadd", {}).get("calls", 0))
