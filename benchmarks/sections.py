"""The parts of `vlac-queue bench`: each measures, and gives what is shown, reached, written and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from benchmarks import compare, episodes, goals, overlap, plots, report, workers
from benchmarks.figures import figure, interleaved
from benchmarks.goals import Goal
from benchmarks.peers import OURS, PEERS


@dataclass(frozen=True)
class Size:
    """How much is measured: the options of the same names (`at_once` is --episodes, `rollouts` --rollout)."""

    rounds: int
    seconds: float
    at_once: int
    most_episodes: int
    most_workers: int
    chunks: int
    rollouts: Sequence[str] = ()


class Section(NamedTuple):
    """What a part gave: tables, goals, data for the JSON file, and what draws a picture."""

    tables: list[Table]
    goals: list[Goal]
    figures: Any
    draw: Callable[[Path], None] | None = None


def chosen_peers(names: Sequence[str]) -> dict[str, str]:
    """Return the titles of the peers to compare: ours first, then `names`, or all."""
    return {name: PEERS[name].title for name in dict.fromkeys([OURS, *(names or PEERS)])}


def _peers(size: Size, names: Sequence[str]) -> Section:
    titles = chosen_peers(names)
    installed = [name for name in titles if PEERS[name].versions() is not None]
    measured, failed = compare.compare(installed, size.at_once, size.rounds, size.seconds)
    absent = {title: "not installed (make bench-peers)" for name, title in titles.items() if name not in installed}
    absent |= {titles[name]: "failed" for name in failed}
    return Section(
        report.peers_tables(measured, titles, absent, size.at_once),
        goals.of_peers(measured, titles),
        {"rounds": {name: list(map(asdict, rounds)) for name, rounds in measured.items()}, "failed": failed},
        lambda folder: plots.draw_peers(measured, titles, folder / "peers.png"),
    )


def _episodes(size: Size, names: Sequence[str]) -> Section:
    measured = episodes.measure(size.most_episodes, size.rounds, size.seconds)
    return Section(
        [report.episodes_table(measured)],
        [goals.of_episodes(measured)],
        [
            {"workload": workload, "episodes": count, "round": asdict(rounds[index])}
            for index in range(size.rounds)
            for (workload, count), rounds in measured.items()
        ],
        lambda folder: plots.draw_episodes(measured, folder / "episodes.png"),
    )


def _workers(size: Size, names: Sequence[str]) -> Section:
    measured = workers.scale(size.most_workers, size.rounds, size.seconds)
    first = interleaved("a worker is added", {"": workers.first_job_s}, size.rounds)[""]
    added = Goal("worker added under load: s until its first job", figure(first), 0.2, at_least=False)
    served = [
        [
            {"critic": critic, "workers": count, "queries_per_s": rates[index]}
            for (critic, count), rates in measured.items()
        ]
        for index in range(size.rounds)
    ]
    return Section(
        [report.workers_table(measured)],
        [*goals.of_scaling(measured), added],
        {"served": served, "first_job_s": first},
        lambda folder: plots.draw_workers(measured, folder / "workers.png"),
    )


def _busy(size: Size, names: Sequence[str]) -> Section:
    busy = interleaved("busy", {"": partial(workers.busy, 2 * size.seconds)}, size.rounds)[""]
    return Section([], [Goal("busy part of a 50 ms critic, full queue", figure(busy), 0.98, at_least=True)], busy)


def _overlap(size: Size, names: Sequence[str]) -> Section:
    measured = overlap.measure(size.chunks, size.rounds, size.rollouts)
    return Section(
        [report.rollouts_table(measured, size.chunks)],
        goals.of_rollouts(measured),
        {name: list(map(asdict, walls)) for name, walls in measured.items()},
    )


#: In the order in which they are measured; each takes a Size, and the names of the peers.
SECTIONS: Mapping[str, Callable[[Size, Sequence[str]], Section]] = {
    "peers": _peers,
    "episodes": _episodes,
    "workers": _workers,
    "busy": _busy,
    "overlap": _overlap,
}
