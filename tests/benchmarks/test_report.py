"""Tables and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import plots, report
from benchmarks.figures import figure
from benchmarks.goals import Goal
from benchmarks.overlap import Wall
from benchmarks.peers import OURS
from benchmarks.workers import CRITICS
from tests.benchmarks.test_goals import ROUND, TITLES

MEASURED = {OURS: [ROUND, ROUND], "memory": [ROUND, ROUND]}
GROWN = {("simulator", 8): [ROUND], ("simulator", 64): [ROUND], ("photographs", 8): [ROUND]}
SERVED = {(critic, count): [100.0 * count] for critic in CRITICS for count in (1, 2)}


def shown(*tables: Table) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(*tables)
    return console.export_text()


def test_the_peers_tables_name_what_was_measured_and_what_was_not() -> None:
    text = shown(*report.peers_tables(MEASURED, TITLES, {"Celery": "not installed"}, 64))
    for expected in ("64 frames", "vlac-queue", "1,000", "64.0", "2.00", "0.30", "20.0", "shared memory"):
        assert expected in text
    assert any("Celery" in line and "not installed" in line for line in text.splitlines())


def test_bytes_that_nothing_counts_are_a_dash() -> None:
    text = shown(*report.peers_tables({OURS: [replace(ROUND, wire_bytes=None)]}, TITLES, {}, 64))
    assert [line.split("│")[-2].strip() for line in text.splitlines() if "vlac-queue" in line][-1] == "-"


def test_the_episodes_table_shows_the_slope() -> None:
    text = shown(report.episodes_table(GROWN))
    assert "photographs" in text
    assert "1.000 ms an episode" in text and "episodes ^ 1.00" in text


def test_the_workers_table_shows_rates_over_one_worker() -> None:
    text = shown(report.workers_table(SERVED))
    assert "100 (1.00x)" in text and "200 (2.00x)" in text


def test_the_rollouts_table_shows_what_a_critic_costs() -> None:
    walls = {
        "no critic": [Wall(20.0, 0.0), Wall(30.0, 0.0)],
        "2 workers, overlapped": [
            Wall(22.0, 1.5, 1.25, 30.0, 0.95, 0.1, 0.4),
            Wall(36.0, 2.5, 1.35, 30.0, 0.85, 0.2, 0.6),
        ],
    }
    line = next(line for line in shown(report.rollouts_table(walls, 64)).splitlines() if "2 workers" in line)
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[1:] == ["29.00", "1.15", "2.00", "0.15 / 0.50", "1.30", "90%"]


def test_goals_say_whether_they_are_met() -> None:
    goal = Goal("busy", figure([0.97, 0.99, 0.98]), 0.98, at_least=True)
    assert "0.98 (0.97..0.99)" in shown(report.goals_table([goal], 3))


def test_tables_are_written_as_markdown() -> None:
    goal = Goal("busy", figure([0.99]), 0.98, at_least=True)
    lines = report.markdown(report.goals_table([goal], 1)).splitlines()
    assert lines[0] == "Goals" and lines[2:4] == ["| | measured | goal | met |", "|---|---:|---:|---:|"]
    assert lines[4] == "| busy | 0.99 (0.99..0.99) | at least 0.98 | yes |"


def test_pictures_are_drawn(tmp_path: Path) -> None:
    plots.draw_peers(MEASURED, TITLES, tmp_path / "peers.png")
    plots.draw_episodes(GROWN, tmp_path / "episodes.png")
    plots.draw_workers(SERVED, tmp_path / "workers.png")
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 3
