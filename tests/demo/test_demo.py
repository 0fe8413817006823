"""`vlac-queue demo` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.conftest import until
from tests.security.test_secrets import CommandLines
from vlac_queue.demo.rollouts import load_rollouts, success_step

COMMAND = [sys.executable, "-m", "vlac_queue.cli", "demo"]


#: Settings of a user's own queue, which don't concern the demo.
SETTINGS = {
    "VLAC_REDIS_USERNAME": "vlac-rollout",
    "VLAC_REDIS_PASSWORD": "hush",
    "VLAC_CRITIC": "vlac",
    "VLAC_LOG_LEVEL": "1",  # no setting of ours: a worker of the queue refuses it
    "RQ_REDIS_URL": "redis://127.0.0.1:1/0",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> tuple[subprocess.CompletedProcess[str], dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("demo")
    command = [*COMMAND, "--json", "figures.json"]
    environ = {**os.environ, **SETTINGS, "COLUMNS": "80"}
    with CommandLines() as lines:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, env=environ)
    assert done.returncode == 0, done.stderr
    (folder / "command-lines.log").write_text("\n".join(lines.seen))
    return done, json.loads((folder / "figures.json").read_text()), folder


def test_training_episodes_end_as_the_rule_says(run: Any) -> None:
    episodes = [each for each in run[1]["episodes"] if each["mode"] == "train"]
    assert len(episodes) >= 12
    for episode in episodes:
        if episode["ended_by"] == "critic":
            assert episode["reward"] == 1.0
        else:
            assert episode["ended_by"] == "max_step"
            assert episode["reward"] == min(max(episode["values"][-1] / 100, 0), 1)
    solved = {each["ended_by"] == "critic" for each in episodes if each["environment_done"] is not None}
    failed = {each["ended_by"] == "critic" for each in episodes if each["environment_done"] is None}
    assert solved == {True} and failed == {False}


def test_evaluation_ends_with_the_environment_and_asks_nobody(run: Any) -> None:
    episodes = [each for each in run[1]["episodes"] if each["mode"] == "eval"]
    assert {each["ended_by"] for each in episodes} == {"environment", "max_step"}
    assert all(each["queries"] == 0 and each["reward"] in (0.0, 1.0) for each in episodes)
    assert all((each["reward"] == 1.0) == (each["environment_done"] is not None) for each in episodes)
    assert run[1]["answers_during_evaluation"] == 0


def test_frames_cross_the_wire_in_a_quarter_of_their_size_or_less(run: Any) -> None:
    assert 0 < run[1]["sent_bytes"] <= run[1]["raw_bytes"] / 4


def test_the_table_fits_80_columns_and_the_picture_is_there(run: Any) -> None:
    done, _, folder = run
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "stalled 31" in done.stdout and "environment" in done.stdout
    assert (folder / "demo-out" / "episodes.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_shows_the_password_of_a_users_own_server(run: Any) -> None:
    done, _, folder = run
    for text in (done.stdout, done.stderr, *(path.read_text() for path in folder.rglob("*.log"))):
        assert SETTINGS["VLAC_REDIS_PASSWORD"] not in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_behind(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--no-png"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    parent = psutil.Process(process.pid)
    # Redis, two workers, and the scheduler of one of them.
    until(lambda: len(parent.children()) == 3 and len(parent.children(recursive=True)) >= 4)
    children = parent.children(recursive=True)
    process.send_signal(number)
    assert process.wait(30) == 130
    assert b"interrupted" in process.stderr.read()  # type: ignore[union-attr]
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_the_recorded_rollouts_are_what_they_claim() -> None:
    rollouts = load_rollouts()
    assert {rollout.kind for rollout in rollouts} == {"reference", "expert", "random", "stalled"}
    for rollout in rollouts:
        assert rollout.frames.dtype == np.uint8 and rollout.frames.shape == (len(rollout.success), 256, 256, 3)
        assert (success_step(rollout) is None) == (rollout.kind in ("random", "stalled"))
    assert [rollout.kind for rollout in load_rollouts("random")] == ["random"] * 3
    with pytest.raises(ValueError, match="unknown kind"):
        load_rollouts("perfect")


def test_live_says_what_it_needs(tmp_path: Path) -> None:
    # The simulator may be installed here: hide it.
    hidden = "import sys; sys.modules['metaworld'] = None; from vlac_queue.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "demo", "--no-png", "--live", "drawer-open-v3"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "pip install 'vlac-queue[sim]'" in done.stderr
    done = subprocess.run(
        [*COMMAND, "--no-png", "--live", "no-such-env"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "drawer-open-v3" in done.stderr
