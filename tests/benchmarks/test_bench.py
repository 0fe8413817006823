"""`vlac-queue bench` from end to end, with as little as it can measure; no time is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from benchmarks import overlap, workers
from benchmarks.peers import OURS, PEERS
from benchmarks.workloads import photographs, simulator
from tests.conftest import ROOT, started_by, until
from vlac_queue.cli import main

SMALL = ("--rounds", "1", "--seconds", "0", "--episodes", "4", "--most-episodes", "16", "--most-workers", "2")


@pytest.fixture(autouse=True)
def _little_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_WARM_UP_S", 0.1)
    monkeypatch.setattr(overlap, "RANKS", 1)


def bench(tmp_path: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What it prints, and the figures that it writes; nothing that it started is left."""
    file = tmp_path / "figures.json"
    before = set(psutil.Process().children(recursive=True))
    ended = CliRunner().invoke(main, ["bench", *SMALL, "--chunks", "1", "--json", str(file), *arguments])
    assert ended.exit_code == 0, ended.output
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [each for each in left if "resource_tracker" not in " ".join(each.cmdline())]
    return ended.output, json.loads(file.read_text())


def compared(tmp_path: Path, *names: str) -> tuple[str, dict[str, Any]]:
    """As `bench`, of these peers; and what holds for every round of each."""
    output, figures = bench(tmp_path, "--only", "peers", *(f"--peer={name}" for name in names))
    assert list(figures["peers"]["rounds"]) == [OURS, *names] and figures["peers"]["failed"] == {}
    for each in (each for rounds in figures["peers"]["rounds"].values() for each in rounds):
        assert each["queries"] % 4 == 0 and each["queries_per_s"] > 0
        assert 0 < each["step_p50_s"] <= each["step_p99_s"]
        assert 0 < each["single_p50_s"] <= each["single_p99_s"]
    assert all(PEERS[name].title in output for name in names)
    return output, figures


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_peers_are_compared(tmp_path: Path) -> None:
    _, figures = compared(tmp_path, "list-grouped", "memory")
    rounds = figures["peers"]["rounds"]
    assert rounds[OURS][0]["wire_bytes"] > 1000 and rounds["memory"][0]["wire_bytes"] is None
    assert {"redis-server", "vlac-queue", "rq", "lz4"} <= set(figures["versions"])
    goals = {goal.pop("what"): goal for goal in figures["goals"]}
    goal = goals[f"queries/s over {PEERS['list-grouped'].title}"]
    assert set(goal) == {"measured", "bound", "at_least", "met"}
    assert goal["measured"]["least"] <= goal["measured"]["median"] <= goal["measured"]["most"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("names", [[name for name, peer in PEERS.items() if peer.versions() and name != OURS]])
def test_every_peer_that_is_installed(tmp_path: Path, names: list[str]) -> None:
    compared(tmp_path, *names)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_episodes_grow(tmp_path: Path) -> None:
    output, figures = bench(tmp_path, "--only", "episodes", "--plots", str(tmp_path / "plots"))
    measured = [(each["workload"], each["episodes"]) for each in figures["episodes"]]
    assert measured == [("simulator", 8), ("simulator", 16), ("photographs", 8)]
    assert "an episode" in output and (tmp_path / "plots" / "episodes.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_workers_are_added(tmp_path: Path) -> None:
    output, figures = bench(tmp_path, "--only", "workers")
    (served,) = figures["workers"]["served"]
    assert [each["workers"] for each in served] == [1, 2] * len(workers.CRITICS)
    assert figures["workers"]["first_job_s"][0] > 0
    assert "worker added under load" in output


def test_a_worker_is_kept_busy(tmp_path: Path) -> None:
    output, figures = bench(tmp_path, "--only", "busy")
    assert 0 < figures["busy"][0] <= 1
    assert "busy part of a 50 ms critic" in output


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_rollouts_with_and_without_the_critic(tmp_path: Path) -> None:
    names = ["2 workers, overlapped", "2 workers, 9 references, blocking"]
    output, figures = bench(tmp_path, "--only", "overlap", *(f"--rollout={name}" for name in names))
    assert list(figures["overlap"]) == ["no critic", *names]
    for (wall,) in (figures["overlap"][name] for name in names):
        assert 0 < wall["after_s"] < wall["seconds"] and 0 < wall["wait_p50_s"] <= wall["wait_p95_s"]
        assert wall["vision"] >= 1 and 0 < wall["busy"] < 1  # every frame goes through vision once at least
    assert "over none" in output and "at most 1.15" in output


@pytest.mark.slow
def test_ctrl_c_ends_it_and_all_that_it_started(tmp_path: Path) -> None:
    mark = str(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "vlac_queue.cli", "bench", "--only", "overlap", "--chunks", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "TEST_MARK": mark}, start_new_session=True,
    )  # fmt: skip
    until(lambda: any("multiprocessing.spawn" in " ".join(each.cmdline()) for each in started_by(mark)))
    # As a terminal does: all of the foreground, and whoever presses twice.
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors == "interrupted; everything that was started has ended\n" and process.returncode == 130
    assert not started_by(mark)


def test_without_a_checkout_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.command", raising=False)
    monkeypatch.setitem(sys.modules, "benchmarks", None)  # as if there were none
    ended = CliRunner().invoke(main, ["bench"])
    assert ended.exit_code == 1 and "in a checkout: make bench" in ended.output


def test_workloads_have_a_frame_for_each_episode() -> None:
    for workload, shape in ((simulator(), (256, 256, 3)), (photographs(), (480, 640, 3))):
        frames = workload.step(70, 20)
        assert len(frames) == 20 and all(frame.shape == shape for frame in frames)
    first, second = simulator().step(0, 1)[0], simulator().step(1, 1)[0]
    assert (first != second).any()


def test_its_help_has_a_short_name() -> None:
    ended = CliRunner().invoke(main, ["bench", "-h"])
    assert ended.exit_code == 0 and "--most-workers" in ended.output
