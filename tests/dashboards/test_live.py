"""The command: what it prints, writes and serves, which keys it follows, how it starts and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from dashboards.diagnosis import judge
from dashboards.live import main
from dashboards.record import Recorder, Recording
from dashboards.screen import keys_in
from dashboards.shown import Shown
from dashboards.snapshot import Snapshot, from_json
from tests.conftest import ROOT, until
from tests.dashboards.redis_state import contents, describe_worker, fail, open_episode
from tests.dashboards.states import AT, LOOKS, URL
from vlac_queue.server import RedisServer, free_port


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboards.live._TWO_LOOKS_S", 0.05)


def run(*arguments: str, **environ: str) -> Any:
    return CliRunner().invoke(main, arguments, env=environ)


# --once and --json.


def test_once_prints_one_picture_as_text(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection, "gpu-1-4242", state="idle")
    before = contents(connection).keys()
    result = run("--once", "--redis-url", server.url)
    assert result.exit_code == 0, result.output
    assert "gpu-1-4242" in result.output
    assert result.output.count("Workers: 1") == 1
    assert "\x1b" not in result.output
    assert contents(connection).keys() == before


@pytest.mark.parametrize("variable", ["VLAC_REDIS_URL", "RQ_REDIS_URL"])
def test_json_is_one_document(server: RedisServer, connection: redis.Redis, variable: str) -> None:
    describe_worker(connection)
    result = run("--json", **{variable: server.url})
    assert result.exit_code == 0, result.output
    read = json.loads(result.stdout)
    assert (read["schema"], read["queue"], read["url"], read["error"]) == (1, "vlac", server.url, "")
    assert [worker["name"] for worker in read["snapshot"]["workers"]] == ["w1"]
    assert set(read["verdicts"][0]) == {"severity", "kind", "sentence"}
    assert from_json(Snapshot, read["snapshot"]).redis.policy == "noeviction"


def test_rates_are_known_after_two_looks(
    server: RedisServer, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_worker(connection, queries=100, batches=10)
    now = time.time()

    def work(_seconds: float) -> None:
        describe_worker(connection, queries=160, batches=14, time=now + 2)

    describe_worker(connection, queries=100, batches=10, time=now)
    monkeypatch.setattr("dashboards.live.time.sleep", work)
    read = json.loads(run("--json", "--redis-url", server.url).stdout)
    assert read["snapshot"]["rates"]["queries_per_s"] == 30.0
    assert read["snapshot"]["workers"][0]["mean_batch"] == 15.0


@pytest.mark.parametrize("option", ["--once", "--json"])
def test_what_is_bad_is_told_by_the_exit_code(server: RedisServer, connection: redis.Redis, option: str) -> None:
    assert run(option, "--redis-url", server.url).exit_code == 1  # no workers
    describe_worker(connection)
    assert run(option, "--redis-url", server.url).exit_code == 0


def test_json_tells_a_redis_that_is_away() -> None:
    port = free_port()
    result = run("--json", "--redis-url", f"redis://:s3cr3t@127.0.0.1:{port}/0")
    assert result.exit_code == 1
    read = json.loads(result.stdout)
    assert (read["snapshot"], read["verdicts"][0]["kind"]) == (None, "redis-away")
    assert f"can't reach Redis at redis://:***@127.0.0.1:{port}/0" in read["error"]
    assert "s3cr3t" not in result.output


def test_one_look_does_not_promise_another() -> None:
    result = run("--once", "--redis-url", f"redis://127.0.0.1:{free_port()}/0")
    assert result.exit_code == 1 and "can't reach Redis" in result.output
    assert "again" not in result.output


def test_the_queue_is_a_choice(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection)
    for environ, arguments in ({"VLAC_QUEUE": "other"}, []), ({}, ["--queue", "other"]):
        read = json.loads(run("--json", "--redis-url", server.url, *arguments, **environ).stdout)
        assert (read["queue"], read["snapshot"]["workers"]) == ("other", [])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--redis-url", "http://localhost"], "redis_url must be a redis://"),
        (["--redis-url", "redis://localhost:port"], "can't be used"),
        (["--queue", "a:b"], "queue must be"),
        (["--interval", "0"], "--interval"),
        (["--replay", __file__, "--record", "y"], "--replay goes with --speed only"),
        (["--json", "--record", "y"], "--once and --json look once"),
    ],
)
def test_a_wrong_option_is_refused(arguments: list[str], part: str) -> None:
    result = run("--once", *arguments)
    assert result.exit_code == 2
    assert part in result.stderr


# Keys.


def test_keys_are_read_from_what_terminals_send() -> None:
    assert keys_in(b"qw?") == ["q", "w", "?"]
    assert keys_in(b"\x1b[A\x1b[B\x1bOA\x1b[5~\x1b[6~\x1b[H\x1b[F") == [
        "up", "down", "up", "pageup", "pagedown", "home", "end",
    ]  # fmt: skip
    assert keys_in(b"\x1b") == ["escape"]
    assert keys_in(b"\x1bq") == ["escape", "q"]
    assert keys_in(b"\x1b[99~q\x1b[200~") == ["q"]
    assert keys_in(b"\x1b[") == []
    assert keys_in(b"\xff") == ["\ufffd"]


def pressed(*keys: str, rows: int = 10, items: int = 25) -> Shown:
    shown = Shown()
    for key in keys:
        shown.press(key, rows=rows, items=items)
    return shown


def test_keys_choose_the_page() -> None:
    assert [pressed(key).page for key in ("w", "e", "f", "?", "o", "escape")] == [
        "workers", "episodes", "failures", "help", "overview", "overview",
    ]  # fmt: skip
    assert pressed("w", "escape").page == "overview"


def test_keys_pause_and_sort() -> None:
    assert (pressed("p").paused, pressed("p", "p").paused) == (True, False)
    assert (pressed().sort, pressed("s").sort, pressed(*"sssssss").sort) == ("name", "state", "name")


def test_keys_scroll_within_the_list() -> None:
    assert pressed("w", "down", "down", "up").scroll == 1
    assert pressed("w", "up").scroll == 0
    assert pressed("w", "pagedown").scroll == 10
    assert pressed("w", "end").scroll == pressed("w", "pagedown", "pagedown", "pagedown").scroll == 15
    assert pressed("w", "end", "home").scroll == 0
    assert pressed("w", "down", items=5).scroll == 0
    assert pressed("w", "down", "e").scroll == 0


# The program, for real.


@pytest.fixture
def environ(server: RedisServer, connection: redis.Redis) -> dict[str, str]:
    return {
        **os.environ,
        "VLAC_REDIS_URL": server.url,
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
        "COLUMNS": "80",
    }


_COMMAND = [sys.executable, "-m", "dashboards.live", "--interval", "0.1"]


@pytest.fixture
def started(environ: dict[str, str]) -> Iterator[Any]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*_COMMAND, *arguments],
            env={**environ, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_without_a_terminal_pictures_follow_one_another(started: Any) -> None:
    process = started()
    seen = 0
    for line in process.stdout:
        assert "\x1b" not in line
        seen += "no workers" in line
        if seen == 3:
            break
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(30) == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize("arguments", [[], ["--record", "-"]], ids=["pictures", "recording"])
def test_who_reads_the_output_may_have_enough(started: Any, arguments: list[str]) -> None:
    process = started(*arguments)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == ""
    process.stdout = open(os.devnull)  # noqa: SIM115


def test_a_recording_is_written_while_redis_comes_and_goes(started: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    def kinds() -> list[str]:
        return [diagnoses[0].kind for _, diagnoses in Recording(path).looks()] if path.exists() else []

    with RedisServer() as server:
        process = started("--record", str(path), VLAC_REDIS_URL=server.url)
        until(lambda: kinds()[-1:] == ["no-workers"])
        server.stop()
        until(lambda: kinds()[-1:] == ["redis-away"])
        server.start()
        until(lambda: kinds()[-1:] == ["no-workers"])
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not Recording(path).truncated
    times = [look.at for look, _ in Recording(path).looks()]
    assert times == sorted(times)
    again = started("--record", str(path))
    assert again.wait(30) == 1
    assert "is there already; give --record another name" in again.stderr.read()


def test_a_recording_may_be_the_output(started: Any) -> None:
    process = started("--record", "-")
    head = json.loads(process.stdout.readline())
    assert (head["kind"], head["schema"], head["interval_s"]) == ("vlac-queue record", 1, 0.1)
    assert [json.loads(process.stdout.readline())["verdicts"][0]["kind"] for _ in range(3)] == ["no-workers"] * 3


def test_metrics_are_written_and_served(started: Any, tmp_path: Path, connection: redis.Redis) -> None:
    path, port = tmp_path / "metrics.prom", free_port()
    describe_worker(connection, ttl_ms=600_000)
    fail(connection)
    started("--export", str(path), "--port", str(port))

    def served() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
                return str(reply.read().decode())
        except OSError:
            return ""

    for text in (until(served), until(lambda: path.exists() and path.read_text())):
        values = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}
        assert values["vlac_up"] == 1.0
        assert values["vlac_worker_queries_total"] == 120


def test_a_port_that_is_taken_is_named(started: Any, server: RedisServer) -> None:
    process = started("--port", str(server.port))
    assert process.wait(30) == 1
    place = f"127.0.0.1:{server.port}"
    assert f"can't serve metrics at {place} (Address already in use); choose another" in process.stderr.read()


def test_one_look_that_is_interrupted_is_no_good_news(started: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = started("--json", VLAC_REDIS_URL=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        connection, _ = silent.accept()
        with connection:  # it waits for an answer
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130 and process.stdout.read() == process.stderr.read() == ""


def test_a_task_in_any_script_on_any_terminal(started: Any, connection: redis.Redis, tmp_path: Path) -> None:
    open_episode(connection, "e-1")
    connection.hset("vlac:vlac:episode:e-1", "task", "打开抽屉")
    fail(connection, task="打开抽屉", error="错误")
    describe_worker(connection, ttl_ms=600_000)
    path = tmp_path / "run.jsonl"
    process = started("--record", str(path), PYTHONUTF8="0", PYTHONIOENCODING="latin-1", LC_ALL="C")
    until(lambda: path.exists() and path.read_text().count("\n") >= 3)
    process.send_signal(signal.SIGINT)
    assert "????" not in process.stderr.read() and process.wait(30) == 0
    snapshots = [look.snapshot for look, _ in Recording(path).looks()]
    assert snapshots[0] is not None and snapshots[0].failed[0].task == "打开抽屉"


def test_a_file_that_can_not_be_written_ends_it_with_a_sentence(started: Any, tmp_path: Path) -> None:
    process = started("--export", str(tmp_path / "no" / "metrics.prom"))
    assert process.wait(30) == 1
    error = process.stderr.read()
    assert "No such file or directory" in error
    assert "Traceback" not in error


def test_a_replay_without_a_terminal_prints_all_of_it(started: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorder = Recorder(str(path), URL, "vlac", 1.0)
    for second, name in enumerate(("critic-bound", "redis-away", "rollout-bound")):
        look = replace(LOOKS[name], at=AT + second)
        recorder.add(look, judge(look))
    recorder.close()
    process = started("--replay", str(path), "--speed", "1000")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    order = [output.index(part) for part in ("critic-bound:", "can't be reached", "rollout-bound:")]
    assert order == sorted(order)
    assert f"queue vlac at {URL}" in output


@pytest.mark.parametrize(
    ("text", "code", "part"), [(None, 2, "does not exist"), ("{}\n", 1, "is no recording; make one with")]
)
def test_a_replay_of_something_else_is_refused(
    started: Any, tmp_path: Path, text: str | None, code: int, part: str
) -> None:
    path = tmp_path / "run.jsonl"
    if text is not None:
        path.write_text(text)
    process = started("--replay", str(path))
    assert process.wait(30) == code
    error = process.stderr.read()
    assert str(path) in error and part in error and "Traceback" not in error and "Errno" not in error
