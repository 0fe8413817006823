"""`vlac-queue demo`."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import click
import redis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vlac_queue.client import CriticClient
from vlac_queue.config import VlacConfig
from vlac_queue.console import errors_as_messages, writing
from vlac_queue.demo import play, report
from vlac_queue.demo.processes import WorkerProcesses
from vlac_queue.demo.rollouts import load_rollouts
from vlac_queue.plot import figure_class
from vlac_queue.server import RedisServer

#: The demo's references go on for one chunk beyond the goal: what looks like their last but one frame is done.
_DEMO_THRESHOLD = 0.85


@click.command()
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
@click.option("--workers", "count", default=2, show_default=True, help="Worker processes.")
def demo(out: Path, json_file: Path | None, png: bool, live: str | None, count: int) -> None:
    """Plays robot episodes through the real queue, and shows how they end.

    Starts Redis and worker processes with the critic `reference`, plays Meta-World episodes as training (the
    critic decides) and as evaluation (the environment decides), and ends everything it started.
    """
    # A terminated demo takes its processes along, as an interrupted one does.
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    with writing(out, "--out"):
        out.mkdir(parents=True, exist_ok=True)
        (out / "worker-1.log").touch()
    with errors_as_messages():
        if png:
            figure_class()  # better missed now than after the work
        started = time.monotonic()
        with ExitStack() as stack:
            with console.status("starting Redis and workers"):
                server = stack.enter_context(RedisServer())
                processes = stack.enter_context(
                    WorkerProcesses(count, redis_url=server.url, critic="reference", logs=out)
                )
                config = VlacConfig(redis_url=server.url, done_threshold=_DEMO_THRESHOLD)
                client = stack.enter_context(CriticClient(config))
                runs = play.live_runs(live) if live else play.recorded_runs(load_rollouts())
                processes.wait_until_ready(client)
            reports, asked = _play(client, server, runs, live is not None, console)
        if png:
            with writing(out, "--out"):
                report.write_picture(reports, out / "episodes.png")
    seconds = time.monotonic() - started
    trained = [each for each in reports if each.mode == "train"]
    right = sum((each.ended_by == "critic") == (each.environment_done is not None) for each in trained)
    sent, raw = sum(each.sent_bytes for each in trained), sum(each.raw_bytes for each in trained)
    for table in report.tables(reports, console.width):
        console.print(table)
    console.print(
        "ended: chunk at which the episode ended; env.: chunk at which the environment itself says done; asked: "
        "critic queries; ms: mean time from asking to the answer.",
        style="dim",
    )
    console.print(
        f"The critic agreed with the environment on {right} of {len(trained)} training episodes. "
        f"Frames crossed the wire in 1/{raw / sent:.1f} of their size. "
        f"Critic answers during evaluation, as Redis counts them: {asked}. {seconds:.1f} s."
    )
    if png:
        console.print(f"Picture: {out / 'episodes.png'}")
    if json_file:
        summary = {"seconds": seconds, "answers_during_evaluation": asked, "sent_bytes": sent, "raw_bytes": raw}
        with writing(json_file, "--json"):
            report.write_json(reports, json_file, summary)
        console.print(f"Figures: {json_file}")


def _play(
    client: CriticClient, server: RedisServer, runs: list[play.Run], live: bool, console: Console
) -> tuple[list[Any], int]:
    """Training 8 at a time, then evaluation 4 at a time; and the answers that Redis saw during the latter."""
    evaluated = runs[-2:] if live else [runs[index] for index in (0, 3, 6, 11)]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("chunks"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        training = progress.add_task("training", total=sum(run.max_step for run in runs))
        reports = []
        for start in range(0, len(runs), 8):
            reports += play.train(client, runs[start : start + 8], lambda count: progress.advance(training, count))
        progress.update(training, completed=progress.tasks[training].total)
        evaluation = progress.add_task("evaluation", total=sum(run.max_step for run in evaluated))
        before = _answers_written(server)
        for start in range(0, len(evaluated), 4):
            reports += play.evaluate(
                evaluated[start : start + 4], lambda count: progress.advance(evaluation, count)
            )
        progress.update(evaluation, completed=progress.tasks[evaluation].total)
        return reports, _answers_written(server) - before


def _answers_written(server: RedisServer) -> int:
    with redis.Redis.from_url(server.url) as connection:
        commands: Any = connection.info("commandstats")
    return int(commands.get("cmdstat_xadd", {}).get("calls", 0))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
