"""The command line: `vlac-queue`."""

from __future__ import annotations

import os
import signal
import sys
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
from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.demo import play, report
from vlac_queue.demo.processes import WorkerProcesses
from vlac_queue.demo.rollouts import load_rollouts
from vlac_queue.errors import VlacQueueError
from vlac_queue.server import RedisServer

#: The demo's references go on for one chunk beyond the goal: what looks like their last but one frame is done.
_DEMO_THRESHOLD = 0.85


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vlac-queue")
def main() -> None:
    """Serves the VLAC critic to robot reinforcement learning through Redis and RQ."""


@main.command()
@click.option(
    "--redis-url", envvar=["VLAC_REDIS_URL", "RQ_REDIS_URL"], default="redis://localhost:6379/0", show_default=True
)
@click.option("--queue", envvar="VLAC_QUEUE", default="vlac", show_default=True, help="RQ queue to serve.")
@click.option(
    "--critic", help="Critic to run: vlac, reference or package.module:Class.  [default: VLAC_CRITIC, or vlac]"
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(redis_url: str, queue: str, critic: str | None, arguments: tuple[str, ...]) -> None:
    """Starts a critic worker: `rq worker` with our worker class.

    Settings come from the environment (VLAC_*); ARGUMENTS go to `rq worker`, after --.
    """
    with _errors_as_messages():
        config = VlacConfig.from_env(redis_url=redis_url, queue=queue, critic=critic)
    click.echo(
        f"serving queue {config.queue!r} at {redact_url(config.redis_url)} with critic {config.critic!r}"
        + (f" ({config.model_path}, engine {config.engine})" if config.critic == "vlac" else "")
        + f", up to {config.max_batch} queries a batch"
    )
    sys.stdout.flush()
    # By the environment and not as arguments: a password in the URL would show in `ps`.
    os.environ.update(
        RQ_REDIS_URL=config.redis_url,
        RQ_WORKER_CLASS="workers.CriticWorker",
        VLAC_CRITIC=config.critic,
        VLAC_QUEUE=queue,
    )
    command = [sys.executable, "-m", "rq.cli", "worker", queue, "--with-scheduler", *arguments]
    os.execv(command[0], command)


@main.command()
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
    out.mkdir(parents=True, exist_ok=True)
    with _errors_as_messages():
        if png:
            import matplotlib  # noqa: F401  (better missed now than after the work)
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


class _errors_as_messages:
    """Shows our errors (and missing extras) as one sentence with exit code 1, and Ctrl-C as exit code 130."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        if isinstance(error, VlacQueueError | ImportError | RuntimeError | ValueError):
            raise click.ClickException(str(error)) from error
        if isinstance(error, KeyboardInterrupt):
            click.echo("interrupted; everything that was started has ended", err=True)
            sys.exit(130)


if __name__ == "__main__":
    main()
