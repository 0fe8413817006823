"""The doctor: real Redis servers and workers; packages, weights and torch as small fakes on sys.path."""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from click.testing import CliRunner
from rich.console import Console
from rq import Queue
from rq.registry import FailedJobRegistry
from rq.suspension import WORKERS_SUSPENDED

from tests.conftest import Workers, until
from tests.vlac_queue.test_faults import answering
from tests.workers.critics import NAME as TASK_CRITIC
from vlac_queue import VlacConfig, packages
from vlac_queue.commands.doctor import examination, gpu_checks, queue_checks, redis_checks
from vlac_queue.commands.doctor.command import doctor as command
from vlac_queue.commands.doctor.examination import examine
from vlac_queue.commands.doctor.gpu_checks import judge_gpu
from vlac_queue.commands.doctor.redis_checks import Server
from vlac_queue.commands.doctor.report import remedies, summary, table
from vlac_queue.finding import Finding
from vlac_queue.keys import Keys
from vlac_queue.messages import PROTOCOL_VERSION
from vlac_queue.server import RedisServer, free_port

_KEYS = Keys("vlac")
_CONFIG = VlacConfig()
_FEW_FRAMES = {"VLAC_MAX_PENDING_BYTES": str(32 << 20)}
_SERVER_CHECKS = {"Redis", "version", "round trip", "memory", "eviction", "persistence", "password"}


def look(
    *arguments: str, host: str = "rollout", critic: str = "reference", **environ: str
) -> tuple[int, dict[str, Finding]]:
    """Runs the command: its exit code, and the findings by check."""
    variables = {"VLAC_CRITIC": critic, **environ}
    result = CliRunner().invoke(command, ["--json", "--host", host, *arguments], env=variables)
    assert "Traceback" not in result.output, result.output
    told = json.loads(result.stdout)
    findings = {row["check"]: Finding(**row) for row in told["findings"]}
    assert len(findings) == len(told["findings"]), "two findings have one name"
    assert told["broken"] == bool(broken(findings)) == bool(result.exit_code)
    for finding in findings.values():
        assert finding.found and (finding.remedy or finding.state in ("ok", "skipped")), finding
    return result.exit_code, findings


def broken(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.state == "broken"}


def describe_worker(connection: redis.Redis, name: str = "w1", **fields: Any) -> None:
    """Leaves on Redis what a CriticWorker says of itself."""
    described: Any = {
        "critic": "reference", "engine": "", "model": "", "state": "idle", "parent": "", "accelerator_bytes": 0,
        "protocol": PROTOCOL_VERSION, **fields,
    }  # fmt: skip
    connection.sadd(_KEYS.workers, name)
    connection.hset(_KEYS.worker(name), mapping=described)
    connection.sadd(_KEYS.rq_workers, f"rq:worker:{name}")
    connection.hset(f"rq:worker:{name}", mapping={"birth": "2026-01-01T00:00:00.000000Z"})


def url_for(server: RedisServer, credentials: str) -> str:
    return server.url.replace("//", f"//{credentials}@")


# Redis.


def test_nothing_is_wrong_with_a_good_installation(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection)
    code, findings = look("--redis-url", server.url)
    assert code == 0
    states = {name: finding.state for name, finding in findings.items() if name != "round trip"}
    assert {name for name, state in states.items() if state != "ok"} == {"VLAC on this host"}
    assert set(findings) >= _SERVER_CHECKS
    assert findings["version"].found == f"Redis {connection.info()['redis_version']}"
    assert " ms" in findings["round trip"].found  # a busy machine has it say more
    assert "only this host can reach it" in findings["password"].found


def test_redis_that_does_not_run_is_broken_and_what_depends_on_it_is_skipped() -> None:
    code, findings = look("--redis-url", f"redis://127.0.0.1:{free_port()}/0")
    assert code == 1 and broken(findings) == {"Redis"}
    assert "start redis-server" in findings["Redis"].remedy
    for name in (_SERVER_CHECKS - {"Redis"}) | {"workers", "same critic", "protocol", "failed jobs"}:
        assert findings[name] == Finding("skipped", "Redis can't be used", check=name)
    assert findings["packages"].state == "ok"


def test_a_url_that_can_not_be_parsed_is_broken() -> None:
    code, findings = look("--redis-url", "redis://:hush@localhost:port/0")
    assert code == 1 and broken(findings) == {"Redis"}
    assert "VLAC_REDIS_URL=" in findings["Redis"].remedy


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    with RedisServer("--requirepass", "hush") as started:
        yield started


def test_a_missing_password_is_broken(guarded: RedisServer) -> None:
    code, findings = look("--redis-url", guarded.url)
    assert code == 1 and broken(findings) == {"Redis"}
    assert "asks for a user and a password" in findings["Redis"].found
    assert "VLAC_REDIS_USERNAME and VLAC_REDIS_PASSWORD_FILE" in findings["Redis"].remedy
    for host, user in (("rollout", "vlac-rollout"), ("gpu", "vlac-worker")):
        (found,) = (each for each in examine(guarded.url, host=host) if each.check == "Redis")
        assert f"to {user}" in found.remedy


def test_what_is_no_redis_is_told() -> None:
    with answering(b"HTTP/1.0 400 Bad Request\r\n\r\n") as port:
        code, findings = look("--redis-url", f"redis://127.0.0.1:{port}/0")
    assert code == 1 and broken(findings) == {"Redis"}
    assert "that is not Redis" in findings["Redis"].remedy


def test_a_wrong_password_is_broken_and_not_shown(guarded: RedisServer) -> None:
    code, findings = look("--redis-url", url_for(guarded, ":sesame"))
    assert code == 1 and "refuses this user" in findings["Redis"].found
    assert "sesame" not in str(findings)


def test_a_password_is_used_and_not_shown(guarded: RedisServer) -> None:
    arguments = ["--redis-url", url_for(guarded, ":hush"), "--host", "rollout"]
    findings = {finding.check: finding for finding in examine(url_for(guarded, ":hush"), host="rollout")}
    assert findings["Redis"].state == "ok" and findings["password"].found == "a password is asked for"
    assert "--askpass" in redis_checks._redis_cli(VlacConfig(redis_url=url_for(guarded, ":hush")))
    for output in ([], ["--json"]):
        assert "hush" not in CliRunner().invoke(command, [*arguments, *output]).output


def test_a_password_that_nobody_asks_for_protects_nothing(server: RedisServer, connection: redis.Redis) -> None:
    _, findings = look("--redis-url", url_for(server, ":hush"))
    # Older releases of redis-py are refused, newer ones are let in.
    if findings["Redis"].state == "ok":
        assert findings["password"].found.startswith("no password")
    else:
        assert "it has no password, and was given one" in findings["Redis"].found


def test_eviction_is_broken_until_the_remedy_was_applied() -> None:
    arguments = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    with RedisServer(*arguments) as evicting, redis.Redis.from_url(evicting.url) as connection:
        describe_worker(connection)
        code, findings = look("--redis-url", evicting.url, **_FEW_FRAMES)
        assert code == 1 and broken(findings) == {"eviction"}
        remedy = findings["eviction"].remedy
        assert remedy == f"redis-cli -p {evicting.port} CONFIG SET maxmemory-policy noeviction"
        connection.execute_command(*remedy.split()[3:])
        assert look("--redis-url", evicting.url, **_FEW_FRAMES)[0] == 0


def test_less_maxmemory_than_pending_bytes_is_a_warning_until_the_remedy_was_applied() -> None:
    with RedisServer("--maxmemory", "64mb") as small, redis.Redis.from_url(small.url) as connection:
        describe_worker(connection)
        code, findings = look("--redis-url", small.url)
        assert (code, findings["memory"].state) == (0, "warning")
        assert "64.0 MiB" in findings["memory"].found and "2.0 GiB" in findings["memory"].found
        connection.execute_command(*findings["memory"].remedy.splitlines()[0].split()[3:])
        assert look("--redis-url", small.url)[1]["memory"].state == "ok"


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (("--save", "3600", "1"), ["save ''"]),
        (("--appendonly", "yes"), ["appendonly no"]),
        (("--save", "60", "1", "--appendonly", "yes"), ["save ''", "appendonly no"]),
    ],
)
def test_persistence_is_a_hint(arguments: tuple[str, ...], settings: list[str]) -> None:
    with RedisServer(*arguments) as persisting:
        _, findings = look("--redis-url", persisting.url)
    assert findings["persistence"].state == "warning"
    assert [part.partition("CONFIG SET ")[2] for part in findings["persistence"].remedy.splitlines()] == settings


def test_a_server_open_to_the_network_without_a_password_is_a_warning() -> None:
    with RedisServer("--bind", "0.0.0.0", "--protected-mode", "no") as exposed:
        _, findings = look("--redis-url", exposed.url)
    assert findings["password"].state == "warning"
    assert "CONFIG SET requirepass" in findings["password"].remedy


@pytest.mark.parametrize(
    ("version", "bind", "protected", "seen_from", "state"),
    [
        ("7.0.15", "* -::*", "yes", "127.0.0.1:9", "ok"),
        ("7.0.15", "10.0.0.5", "yes", "127.0.0.1:9", "ok"),
        ("6.2.14", "10.0.0.5", "yes", "127.0.0.1:9", "warning"),
        ("6.2.14", "", "yes", "127.0.0.1:9", "ok"),
        ("7.0.15", "* -::*", "no", "127.0.0.1:9", "warning"),
        ("7.0.15", "127.0.0.1 -::1", "no", "[::1]:9", "ok"),
        ("7.0.15", "127.0.0.1 10.0.0.5", "no", "127.0.0.1:9", "warning"),
        ("7.0.15", "127.0.0.1", "yes", "10.0.0.7:9", "warning"),
        ("7.0.15", "", "no", "/run/redis.sock:0", "warning"),
    ],
)
def test_who_can_reach_a_server_without_password(
    version: str, bind: str, protected: str, seen_from: str, state: str
) -> None:
    settings = {"bind": bind, "protected-mode": protected}
    server = Server({"redis_version": version}, settings=settings, open=True, seen_from=seen_from)
    assert redis_checks.check_password(server, _CONFIG).state == state


@pytest.fixture
def managed() -> Iterator[str]:
    """The URL of a Redis that refuses CONFIG, as managed ones do, and would evict."""
    with RedisServer("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru") as server:
        with redis.Redis.from_url(server.url) as connection:
            connection.execute_command("ACL", "SETUSER", "tenant", "on", ">pw", "~*", "+@all", "-config")
            describe_worker(connection)
        yield url_for(server, "tenant:pw")


def test_where_config_is_refused_info_tells_and_the_rest_is_skipped(managed: str) -> None:
    code, findings = look("--redis-url", managed)
    assert code == 1 and broken(findings) == {"eviction"}
    assert findings["memory"].state == "warning" and "as INFO says" in findings["memory"].found
    for name in ("persistence", "password"):
        assert findings[name].state == "skipped" and "config" in findings[name].found.lower()


def test_where_info_is_refused_too_checks_say_so(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection)
    connection.execute_command("ACL", "SETUSER", "mute", "on", ">pw", "~*", "+@all", "-config", "-info", "-client")
    try:
        code, findings = look("--redis-url", url_for(server, "mute:pw"))
    finally:
        connection.execute_command("ACL", "DELUSER", "mute")
    assert code == 0
    for name in ("version", "memory", "eviction", "persistence", "password"):
        assert findings[name].state == "skipped" and "permission" in findings[name].found
    assert findings["workers"].state == "ok"


def test_a_user_without_rights_on_our_keys_is_broken(server: RedisServer, connection: redis.Redis) -> None:
    connection.execute_command("ACL", "SETUSER", "other", "on", ">pw", "~other:*", "+@all")
    try:
        code, findings = look("--redis-url", url_for(server, "other:pw"))
    finally:
        connection.execute_command("ACL", "DELUSER", "other")
    assert code == 1 and broken(findings) == {"reading"}
    assert "user other" in findings["reading"].found and "vlac-queue acl" in findings["reading"].remedy
    assert findings["workers"] == Finding("skipped", "Redis could not be read", check="workers")


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"redis_version": "6.0.16"}, "6.2 or newer"),
        ({"redis_version": "7.2.4", "cluster_enabled": 1}, "cluster"),
        ({"redis_version": "7.2.4", "role": "slave"}, "replica"),
    ],
)
def test_a_server_that_can_not_serve_is_broken(info: dict[str, Any], says: str) -> None:
    finding = redis_checks.check_version(Server(info), _CONFIG)
    assert finding.state == "broken" and says in finding.found and finding.remedy


def test_a_slow_round_trip_is_a_warning() -> None:
    assert redis_checks.check_round_trip(Server({}, round_trip_s=0.0004), _CONFIG) == Finding("ok", "0.4 ms")
    slow = redis_checks.check_round_trip(Server({}, round_trip_s=0.025), _CONFIG)
    assert slow.state == "warning" and slow.found.startswith("25.0 ms")


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"maxmemory": 0, "total_system_memory": 1 << 30}, "the machine has 1.0 GiB"),
        ({"maxmemory": 4 << 30, "used_memory": 39 << 27}, "nearly full"),
    ],
)
def test_memory_that_will_not_do_is_a_warning(info: dict[str, Any], says: str) -> None:
    finding = redis_checks.check_memory(Server(info), _CONFIG)
    assert finding.state == "warning" and says in finding.found and finding.remedy


def test_a_failed_snapshot_is_broken() -> None:
    server = Server({"rdb_last_bgsave_status": "err"}, settings={"save": "60 1", "appendonly": "no"})
    finding = redis_checks.check_persistence(server, _CONFIG)
    assert finding.state == "broken" and finding.remedy == "redis-cli CONFIG SET save ''"


@pytest.mark.parametrize(
    ("url", "command_line"),
    [
        ("redis://localhost:6379/0", "redis-cli"),
        ("rediss://:hush@gpu-1:6380/0", "redis-cli -h gpu-1 -p 6380 --tls --askpass"),
        ("unix:///run/redis.sock?db=0&password=hush", "redis-cli -s /run/redis.sock --askpass"),
    ],
)
def test_remedies_go_to_that_server(url: str, command_line: str) -> None:
    assert redis_checks._redis_cli(VlacConfig(redis_url=url)) == command_line


def test_nothing_is_changed_on_redis(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection, "lives")
    connection.sadd(_KEYS.workers, "dead")
    connection.rpush(_KEYS.claims("dead"), "job-1")
    # Expired long ago: RQ's own count would remove it.
    connection.zadd(FailedJobRegistry.key_template.format("vlac"), {"old": 1})
    before = {key: connection.dump(key) for key in connection.scan_iter()}
    connection.config_resetstat()
    _, findings = look("--redis-url", server.url)
    ran = {name.removeprefix("cmdstat_").partition("|")[0] for name in connection.info("commandstats")}
    assert findings["failed jobs"].found.startswith("1 ")
    assert ran <= {
        "hello", "client", "config", "ping", "info", "smembers", "llen", "exists", "zcard", "zrange", "hgetall",
        "hget", "hmget", "select", "command", "time", "lindex", "xrevrange", "zcount",
    }  # fmt: skip
    assert {key: connection.dump(key) for key in connection.scan_iter()} == before


# Settings.


def test_a_misspelt_setting_is_broken_and_says_which_is_meant() -> None:
    code, findings = look(VLAC_CRITC="reference")
    assert code == 1 and broken(findings) == {"settings"}
    assert "'VLAC_CRITIC'" in findings["settings"].found
    assert findings["Redis"] == Finding("skipped", "the settings can't be read", check="Redis")
    assert findings["GPU"].state == "skipped" and findings["packages"].state == "ok"


def test_two_urls_that_differ_are_a_warning(server: RedisServer, connection: redis.Redis) -> None:
    other = "redis://:hush@elsewhere:6379/0"
    _, findings = look(VLAC_REDIS_URL=server.url, RQ_REDIS_URL=other)
    assert findings["settings"].state == "warning" and findings["Redis"].state == "ok"
    assert "redis://:***@elsewhere:6379/0" in findings["settings"].found
    assert look(VLAC_REDIS_URL=server.url, RQ_REDIS_URL=server.url)[1]["settings"].state == "ok"


def test_the_workers_url_is_used_where_there_is_no_other(server: RedisServer, connection: redis.Redis) -> None:
    _, findings = look(RQ_REDIS_URL=server.url)
    assert server.url in findings["settings"].found and findings["Redis"].state == "ok"


def test_a_reference_is_looked_at(tmp_path: Path, server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection)
    path = tmp_path / "success.npz"
    code, findings = look("--redis-url", server.url, VLAC_REFERENCE=str(path))
    assert code == 1 and broken(findings) == {"reference"}
    assert "export VLAC_REFERENCE=" in findings["reference"].remedy
    np.savez(path, frames=np.zeros((5, 8, 16, 3), np.uint8))
    _, findings = look("--redis-url", server.url, VLAC_REFERENCE=str(path))
    assert findings["reference"].found == "5 frames of 16x8"


# The queue.


def test_real_workers_are_told(server: RedisServer, workers: Workers) -> None:
    workers.start("reference", "--name", "critic-a")
    workers.start("reference", "--name", "plain-b", worker_class=None)
    until(workers.described)
    code, findings = look("--redis-url", server.url)
    assert code == 0
    told = findings["workers"].found.splitlines()
    assert told[0] == "1 CriticWorker, 1 plain"
    assert told[1].startswith("critic-a: reference, ") and told[2].startswith("plain-b: plain RQ worker")
    assert findings["same critic"] == Finding("ok", "reference", check="same critic")


def test_real_workers_with_different_critics_are_broken(server: RedisServer, workers: Workers) -> None:
    workers.start("reference")
    workers.start(TASK_CRITIC)
    until(lambda: len(workers.described()) == 2)
    code, findings = look("--redis-url", server.url)
    assert code == 1 and broken(findings) == {"same critic"}
    assert "VLAC_QUEUE" in findings["same critic"].remedy


def test_a_real_rejected_job_is_told_with_its_reason(
    server: RedisServer, connection: redis.Redis, workers: Workers
) -> None:
    workers.start("reference")
    Queue("vlac", connection=connection).enqueue("os.getcwd")
    registry = FailedJobRegistry.key_template.format("vlac")
    until(lambda: connection.zcard(registry))
    code, findings = look("--redis-url", server.url)
    assert (code, findings["failed jobs"].state) == (0, "warning")
    assert findings["failed jobs"].found.startswith("1 failed or rejected; the last: ")
    assert "os.getcwd" in findings["failed jobs"].found


def test_no_worker_is_broken_and_the_command_starts_one(server: RedisServer, connection: redis.Redis) -> None:
    code, findings = look("--redis-url", server.url)
    assert code == 1 and broken(findings) == {"workers"}
    assert f"VLAC_REDIS_URL={server.url} vlac-queue worker" in findings["workers"].remedy.splitlines()
    assert findings["same critic"].state == findings["protocol"].state == "skipped"


def test_no_worker_is_fine_where_one_is_about_to_be_started(server: RedisServer, connection: redis.Redis) -> None:
    _, findings = look("--redis-url", server.url, host="gpu")
    assert findings["workers"].state == "warning" and "start one here" in findings["workers"].remedy


def test_workers_are_told_in_full_and_not_without_end(server: RedisServer, connection: redis.Redis) -> None:
    for number in range(11):
        vlac = {"critic": "vlac", "engine": "pt", "model": "/models/VLAC", "accelerator_bytes": 6 << 30}
        describe_worker(connection, f"w{number:02}", parent="plain", **vlac)
    _, findings = look("--redis-url", server.url, critic="vlac")
    told = findings["workers"].found.splitlines()
    assert told[1] == "w00: vlac (pt), /models/VLAC, idle, 6.0 GiB of GPU memory, inside plain"
    assert told[9:] == ["and 3 more"]


def test_what_others_wrote_can_not_reach_the_terminal(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection, "w\x1b[2J", model="\x1b]0;title\x07")
    _, findings = look("--redis-url", server.url)
    assert all(char.isprintable() or char == "\n" for finding in findings.values() for char in finding.found)


def test_what_is_looked_at_goes_by_the_critic_that_workers_run(
    server: RedisServer, connection: redis.Redis, host: Host
) -> None:
    host.hide("torch")
    describe_worker(connection)
    plain = CliRunner().invoke(command, ["--json", "--redis-url", server.url])
    told = {row["check"]: row for row in json.loads(plain.stdout)["findings"]}
    assert plain.exit_code == 0 and told["same critic"]["state"] == "ok", told
    assert told["VLAC on this host"]["found"].startswith("the critic is reference")
    # What was asked for is looked at all the same.
    assert "torch" in broken(look("--redis-url", server.url, host="auto", critic="vlac")[1])


def test_a_critic_of_ones_own_is_made(
    server: RedisServer, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from workers.critics.reference import ReferenceCritic as Mine\nclass Other: pass\n"
    )
    says = {
        "nosuch.mod:Klass": "No module named 'nosuch'",
        "mine:Nobody": "no attribute 'Nobody'",
        "mine:Other": "takes no arguments",
        "mine:Mine": "mine:Mine can be made",
    }
    for critic, said in says.items():
        describe_worker(connection, critic=critic)
        code, findings = look("--redis-url", server.url, host="auto", critic=critic)
        assert said in findings["critic"].found and broken(findings) == ({"critic"} if code else set())
    assert code == 0
    assert "critic" not in look("--redis-url", server.url, critic="nosuch.mod:Klass")[1]


def test_different_models_are_a_warning(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection, "a", critic="vlac", engine="pt", model="/old")
    describe_worker(connection, "b", critic="vlac", engine="pt", model="/new")
    code, findings = look("--redis-url", server.url, critic="vlac")
    assert (code, findings["same critic"].state) == (0, "warning")
    assert "/new pt and /old pt" in findings["same critic"].found


def test_another_critic_than_the_settings_say_is_a_warning(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection)
    code, findings = look("--redis-url", server.url, critic="vlac")
    assert (code, findings["same critic"].state) == (0, "warning")
    assert "export VLAC_CRITIC=reference" in findings["same critic"].remedy


def test_another_protocol_is_broken(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection, "a")
    describe_worker(connection, "b", protocol=PROTOCOL_VERSION + 1)
    code, findings = look("--redis-url", server.url)
    assert code == 1 and broken(findings) == {"protocol"}
    assert "the same version of vlac-queue" in findings["protocol"].remedy


def test_a_worker_that_does_not_tell_its_protocol_is_named(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection, "a")
    describe_worker(connection, "b", protocol="")
    _, findings = look("--redis-url", server.url)
    assert findings["protocol"] == Finding("skipped", "not told by b", check="protocol")


@pytest.mark.parametrize(("others", "says"), [(False, "start a CriticWorker"), (True, "within 10 s")])
def test_jobs_of_a_dead_worker_are_a_warning(
    server: RedisServer, connection: redis.Redis, others: bool, says: str
) -> None:
    if others:
        describe_worker(connection)
    connection.sadd(_KEYS.workers, "dead")
    connection.rpush(_KEYS.claims("dead"), "job-1", "job-2")
    _, findings = look("--redis-url", server.url)
    finding = findings["dead workers"]
    assert (finding.state, finding.found) == ("warning", "dead holds 2 jobs") and says in finding.remedy


def test_jobs_of_a_live_worker_are_nothing_to_tell(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection)
    connection.rpush(_KEYS.claims("w1"), "job-1")
    assert look("--redis-url", server.url)[1]["dead workers"].found == "none holds a job"


def test_suspended_workers_are_broken(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection)
    connection.set(WORKERS_SUSPENDED, 1)
    connection.rpush(_KEYS.rq_queue, "job")
    code, findings = look("--redis-url", server.url)
    assert code == 1 and broken(findings) == {"queue"}
    assert findings["queue"].found.startswith("1 job waiting") and "rq resume" in findings["queue"].remedy


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (zlib.compress(b"Traceback (most recent call last):\n  ...\nValueError: no\n"), "ValueError: no"),
        (zlib.compress(b""), ""),
        (b"not compressed", ""),
        (zlib.compress(b"a" * 5_000_000 + b"\nnot unpacked"), "a" * 200),
        (None, ""),
    ],
)
def test_the_reason_of_a_failure_is_its_last_line(packed: bytes | None, reason: str) -> None:
    assert queue_checks._reason(packed) == reason


# Packages, weights and GPU: fakes on sys.path.

_FITTING = {
    "torch": "2.6.0", "torchvision": "0.21.0", "transformers": "4.51.3", "ms-swift": "3.3.0", "numpy": "1.26.4",
    "pyarrow": "21.0.0", "vllm": "0.12.0",
}  # fmt: skip
_TORCH = """
class version:
    cuda = {build!r}
class cuda:
    is_available = staticmethod(lambda: {count} > 0)
    device_count = staticmethod(lambda: {count})
    mem_get_info = staticmethod(lambda index: ({free}, {total}))
    get_device_name = staticmethod(lambda index: "Fake GPU")
"""


class Host:
    """A machine with just these packages, as the doctor sees it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "site"
        self.weights = folder / "weights"
        self._hidden: set[str] = set()
        self.folder.mkdir()
        monkeypatch.syspath_prepend(self.folder)
        monkeypatch.setenv("PYTHONPATH", str(self.folder))
        version, find_spec = metadata.version, importlib.util.find_spec

        def seen_version(name: str) -> str:
            if name in self._hidden or name == "flash_attn":
                raise metadata.PackageNotFoundError(name)
            return version(name)

        def seen_spec(name: str) -> Any:
            return None if name in self._hidden else find_spec(name)

        monkeypatch.setattr(metadata, "version", seen_version)
        monkeypatch.setattr(importlib.util, "find_spec", seen_spec)
        for name in _FITTING.items():
            self.install(*name)
        for module in ("loguru", "cv2", "timm", "torchvision"):
            self.module(module)
        self.module("evo_vlac/utils/model_utils")
        self.gpu()
        self.download()

    def install(self, name: str, version: str) -> None:
        for old in self.folder.glob(f"{name.replace('-', '_')}-*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        importlib.invalidate_caches()

    def hide(self, *names: str) -> None:
        self._hidden |= set(names)

    def module(self, path: str, text: str = "") -> Path:
        file = self.folder / f"{path}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        importlib.invalidate_caches()
        return file

    def gpu(self, count: int = 1, free: int = 70 << 30, total: int = 80 << 30, build: str | None = "12.4") -> None:
        self.module("torch", _TORCH.format(count=count, free=free, total=total, build=build))

    def download(self) -> None:
        """Weights in two shards, with the model's code and tokenizer."""
        self.weights.mkdir()
        shards = {f"part{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
        for shard in shards.values():
            header = json.dumps({"w": {"dtype": "U8", "shape": [100], "data_offsets": [0, 100]}}).encode()
            (self.weights / shard).write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
        (self.weights / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        config = {"auto_map": {"AutoModel": "modeling_vlac.Model", "AutoConfig": "other/repository--config.C"}}
        (self.weights / "config.json").write_text(json.dumps(config))
        for name in ("modeling_vlac.py", "tokenizer.model", "tokenizer_config.json"):
            (self.weights / name).write_text("{}")

    def look(self, **environ: str) -> tuple[int, dict[str, Finding]]:
        """The findings about this host; Redis does not run."""
        where = f"redis://127.0.0.1:{free_port()}/0"
        environ = {"VLAC_MODEL_PATH": str(self.weights), **environ}
        code, findings = look("--redis-url", where, host="auto", critic="vlac", **environ)
        del findings["Redis"]
        return code, findings


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


@pytest.mark.parametrize("engine", ["pt", "vllm"])
def test_a_gpu_host_that_has_everything(host: Host, engine: str) -> None:
    if engine == "vllm":
        host.install("ms-swift", "3.12.6")
        host.install("transformers", "4.57.3")
        host.hide("timm")
    _, findings = host.look(VLAC_ENGINE=engine)
    assert not broken(findings)
    assert {name for name in examination._HOST_CHECKS if findings[name].state != "ok"} == set()
    assert findings["torch"].found == "torch 2.6.0, torchvision 0.21.0"
    assert findings["weights"].found.endswith("2 files of weights, 344 B, tokenizer")
    assert findings["GPU"].found == "Fake GPU, 70.0 GiB of 80.0 GiB free; the critic may use 12.0 GiB"


@pytest.mark.parametrize(
    ("check", "package", "version", "engine", "remedy"),
    [
        ("packages", "rq", "2.6.0", "pt", "pip install 'rq>=3,<4'"),
        ("packages", "rq", "4.0.0", "pt", "pip install 'rq>=3,<4'"),
        ("packages", "redis", "5.3.0", "pt", "pip install 'redis>=6.0'"),
        ("packages", "numpy", "1.24.0", "pt", "pip install 'numpy>=1.26'"),
        ("packages", "lz4", "3.1.10", "pt", "pip install 'lz4>=4.3'"),
        ("packages", "lz4", None, "pt", "pip install 'lz4>=4.3'"),
        ("torch", "torch", None, "pt", "pip install torch torchvision"),
        ("transformers", "transformers", None, "pt", "pip install transformers==4.51.3"),
        ("transformers", "transformers", "5.0.0", "pt", "pip install transformers==4.51.3"),
        ("ms-swift", "ms-swift", None, "pt", "ms-swift==3.3.0"),
        ("ms-swift", "ms-swift", "4.0.1", "pt", "ms-swift==3.3.0"),
        ("ms-swift", "ms-swift", "3.13.0", "pt", "ms-swift==3.3.0"),
        ("ms-swift", "ms-swift", "3.7.3", "vllm", "ms-swift==3.12.6"),
        ("ms-swift", "numpy", "2.1.0", "pt", "pip install 'numpy<2' 'pyarrow<22'"),
        ("ms-swift", "pyarrow", "22.0.0", "pt", "pip install 'pyarrow<22'"),
        ("engine", "vllm", None, "vllm", "pip install vllm==0.12.0"),
        ("engine", "vllm", "0.11.2", "vllm", "pip install vllm==0.12.0"),
        ("transformers", "transformers", "4.51.3", "vllm", "pip install transformers==4.57.3"),
        ("evo_vlac", "evo_vlac", None, "pt", "pip install --no-deps -e VLAC"),
        ("evo_vlac", "loguru", None, "pt", "pip install loguru"),
        ("evo_vlac", "cv2", None, "pt", "pip install 'opencv-python-headless<4.12'"),
        ("evo_vlac", "timm", None, "pt", "pip install timm"),
    ],
)
def test_a_package_that_does_not_fit_is_broken(
    host: Host, check: str, package: str, version: str | None, engine: str, remedy: str
) -> None:
    if engine == "vllm":
        host.install("ms-swift", "3.12.6")
        host.install("transformers", "4.57.3")
    if version is None:
        host.hide(package)
    else:
        host.install(package, version)
    code, findings = host.look(VLAC_ENGINE=engine)
    assert code == 1 and broken(findings) == {check}
    assert remedy in findings[check].remedy
    assert (version or package if package != "evo_vlac" else "not installed") in findings[check].found


@pytest.mark.parametrize(
    ("check", "package", "version", "remedy"),
    [
        ("torch", "torchvision", "0.20.0", "pip install 'torchvision==0.21.*'"),
        ("transformers", "transformers", "4.49.0", "pip install transformers==4.51.3"),
        ("ms-swift", "ms-swift", "3.2.0", "ms-swift==3.3.0"),
    ],
)
def test_a_package_that_was_not_tried_is_a_warning(
    host: Host, check: str, package: str, version: str, remedy: str
) -> None:
    host.install(package, version)
    _, findings = host.look()
    assert not broken(findings) and findings[check].state == "warning"
    assert remedy in findings[check].remedy


def test_newer_swift_needs_neither_old_numpy_nor_old_pyarrow(host: Host) -> None:
    for name, version in (("ms-swift", "3.12.6"), ("numpy", "2.2.0"), ("pyarrow", "22.0.0")):
        host.install(name, version)
    assert host.look()[1]["ms-swift"].state == "ok"


def test_evo_vlac_without_its_folder_is_broken(host: Host) -> None:
    (host.folder / "evo_vlac" / "utils" / "model_utils.py").unlink()
    _, findings = host.look()
    assert broken(findings) == {"evo_vlac"} and "-e VLAC" in findings["evo_vlac"].remedy


def test_no_package_is_imported(host: Host) -> None:
    for module in ("loguru", "cv2", "timm", "torchvision", "evo_vlac/utils/model_utils"):
        host.module(module, "raise SystemExit('imported')")
    assert not broken(host.look()[1])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda w: (w / "model-00002-of-00002.safetensors").unlink(), "lacks model-00002-of-00002.safetensors"),
        (lambda w: (w / "config.json").unlink(), "lacks config.json"),
        (lambda w: (w / "tokenizer.model").unlink(), "lacks a tokenizer"),
        (lambda w: (w / "tokenizer_config.json").unlink(), "lacks tokenizer_config.json"),
        (lambda w: (w / "modeling_vlac.py").unlink(), "lacks modeling_vlac.py"),
        (lambda w: [path.unlink() for path in w.glob("model*.*s*") if path.suffix != ".py"], "lacks weights"),
        (
            lambda w: (w / "model-00001-of-00002.safetensors").write_bytes(
                (w / "model-00001-of-00002.safetensors").read_bytes()[:-1]
            ),
            "incomplete: model-00001-of-00002.safetensors",
        ),
        (
            lambda w: (w / "model-00001-of-00002.safetensors").write_text(
                "version https://git-lfs.github.com/spec"
            ),
            "incomplete: model-00001-of-00002.safetensors",
        ),
        (lambda w: (w / "more.bin").write_text("version https://git-lfs.github.com/spec"), "incomplete: more.bin"),
        (lambda w: (w / "more.bin").touch(), "incomplete: more.bin"),
        (lambda w: (w / "config.json").write_text("{"), "can't be read"),
        (lambda w: (w / "model.safetensors.index.json").write_text("[]"), "can't be read"),
    ],
)
def test_weights_that_are_not_complete_are_broken(host: Host, damage: Any, says: str) -> None:
    damage(host.weights)
    code, findings = host.look()
    assert code == 1 and broken(findings) == {"weights"}
    assert says in findings["weights"].found
    assert "huggingface-cli download InternRobotics/VLAC" in findings["weights"].remedy


@pytest.mark.parametrize(
    ("path", "state", "says"),
    [
        ("", "broken", "VLAC_MODEL_PATH is not set"),
        ("/no/such/folder", "broken", "is no folder"),
        ("InternRobotics/VLAC", "skipped", "name on a hub"),
    ],
)
def test_where_the_weights_are_said_to_be(host: Host, path: str, state: str, says: str) -> None:
    finding = host.look(VLAC_MODEL_PATH=path)[1]["weights"]
    assert finding.state == state and says in finding.found


def test_no_gpu_is_broken(host: Host) -> None:
    host.gpu(count=0, build=None)
    code, findings = host.look()
    assert code == 1 and broken(findings) == {"GPU"}
    assert findings["GPU"].found == "torch (a build without CUDA) sees no GPU"
    assert "nvidia-smi" in findings["GPU"].remedy


def test_a_torch_that_can_not_be_imported_is_broken_and_says_why(host: Host) -> None:
    host.module("torch", "raise OSError('libcudart.so.12: cannot open shared object file')")
    code, findings = host.look()
    assert code == 1 and broken(findings) == {"GPU"}
    assert "libcudart.so.12" in findings["GPU"].found and "pip install torch" in findings["GPU"].remedy


def test_without_torch_the_gpu_is_not_told(host: Host) -> None:
    host.hide("torch")
    assert host.look()[1]["GPU"].state == "skipped"


def with_setting(name: str, value: str) -> VlacConfig:
    config = VlacConfig()
    object.__setattr__(config, name, value)
    return config


def test_the_device_that_is_set_is_the_one_looked_at(host: Host) -> None:
    host.gpu(count=2)
    assert gpu_checks.check_gpu(with_setting("device", "cuda:1")).state == "ok"
    beyond = gpu_checks.check_gpu(with_setting("device", "cuda:2"))
    assert beyond.state == "broken" and "2 GPUs, and VLAC_DEVICE=cuda:2" in beyond.found
    assert "export VLAC_DEVICE=auto" in beyond.remedy
    host.module("torch", "raise SystemExit('imported')")
    assert gpu_checks.check_gpu(with_setting("device", "cpu")).state == "ok"


def test_flash_attention_that_is_set_must_be_installed(host: Host) -> None:
    missing = packages.check_engine(with_setting("attention", "flash_attn"))
    assert missing.state == "broken" and missing.remedy.startswith("pip install flash-attn")
    assert "no flash_attn: eager" in packages.check_engine(VlacConfig()).found


@pytest.mark.parametrize(
    ("fraction", "free", "total", "state", "remedy"),
    [
        (0.15, 70, 80, "ok", ""),
        (0.15, 9, 80, "warning", "nvidia-smi"),
        (0.15, 23, 24, "broken", "export VLAC_GPU_MEMORY_FRACTION=0.3"),
        (1.0, 4, 4, "broken", "a GPU with more memory"),
    ],
)
def test_a_gpus_memory_is_judged(fraction: float, free: int, total: int, state: str, remedy: str) -> None:
    finding = judge_gpu(VlacConfig(gpu_memory_fraction=fraction), "GPU", free << 30, total << 30)
    assert finding.state == state and remedy in finding.remedy


def test_the_remedy_for_a_small_gpu_mends_it() -> None:
    finding = judge_gpu(VlacConfig(), "GPU", 23 << 30, 24 << 30)
    mended = VlacConfig.from_env(dict([finding.remedy.removeprefix("export ").split("=")]))
    assert judge_gpu(mended, "GPU", 23 << 30, 24 << 30).state == "ok"


# What is shown.


@pytest.mark.parametrize("width", [80, 119, 120, 140])
def test_the_table_fits_and_tells_all(width: int) -> None:
    command_line = (
        "redis-cli -h a-server-of-a-long-name.example.org -p 12345 CONFIG SET maxmemory-policy noeviction"
    )
    findings = [
        Finding("ok", "Redis 7.2.4", check="version"),
        Finding("broken", "evicts [bold]frames[/bold]", f"mend it:\n{command_line}", "eviction"),
        Finding("skipped", "Redis is away", check="workers"),
        Finding("skipped", "Redis is away", check="queue"),
        Finding("skipped", "not told", check="protocol"),
    ]
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(findings))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "evicts [bold]frames[/bold]" in text
    console.print(remedies(findings), soft_wrap=True)
    assert f"  {command_line}" in console.export_text().splitlines()
    assert "2 checks skipped Redis is away: workers, queue" in text and "protocol skipped not told" in text
    assert summary(findings) == "1 broken (eviction), 0 warnings, 3 skipped."


def test_the_command_shows_a_table_and_how_to_leave_vlac_out(
    host: Host, server: RedisServer, connection: redis.Redis
) -> None:
    host.hide("torch")
    result = CliRunner().invoke(command, ["--redis-url", server.url], env={"COLUMNS": "100"})
    assert result.exit_code == 1
    assert "torch is not installed" in result.output and "--host rollout" in result.output
    left_out = CliRunner().invoke(command, ["--redis-url", server.url, "--host", "rollout"])
    assert "torch" not in left_out.output
