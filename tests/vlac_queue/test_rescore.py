"""`vlac-queue rescore`: a log's frames asked about again, and the comparison."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from click.testing import CliRunner, Result

from tests.conftest import ROOT, Workers, until
from tests.workers.critics import NAME, frame
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.cli import main
from vlac_queue.client.decision_log import frames_path
from vlac_queue.commands.demo import play
from vlac_queue.commands.demo.rollouts import load_rollouts
from vlac_queue.commands.episodes.log import read_batches, read_log
from vlac_queue.commands.episodes.record import decoded
from vlac_queue.commands.rescore.comparison import Comparison, together
from vlac_queue.frames import Base, encode
from vlac_queue.messages import DoneVerdict, ValueVerdict
from vlac_queue.server import RedisServer

SHIFTED = "tests.vlac_queue.shifted_critic:ShiftedCritic"


@pytest.fixture(scope="module")
def made_log(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of two tasks by TaskCritic, whose scores are the frames' red."""
    folder = tmp_path_factory.mktemp("made")
    config = VlacConfig(redis_url=server.url, decision_log=str(folder / "log"), done_threshold=0.5)
    with redis.Redis.from_url(server.url) as connection, CriticClient(config) as logging:
        connection.flushall()
        workers = Workers(server.url, connection, folder)
        workers.start(NAME)
        for task, reds, truth in (("lift", (30, 100, 200), 2), ("push", (120, 130), None)):
            with logging.episode(task, id=task) as episode:
                episode.push(frame(0))
                for red in reds:
                    episode.observe(frame(red)).result()
                logging.note_truth(episode, truth)
                episode.ask_value().result()
        with logging.episode("refuse", id="failed") as episode:
            until(episode.observe(frame(1)).done)
        workers.stop()
    return folder / "log"


@pytest.fixture
def log(made_log: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made_log, tmp_path / "log"))


def rescore(client: CriticClient, log: Path, *arguments: Any) -> Result:
    command = ["rescore", str(log), *map(str, arguments), "--redis-url", client.config.redis_url]
    return CliRunner().invoke(main, command, catch_exceptions=False, env={"COLUMNS": "80"})


def document(result: Result) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(result.stdout)
    return made


def test_the_same_critic_agrees_with_itself(client: CriticClient, workers: Workers, log: Path) -> None:
    workers.start(NAME)
    result = rescore(client, log, "--json", "--max-drift", 0, "--max-flips", 0, "--critic", NAME)
    assert result.exit_code == 0, result.output
    made = document(result)
    total = made["total"]
    assert made["passed"] and made["reasons"] == [] and made["notes"] == []
    assert (total["done_verdicts"], total["value_lists"], total["agreement"]) == (5, 2, 1.0)
    assert total["scores"] == {"count": 5, "mean": 0, "p95": 0, "max": 0}
    assert total["values"] == {"count": 7, "mean": 0, "p95": 0, "max": 0}
    assert made["critics_then"] == made["critics_now"] == [{"name": NAME, "model": "", "prompt": ""}]
    # Before the simulator's done, frame 2, and all of what it never calls done.
    assert (total["judged"], total["false_done_then"], total["false_done_now"]) == (3, 1, 1)
    # Nothing of it stays on Redis, or in the log.
    assert client._connection.keys("vlac:vlac:episode*") == [] and len(list(log.glob("*/verdicts.jsonl"))) == 1


def test_another_critic_differs_and_limits_are_an_exit_code(
    client: CriticClient, workers: Workers, log: Path
) -> None:
    workers.start(SHIFTED, PYTHONPATH=str(ROOT))
    result = rescore(client, log, "--json")
    assert result.exit_code == 0
    made = document(result)
    lift, push = made["tasks"]
    # ShiftedCritic scores 0.1 less, and never above 0.75.
    assert (lift["task"], lift["newly_done"], lift["no_longer_done"]) == ("lift", 0, 0)
    assert (push["task"], push["newly_done"], push["no_longer_done"]) == ("push", 0, 1)
    assert (push["judged"], push["false_done_then"], push["false_done_now"]) == (2, 1, 0)
    assert lift["scores"]["max"] == pytest.approx(0.1) and push["scores"]["mean"] == pytest.approx(0.1)
    assert lift["values"]["max"] == pytest.approx(10)
    assert made["critics_now"][0] == {"name": SHIFTED, "model": "", "prompt": "5h1f7ed"}
    shown = rescore(client, log, "--max-drift", 0.05, "--max-flips", 0)
    assert shown.exit_code == 1
    assert "the largest drift is 0.1, above --max-drift 0.05" in shown.stderr
    assert "1 done verdicts differ, above --max-flips 0" in shown.stderr
    assert f"now   {SHIFTED} (prompts 5h1f7ed)" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines() if "critic" not in line)
    assert rescore(client, log, "--max-drift", 0.11, "--max-flips", 1).exit_code == 0
    only_first = document(rescore(client, log, "--json", "--every", 2))
    assert [task["task"] for task in only_first["tasks"]] == ["lift"]
    other = rescore(client, log, "--critic", "vlac")
    assert other.exit_code == 1 and "not 'vlac'" in other.stderr


def test_frames_that_are_not_those_of_the_log_are_refused_by_name(
    client: CriticClient, workers: Workers, log: Path
) -> None:
    workers.start(NAME)
    records = {record.id: record for record in read_log(log, print)}
    lift, push = records["lift"], records["push"]
    assert lift.writer is not None and push.writer is not None
    # A whole and valid file, with another picture in place of frame 2.
    batches, base = [], None
    for place, batch in enumerate(frames for _, frames in decoded(read_batches(lift, print))):
        pixels = frame(99) if place == 2 else batch
        batches.append(encode(pixels, first=place, base=base))
        base = Base.after(pixels.reshape(1, 8, 8, 3), batches[-1])
    frames_path(lift.writer, "lift", lift.token).write_bytes(b"".join(batches))
    frames_path(push.writer, "push", push.token).unlink()
    result = rescore(client, log, "--json")
    made = document(result)
    assert result.exit_code == 1 and not made["passed"]
    assert (made["total"]["done_verdicts"], made["total"]["value_lists"]) == (1, 0)
    assert "episode 'lift', frame 2: its pixels do not have the hash in the log" in made["refused"][0]
    assert "episode 'push' can't be read" in made["refused"][1]
    assert "refused: episode 'lift', frame 2" in result.stderr


def test_a_log_that_ends_early_is_compared_as_far_as_it_goes(
    client: CriticClient, workers: Workers, log: Path
) -> None:
    workers.start(NAME)
    (lift,) = [record for record in read_log(log, print) if record.id == "lift"]
    assert lift.writer is not None
    path = frames_path(lift.writer, "lift", lift.token)
    path.write_bytes(path.read_bytes()[:-1])
    result = rescore(client, log, "--json")
    made = document(result)
    assert result.exit_code == 0 and made["total"]["done_verdicts"] == 4
    assert any("ends within a batch" in note for note in made["notes"])
    assert "episode 'lift': the frames of 2 verdicts were not logged" in made["notes"]


def test_a_critic_that_fails_now_is_said(client: CriticClient, workers: Workers, log: Path) -> None:
    workers.start("reference")  # there was no reference
    result = rescore(client, log)
    assert result.exit_code == 1
    assert "the critic failed on 7 queries" in result.stderr and "nothing was compared" in result.stderr
    assert "needs frames of a successful run" in result.stderr


def test_without_workers_or_verdicts_it_says_so(client: CriticClient, log: Path, tmp_path: Path) -> None:
    result = rescore(client, log)
    assert result.exit_code == 1 and "no worker listens" in result.stderr
    with CriticClient(replace(client.config, decision_log=str(tmp_path / "empty"))) as logging:
        assert "is no decision log" in rescore(client, tmp_path / "empty").stderr
        logging.episode("lift").close()
    result = rescore(client, tmp_path / "empty")
    assert result.exit_code == 1 and "holds no verdict" in result.stderr


def test_ctrl_c_leaves_nothing_on_redis(client: CriticClient, workers: Workers, log: Path, tmp_path: Path) -> None:
    # A worker that holds what it is asked about.
    text = next(log.glob("*/verdicts.jsonl"))
    text.write_text(text.read_text().replace('"task":"lift"', f'"task":"hold {tmp_path / "go"}"'))
    workers.start(NAME)
    command = [sys.executable, "-m", "vlac_queue.cli", "rescore", str(log), "--redis-url", client.config.redis_url]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ, stderr=subprocess.PIPE, text=True)
    try:
        until((tmp_path / "go.begun").exists)
        keys = "vlac:vlac:episode*:queries"
        until(lambda: sum(map(client._connection.hlen, client._connection.keys(keys))) == 7)  # type: ignore[arg-type]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        (tmp_path / "go").touch()
    assert process.returncode == 130 and "Traceback" not in said
    assert client._connection.keys("vlac:vlac:episode*") == []


def test_references_and_the_demos_truth_come_along(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start("reference")
    runs = [run for run in play.recorded_runs(load_rollouts()) if run.name in ("stalled 32", "expert 7")][:2]
    config = replace(client.config, decision_log=str(tmp_path / "log"), done_threshold=0.85)
    with CriticClient(config) as logging:
        reports = play.train(logging, runs, lambda count: None)
    records = list(read_log(tmp_path / "log", print))
    assert [record.truth for record in records] == [report.environment_done for report in reports]
    made = document(rescore(client, tmp_path / "log", "--json", "--max-drift", 0))
    assert made["passed"] and made["total"]["value_lists"] == 2 and made["total"]["judged"] > 10


# The arithmetic.


def test_drift_is_mean_95th_percentile_and_maximum() -> None:
    task = Comparison("lift")
    for number in range(101):
        task.add(DoneVerdict(False, 0.0, 0), DoneVerdict(False, number / 100, 0), truth=None)
    assert (task.scores.mean, task.scores.p95, task.scores.max) == pytest.approx((0.5, 0.95, 1.0))
    assert task.agreement == 1.0 and task.values.max is None and task.judged == 0


def test_lists_of_other_lengths_are_counted_and_not_compared() -> None:
    task = Comparison("lift")
    task.add(ValueVerdict((0.0, 50.0), (50.0,)), ValueVerdict((0.0,), ()), truth=None)
    task.add(ValueVerdict((0.0, 50.0), (50.0,)), ValueVerdict((10.0, -50.0), (0.0,)), truth=None)
    assert (task.uneven_lists, task.value_lists, task.compared) == (1, 1, 1)
    assert task.values.max == 100 and task.largest_drift == 1.0


def test_all_tasks_together_are_the_sum() -> None:
    lift, push = Comparison("lift"), Comparison("push")
    lift.add(DoneVerdict(True, 1.0, 0), DoneVerdict(False, 0.5, 0), truth=False)
    push.add(DoneVerdict(False, 0.2, 0), DoneVerdict(True, 0.9, 0), truth=True)
    push.add(DoneVerdict(False, 0.2, 0), None, truth=True)
    both = together([lift, push])
    assert (both.done_verdicts, both.newly_done, both.no_longer_done, both.failed) == (2, 1, 1, 1)
    assert (both.judged, both.false_done_then, both.false_done_now, both.agreement) == (1, 1, 0, 0.0)
    assert both.scores.mean == pytest.approx(0.6)
    assert np.isfinite(both.largest_drift) and together([]).agreement is None
