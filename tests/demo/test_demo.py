"""`vlac-queue demo` as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.conftest import Workers, started_by, until
from tests.security.test_secrets import CommandLines
from vlac_queue import CriticClient
from vlac_queue.commands.demo.play import Report, recorded_runs, train
from vlac_queue.commands.demo.report import summary
from vlac_queue.commands.demo.rollouts import load_rollouts, success_step

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
    # Whatever the terminal's encoding is.
    environ = {**os.environ, **SETTINGS, "COLUMNS": "80", "PYTHONIOENCODING": "latin-1"}
    with CommandLines() as lines:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, env=environ)
    assert done.returncode == 0, done.stderr
    # Without a terminal a line says what takes some seconds.
    assert re.findall(r"(\w+) .*\.\.\.$", done.stderr, re.MULTILINE) == [
        "starting", "playing", "ending", "drawing",
    ]  # fmt: skip
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


def test_an_end_one_chunk_off_is_called_agreement_within_one_chunk(run: Any) -> None:
    done, figures, _ = run
    trained = [each for each in figures["episodes"] if each["mode"] == "train"]
    off = [abs(each["finish_step"] - each["environment_done"]) for each in trained if each["environment_done"]]
    assert max(off) == 1 and figures["agreed_within_one_chunk"] == len(trained) == 15
    words = " ".join(done.stdout.split())
    assert "In 15 of 15 training episodes the critic agreed with the environment: done within one chunk" in words
    early, late, failed = (
        replace(_REPORT, environment_done=environment_done) for environment_done in (9, 10, None)
    )
    for reports, agreed in (([early], 1), ([late], 0), ([failed], 0), ([early, late, failed], 1)):
        assert f"In {agreed} of {len(reports)} " in summary(reports, 0, 1.0)


#: Ended by the critic at 8.
_REPORT = Report(
    "expert 7", "lift", "train", 8, "critic", 1.0, 9, 8, 10, 100, 1.0, frames=np.zeros((9, 8, 8, 3), np.uint8)
)


def test_an_early_end_is_judged_by_the_done_that_would_have_come(client: CriticClient, workers: Workers) -> None:
    workers.start("tests.workers.critics:TaskCritic")
    rollouts = [*load_rollouts("expert")[:1], *load_rollouts("random")[:1]]
    runs = recorded_runs([*load_rollouts("reference"), *rollouts])
    with CriticClient(replace(client.config, done_threshold=0.0)) as hasty:
        reports = train(hasty, runs, lambda count: None)
    assert [(each.ended_by, each.finish_step) for each in reports] == [("critic", 1)] * 2
    assert [each.environment_done for each in reports] == [success_step(rollout) for rollout in rollouts]
    assert "In 0 of 2 " in summary(reports, 0, 1.0)


def test_the_table_fits_80_columns_and_the_picture_is_there(run: Any) -> None:
    done, _, folder = run
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "stalled 31" in done.stdout and "environment" in done.stdout and done.stdout.isascii()
    assert (folder / "demo-out" / "episodes.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_shows_the_password_of_a_users_own_server(run: Any) -> None:
    done, _, folder = run
    for text in (done.stdout, done.stderr, *(path.read_text() for path in folder.rglob("*.log"))):
        assert SETTINGS["VLAC_REDIS_PASSWORD"] not in text


#: Moments of a demo: a condition on the command lines of what it has started so far.
_MOMENTS: dict[str, Callable[[list[str]], bool]] = {
    "Redis starts": lambda lines: any("redis-server" in line for line in lines),
    "a worker starts": lambda lines: any("rq.cli" in line for line in lines),
    "all run": lambda lines: sum("rq.cli" in line for line in lines) >= 3,  # two, and a scheduler
}


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param(signal.SIGINT, "Redis starts", marks=pytest.mark.slow),
        (signal.SIGINT, "a worker starts"),
        pytest.param(signal.SIGHUP, "a worker starts", marks=pytest.mark.slow),
        (signal.SIGTERM, "all run"),
    ],
)
def test_an_interrupted_demo_leaves_no_process_behind(number: signal.Signals, moment: str, tmp_path: Path) -> None:
    mark = str(tmp_path)
    process = subprocess.Popen(
        [*COMMAND, "--no-png"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "TEST_MARK": mark},
    )  # fmt: skip
    parent = psutil.Process(process.pid)

    def lines() -> list[str]:
        assert process.poll() is None
        found = []
        for each in parent.children(recursive=True):
            with suppress(psutil.Error):
                found.append(" ".join(each.cmdline()))
        return found

    until(lambda: _MOMENTS[moment](lines()))
    # Who presses twice must not stop the end of it all.
    process.send_signal(number)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in errors
    assert errors.splitlines()[-1] == b"interrupted; everything that was started has ended"
    assert not started_by(mark)


_WRONG = {"--workers": ("0", "0 is not in the range"), "--out": ("/proc/x", "choose another --out"),
          "--json": ("/proc/x", "choose another --json")}  # fmt: skip


@pytest.mark.parametrize("option", _WRONG)
def test_a_wrong_option_is_refused_before_anything_starts(option: str, tmp_path: Path) -> None:
    value, sentence = _WRONG[option]
    done = subprocess.run([*COMMAND, option, value], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert "starting" not in done.stderr


def test_the_recorded_rollouts_are_what_they_claim() -> None:
    rollouts = load_rollouts()
    assert {rollout.kind for rollout in rollouts} == {"reference", "expert", "random", "stalled"}
    for rollout in rollouts:
        assert rollout.frames.dtype == np.uint8 and rollout.frames.shape == (len(rollout.success), 256, 256, 3)
        assert (success_step(rollout) is None) == (rollout.kind in ("random", "stalled"))
    assert [rollout.kind for rollout in load_rollouts("random")] == ["random"] * 3
    with pytest.raises(ValueError, match="unknown kind"):
        load_rollouts("perfect")


def test_a_folder_that_can_not_be_written_is_one_sentence() -> None:
    done = subprocess.run([*COMMAND, "--out", "/proc/x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "can't write to /proc/x (No such file or directory); choose another --out." in done.stderr


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
