"""Real workers while a real Redis refuses them: whatever it says, they go on once it lets them."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.chaos.servers import Server
from tests.conftest import Workers, until
from tests.workers.critics import NAME, frame
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.keys import Keys

KEYS = Keys("vlac")


@contextlib.contextmanager
def failed_snapshot(server: Server, control: redis.Redis) -> Iterator[None]:
    """MISCONF: as root no folder is unwritable, but one may be gone."""
    shutil.rmtree(server.folder)
    control.config_set("save", "3600 1000000")
    control.bgsave()
    until(lambda: control.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield
    control.config_set("save", "")


@contextlib.contextmanager
def too_few_replicas(server: Server, control: redis.Redis) -> Iterator[None]:
    """NOREPLICAS."""
    control.config_set("min-replicas-to-write", 1)
    yield
    control.config_set("min-replicas-to-write", 0)


@contextlib.contextmanager
def endless_script(server: Server, control: redis.Redis) -> Iterator[None]:
    """BUSY."""

    def run() -> None:
        with server.connection() as link, contextlib.suppress(redis.RedisError):
            link.eval("while true do end", 0)

    control.config_set("lua-time-limit", 50)
    script = threading.Thread(target=run, daemon=True)
    script.start()
    until(lambda: _refused(control.ping))
    yield
    control.script_kill()
    script.join()


@contextlib.contextmanager
def rights_withdrawn(server: Server, control: redis.Redis) -> Iterator[None]:
    """NOPERM."""
    control.execute_command("ACL", "SETUSER", "worker", "-@all")
    yield
    control.execute_command("ACL", "SETUSER", "worker", "+@all")


def _refused(command: Callable[[], Any]) -> bool:
    try:
        command()
    except redis.ResponseError:
        return True
    return False


@pytest.mark.parametrize(
    "fault",
    [failed_snapshot, pytest.param(too_few_replicas, marks=pytest.mark.slow), endless_script, rights_withdrawn],
)
def test_a_worker_goes_on_once_redis_does(fault: Any, tmp_path: Path, fleets: Any) -> None:
    waited_for_at_start = fault in (failed_snapshot, too_few_replicas)
    parts = ["heartbeat", "scheduler"]
    if fault is not endless_script:  # while one runs, who waits for a job already is not told
        parts += ["taking jobs", "maintenance"]
    with Server(tmp_path / "redis") as server, server.connection() as control:
        control.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
        url = server.url.replace("redis://", "redis://worker:secret@")
        workers: Workers = fleets(url, control)
        process = workers.start(NAME, "--maintenance-interval", "1")
        until(workers.described)
        with fault(server, control):
            for part in parts:  # each has met it
                until(lambda part=part: f"{part}: " in workers.log.read_text())
            if waited_for_at_start:
                later = workers.start(NAME, wait=False)
        _answers(server, workers)
        if waited_for_at_start:
            until(lambda: len(workers.described()) == 2)
            later.terminate()
            assert later.wait(10) == 0
        assert process.poll() is None
        log = workers.log.read_text()
        assert "secret" not in log and "Traceback" not in log
        # Told when it begins and ends, not at each try.
        assert all(log.count(f"{part}: ") <= 4 for part in parts)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_keys_of_a_wrong_type_end_no_worker(tmp_path: Path, fleets: Any) -> None:
    with Server(tmp_path / "redis") as server, server.connection() as control:
        workers: Workers = fleets(server.url, control)
        process = workers.start(NAME, "--maintenance-interval", "1")
        name = _answers(server, workers)
        for_people = ["rq:failed:vlac", "rq:workers", KEYS.events, KEYS.totals, KEYS.alone]
        _spoil(control, for_people)
        until(lambda: "maintenance: " in workers.log.read_text() and "heartbeat: " in workers.log.read_text())
        _answers(server, workers)  # all that matters is there
        needed = [KEYS.rq_queue, KEYS.claims(name), f"{KEYS.claims(name)}:next"]
        needed += [KEYS.workers, KEYS.worker(name), KEYS.rq_workers, f"rq:worker:{name}"]
        _spoil(control, needed)
        until(lambda: "taking jobs: " in workers.log.read_text())
        control.delete(*needed, *for_people)
        _answers(server, workers)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def _spoil(control: redis.Redis, keys: list[str]) -> None:
    with control.pipeline() as pipeline:
        for key in keys:
            pipeline.delete(key)
            # A list is wanted nowhere but where a hash is put.
            if key in (KEYS.rq_queue, KEYS.alone) or ":claims:" in key:
                pipeline.hset(key, "somebody", "else")
            else:
                pipeline.rpush(key, "somebody else")
        pipeline.execute()


def _answers(server: Server, workers: Workers) -> str:
    """Gets an answer; the name of the worker that gave it."""
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=20)) as client:
        (name,) = until(lambda: _listening(client))
        with client.episode("task") as episode:
            episode.push(frame(51))
            assert episode.ask_done().result().score == 0.2, workers.log.read_text()
        return str(name)


def _listening(client: CriticClient) -> list[str]:
    with contextlib.suppress(Exception):
        return list(client.ping())
    return []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.chaos)])
def test_a_worker_ends_while_redis_is_away(number: signal.Signals, tmp_path: Path, fleets: Any) -> None:
    """However many answers it could not write."""
    with Server(tmp_path / "redis") as server, server.connection() as control:
        workers: Workers = fleets(server.url, control)
        process = workers.start(NAME, VLAC_MAX_BATCH="1")
        client = CriticClient(VlacConfig(redis_url=server.url, max_batch=256, patience_s=0))
        gate = tmp_path / "gate"
        episodes = [client.episode(task) for task in (f"hold {gate}", *["task"] * 255)]
        client.push_many([(episode, frame(51)) for episode in episodes])
        client.ask_done_many(episodes)
        until((tmp_path / "gate.begun").exists)
        server.send(number)
        gate.touch()
        if number == signal.SIGKILL:
            until(lambda: "answers" in workers.log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_the_scheduler_ends_with_its_worker(tmp_path: Path, workers: Workers) -> None:
    process = workers.start(NAME)
    (scheduler,) = until(psutil.Process(process.pid).children)
    process.kill()
    process.wait()
    until(lambda: not psutil.pid_exists(scheduler.pid))


def test_an_answer_waits_for_the_right_to_write_it(tmp_path: Path, fleets: Any) -> None:
    with Server(tmp_path / "redis") as server, server.connection() as control:
        control.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
        workers: Workers = fleets(server.url.replace("redis://", "redis://worker:secret@"), control)
        workers.start(NAME)
        until(workers.described)
        with CriticClient(VlacConfig(redis_url=server.url, timeout_s=20)) as client:
            episode = client.episode(f"hold {tmp_path / 'gate'}")
            episode.push(frame(51))
            pending = episode.ask_done()
            until((tmp_path / "gate.begun").exists)
            control.execute_command("ACL", "SETUSER", "worker", "-xadd")
            (tmp_path / "gate").touch()
            until(lambda: "answers: " in workers.log.read_text())
            control.execute_command("ACL", "SETUSER", "worker", "+xadd")
            assert pending.result().score == 0.2
