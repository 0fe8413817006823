"""`vlac-queue bench`: the queue against what one would use instead."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import compare, episodes, goals, overlap, plots, report, workers
from benchmarks.goals import Goal
from benchmarks.measuring import ApartError
from benchmarks.peers import OURS, PEERS, Peer
from benchmarks.processes import machine
from benchmarks.profile import profile
from vlac_queue.console import errors_as_messages, writing
from vlac_queue.plot import figure_class
from vlac_queue.server import find_redis_server

SECTIONS = ("peers", "episodes", "workers", "busy", "overlap")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: times that every row is measured, interleaved with the others.
        seconds: for which each row is measured in each round.
        at_once: frames asked about at once in the comparison with peers.
        most_episodes, most_workers: where growth and scaling end.
        chunks: action chunks of the rollouts' episodes.
    """

    rounds: int
    seconds: float
    at_once: int
    most_episodes: int
    most_workers: int
    chunks: int


@dataclass(frozen=True)
class Section:
    """What one part of the benchmark gave: tables to show, goals, data, and what draws it."""

    tables: list[Table]
    goals: list[Goal]
    figures: Any
    draw: Callable[[Path], None] | None = None


@click.command(short_help="Measure the queue (in a checkout).")
@click.option(
    "--only",
    "sections",
    type=click.Choice(SECTIONS),
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
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1), help="Interleaved rounds.")
@click.option("--seconds", default=3.0, show_default=True, help="Time to measure each row in each round.")
@click.option(
    "--episodes",
    "at_once",
    default=64,
    show_default=True,
    type=click.IntRange(1, 512),
    help="Frames that are asked about at once, in the comparison with peers.",
)
@click.option(
    "--most-episodes", default=512, show_default=True, type=click.IntRange(16), help="Most episodes at once."
)
@click.option("--most-workers", default=8, show_default=True, type=click.IntRange(2), help="Most workers.")
@click.option("--chunks", default=64, show_default=True, help="Action chunks of an episode of the rollouts.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures.")
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the tables as Markdown.",
)
@click.option(
    "--plots", "plots_folder", type=click.Path(file_okay=False, path_type=Path), help="Draw pictures there."
)
@click.option(
    "--profile",
    "profile_folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Only sample client and worker, and write flame graphs there (needs py-spy).",
)
def bench(
    sections: tuple[str, ...],
    names: tuple[str, ...],
    rounds: int,
    seconds: float,
    at_once: int,
    most_episodes: int,
    most_workers: int,
    chunks: int,
    json_file: Path | None,
    markdown_file: Path | None,
    plots_folder: Path | None,
    profile_folder: Path | None,
) -> None:
    """Measures the queue on this machine, against what one would use instead.

    Rows are measured in interleaved rounds; what counts are ratios, and of those the median over the rounds.
    Everything that is started (Redis, workers, services) listens on 127.0.0.1 and is ended.
    """
    # A terminated benchmark takes its processes along, as an interrupted one does.
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    size = Size(rounds, seconds, at_once, most_episodes, most_workers, chunks)
    with errors_as_messages():
        if profile_folder:
            console.print(profile(profile_folder, seconds), highlight=False)
            console.print(f"Written: {profile_folder}/client.svg, worker.svg, profile.txt")
            return
        if plots_folder:
            figure_class()  # better missed now than after the work
            with writing(plots_folder, "--plots"):
                plots_folder.mkdir(parents=True, exist_ok=True)
        try:
            _measure(console, size, sections or SECTIONS, names, json_file, markdown_file, plots_folder)
        except ApartError as error:
            raise click.ClickException(str(error)) from None


def _measure(
    console: Console,
    size: Size,
    sections: Sequence[str],
    names: Sequence[str],
    json_file: Path | None,
    markdown_file: Path | None,
    plots_folder: Path | None,
) -> None:
    chosen = [PEERS[name] for name in names] or list(PEERS.values())
    if PEERS[OURS] not in chosen:
        chosen.insert(0, PEERS[OURS])
    installed = [peer for peer in chosen if peer.versions() is not None]
    missing = [peer.title for peer in chosen if peer not in installed]
    figures: dict[str, Any] = {
        "machine": machine(),
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": _versions(installed),
        "size": asdict(size),
    }
    reached: list[Goal] = []
    tables: list[Table] = []
    for name in sections:
        with Progress(*_COLUMNS, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(name, total=None)
            section = _SECTIONS[name](size, installed, missing, _Steps(progress, task))
        for table in section.tables:
            console.print(table)  # a whole run takes half an hour: nobody should wait for what is known
        tables += section.tables
        reached += section.goals
        figures[name] = section.figures
        if plots_folder and section.draw:
            section.draw(plots_folder)
    tables.append(report.goals_table(reached, size.rounds))
    console.print(tables[-1])
    versions = ", ".join(f"{name} {text}" for name, text in figures["versions"].items())
    console.print(f"{figures['machine']}; {versions}", style="dim", highlight=False)
    figures["goals"] = report.goals_json(reached)
    if markdown_file:
        with writing(markdown_file, "--markdown"):
            markdown_file.write_text("\n".join(map(report.markdown, tables)))
    if json_file:
        with writing(json_file, "--json"):
            json_file.write_text(json.dumps(figures, indent=1) + "\n")


class _Steps:
    """Shows how far a section is: called once with the number of its steps, and then after each."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def expect(self, steps: int) -> Callable[[], None]:
        self._progress.update(self._task, total=steps)
        return lambda: self._progress.advance(self._task)


def _peers(size: Size, installed: Sequence[Peer], missing: Sequence[str], steps: _Steps) -> Section:
    titles = {peer.name: peer.title for peer in installed}
    measured, failed = compare.compare(
        installed,
        episodes=size.at_once,
        rounds=size.rounds,
        seconds=size.seconds,
        advance=steps.expect(size.rounds * len(installed)),
    )
    absent = {
        **dict.fromkeys(missing, "not installed (make bench-peers)"),
        **{titles[name]: "failed" for name in failed},
    }
    return Section(
        report.peers_tables(measured, titles, absent, size.at_once),
        goals.of_peers(measured, titles),
        {
            "rounds": {name: [asdict(each) for each in rounds] for name, rounds in measured.items()},
            "failed": failed,
        },
        lambda folder: plots.draw_peers(measured, titles, folder / "peers.png"),
    )


def _episodes(size: Size, installed: Sequence[Peer], missing: Sequence[str], steps: _Steps) -> Section:
    counts = [("simulator", count) for count in episodes.SLOPE_COUNTS if count <= size.most_episodes]
    if find_spec("av"):  # reads the photographs
        counts += [("photographs", count) for count in episodes.MAIN_COUNTS if count <= size.most_episodes]
    measured = episodes.measure(
        counts, rounds=size.rounds, seconds=size.seconds, advance=steps.expect(size.rounds * len(counts))
    )
    return Section(
        [report.episodes_table(measured)],
        goals.of_episodes(measured),
        [asdict(each) for each in measured],
        lambda folder: plots.draw_episodes(measured, folder / "episodes.png"),
    )


def _workers(size: Size, installed: Sequence[Peer], missing: Sequence[str], steps: _Steps) -> Section:
    counts = tuple(count for count in (1, 2, 4, 8) if count <= size.most_workers)
    advance = steps.expect(size.rounds * (len(counts) * len(workers.CRITICS) + 1))
    measured = workers.scale(counts, rounds=size.rounds, seconds=size.seconds, advance=advance)
    first = []
    for _ in range(size.rounds):
        first.append(workers.first_job_s())
        advance()
    added = goals.of_values("worker added under load: s until its first job", first, 0.2, at_least=False)
    return Section(
        [report.workers_table(measured)],
        [*goals.of_scaling(measured, workers.CRITICS), added],
        {"served": [[asdict(each) for each in served] for served in measured], "first_job_s": first},
        lambda folder: plots.draw_workers(measured, folder / "workers.png"),
    )


def _busy(size: Size, installed: Sequence[Peer], missing: Sequence[str], steps: _Steps) -> Section:
    advance = steps.expect(size.rounds)
    busy = []
    for _ in range(size.rounds):
        busy.append(workers.busy(2 * size.seconds))
        advance()
    return Section(
        [], [goals.of_values("busy part of a 50 ms critic, full queue", busy, 0.98, at_least=True)], busy
    )


def _overlap(size: Size, installed: Sequence[Peer], missing: Sequence[str], steps: _Steps) -> Section:
    http = PEERS["fastapi"].versions() is not None
    advance = steps.expect(size.rounds * (4 if http else 3))
    measured = overlap.measure(chunks=size.chunks, rounds=size.rounds, http=http, advance=advance)
    return Section([overlap.table(measured, size.chunks)], [goals.of_rollouts(measured)], measured)


_SECTIONS = {"peers": _peers, "episodes": _episodes, "workers": _workers, "busy": _busy, "overlap": _overlap}
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def _versions(peers: Sequence[Peer]) -> dict[str, str]:
    """What was measured: Redis and the peers' packages."""
    said = subprocess.run([find_redis_server(), "--version"], capture_output=True, text=True, check=True).stdout
    versions = {"redis-server": said.split("v=")[1].split()[0], "vlac-queue": version("vlac-queue")}
    for peer in peers:
        versions.update(peer.versions() or {})
    return versions


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
