"""Harm that can be done again and again within one server: each fault by its name."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.chaos.rollout import start as start_rollout
from tests.chaos.stage import Stage
from tests.conftest import ROOT, until
from tests.workers.critics import frame
from vlac_queue import CriticClient, CriticFailed

#: What a query's failure says that three deaths permit, and nothing else in here does.
PERMITTED = "workers died while they had this query"
#: Seconds in an hour, and some.
_HOUR_S = 4000

Harm = Callable[[Stage], float | None]


@dataclass(frozen=True)
class Fault:
    """What is done; returns when it was done (time.monotonic), or None: it is over as `do` returns.

    `deadly`: processes of workers end or begin anew by what they are asked, so who is to be spared must not be.
    """

    name: str
    do: Harm
    deadly: bool = False
    shifts_clock: bool = False


FAULTS: dict[str, Fault] = {}


def _fault(name: str, **marks: bool) -> Callable[[Harm], Harm]:
    def register(do: Harm) -> Harm:
        FAULTS[do.__name__] = Fault(name, do, **marks)
        return do

    return register


def harm(stage: Stage, key: str) -> float:
    """Does harm.

    Returns:
        The time from which recovery counts.
    """
    fault = FAULTS[key]
    spared = stage.spared if fault.deadly else []
    for process in spared:
        process.send_signal(signal.SIGSTOP)
    try:
        since = fault.do(stage)
    finally:
        for process in spared:
            process.send_signal(signal.SIGCONT)
    return time.monotonic() if since is None else since


# Workers.


@_fault("worker killed (-9)")
def worker_killed(stage: Stage) -> None:
    stage.victim().kill()


@_fault("worker frozen (SIGSTOP), woken later")
def worker_frozen(stage: Stage) -> float:
    since, victim = time.monotonic(), stage.victim()
    victim.send_signal(signal.SIGSTOP)
    stage.lasts(1, 10)
    victim.send_signal(signal.SIGCONT)
    return since


@_fault("all workers frozen for some seconds")
def workers_frozen(stage: Stage) -> None:
    frozen = stage.alive()
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    stage.lasts(2, 10)
    for process in frozen:
        process.send_signal(signal.SIGCONT)


@_fault("worker replaced (SIGTERM)")
def worker_replaced(stage: Stage) -> float:
    old = stage.victim()
    stage.start()
    since = time.monotonic()
    old.terminate()
    assert old.wait(120) in (0, -signal.SIGTERM)  # it may just be about to begin anew
    return since


@_fault("critic stuck in a loop", deadly=True)
def critic_hangs(stage: Stage) -> float:
    since, gate = time.monotonic(), _new_file(stage, "hang")
    with stage.client() as client:
        pending = _ask(client, f"hang {gate}", 51)
        until(lambda: os.path.exists(f"{gate}.hangs"), 120)
        open(gate, "w").close()  # only who hangs already does not see it
        assert pending.result().score == 0.2
        stage.answered = time.monotonic()
    return since


@_fault("critic ends its process (sys.exit)", deadly=True)
def critic_exits(stage: Stage) -> float:
    return _answered_by_the_next(stage, "exit")


@_fault("critic ends its process (os._exit)", deadly=True)
def critic_vanishes(stage: Stage) -> float:
    return _answered_by_the_next(stage, "vanish")


@_fault("CUDA error that poisons the process", deadly=True)
def accelerator_lost(stage: Stage) -> float:
    return _answered_by_the_next(stage, "lose")


@_fault("poison query: kills three workers, then fails alone", deadly=True)
def poisoned(stage: Stage) -> float:
    while len(stage.alive()) < 4 + len(stage.spared):
        stage.start()
    since = time.monotonic()
    with stage.client() as client, pytest.raises(CriticFailed, match=f"3 {PERMITTED}"):
        _ask(client, "kill", 51).result()
    stage.answered = time.monotonic()
    return since


@_fault("claims lost, then the worker killed")
def claims_lost(stage: Stage) -> float:
    victim = stage.victim()
    claims = stage.keys.claims(stage.name(victim))

    def caught() -> int:
        victim.send_signal(signal.SIGSTOP)
        if not (held := int(stage.control.delete(claims))):  # type: ignore[arg-type]
            victim.send_signal(signal.SIGCONT)
        return held

    until(caught, 120)
    victim.kill()
    return time.monotonic()


@_fault("more frames than a worker has memory for")
def hungry(stage: Stage) -> None:
    """7 MB that unpack to 1.9 GB: that query fails, and nothing else."""
    alive = stage.alive()
    with stage.client() as client, client.episode("task") as episode:
        black = np.zeros((20, 1000, 1000, 3), np.uint8)
        for _ in range(32):
            episode.push(black)
        with pytest.raises(CriticFailed, match=r"(?i)memory"):
            episode.ask_value().result()
    assert all(process.poll() is None for process in alive)


@_fault("critics put to sleep and woken while connections are killed")
def asleep(stage: Stage) -> None:
    """As around an update of the policy: between two rounds."""
    with stage.between_rounds(), stage.client() as client, _connections_killed(stage):
        client.ping()
        client.sleep_workers(timeout_s=120)
        client.wake_workers(timeout_s=120)


# Rollouts.


@_fault("rollout killed (-9)")
def rollout_killed(stage: Stage) -> None:
    before = _streams(stage)
    dying = start_rollout(stage.proxy.url, "--ttl", "60")
    until(lambda: _streams(stage) - before, 120)
    dying.kill()
    dying.communicate()


@_fault("rollout forks with open episodes")
def forked(stage: Stage) -> None:
    with stage.client() as client:
        pendings = [_ask(client, "task", 51) for _ in range(4)]
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_in_child, args=(client, theirs))
        child.start()
        theirs.close()
        pendings += [_ask(client, "task", 51) for _ in range(4)]
        assert [pending.result().score for pending in pendings] == [0.2] * 8
        child_id, scores = ours.recv()
        child.join()
        assert child_id != client.id
        assert scores == [0.4] * 4
        # What the child did or left must not have touched what is open here.
        assert [pending.episode.ask_done().result().score for pending in pendings] == [0.2] * 8


def _in_child(client: CriticClient, pipe: Connection) -> None:
    with client:
        pipe.send((client.id, [_ask(client, "task", 102).result().score for _ in range(4)]))


@_fault("Ctrl-C in the middle of a push, then on")
def interrupted(stage: Stage) -> None:
    """Whatever was broken off, each episode holds the frames that it says it does, and goes on."""
    with stage.client() as client, _ctrl_c() as broken_off:
        episodes = client.episodes(["task"] * 48)
        pushed: list[list[int]] = [[] for _ in episodes]
        took = 1.0
        for step in range(9):
            reds = [stage.chance.randrange(256) for _ in episodes]
            pushes = [(episode, frame(red, 64)) for episode, red in zip(episodes, reds, strict=True)]
            began = time.monotonic()
            after = stage.chance.random() * took if step % 3 else None
            pendings = broken_off(lambda pushes=pushes: client.observe_many(pushes), after) or []
            if pendings:
                took = min(took, time.monotonic() - began)
            for episode, known, red in zip(episodes, pushed, reds, strict=True):
                assert episode.frames - len(known) in (0, 1)
                known += [red] * (episode.frames - len(known))
            scores = [pending.result().score for pending in pendings]
            assert scores == pytest.approx([red / 255 for red in reds] if pendings else [])
        values = client.ask_value_many(episodes)
        client.wait(values)
        for pending, known in zip(values, pushed, strict=True):
            assert pending.verdict().values == pytest.approx([100 * red / 255 for red in known])


# Redis.


@_fault("Redis killed, restarted with its data (AOF)")
def restarted(stage: Stage) -> None:
    stage.server.kill()
    stage.server.start()


@_fault("Redis killed, all data lost")
def data_lost(stage: Stage) -> None:
    stage.server.kill()
    for file in stage.server.folder.glob("appendonly*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    stage.server.start()


@_fault("Redis emptied (FLUSHALL)")
def flushed(stage: Stage) -> None:
    stage.control.flushall()


@_fault("Redis frozen (SIGSTOP)")
def redis_frozen(stage: Stage) -> None:
    stage.server.send(signal.SIGSTOP)
    stage.lasts(1, 8)
    stage.server.send(signal.SIGCONT)


@_fault("Redis full (noeviction)")
def full(stage: Stage) -> None:
    stage.control.config_set("maxmemory", 1)  # whatever is closed meanwhile
    stage.lasts(1, 5)
    stage.control.config_set("maxmemory", 0)


@_fault("keys evicted (allkeys-lru)")
def evicted(stage: Stage) -> None:
    control = stage.control
    before = control.info("stats")["evicted_keys"]
    control.config_set("maxmemory-policy", "allkeys-lru")
    # What no server needs: for a moment, it must evict almost all that it has.
    control.config_set("maxmemory", control.info("memory")["used_memory_overhead"])
    until(lambda: control.info("stats")["evicted_keys"] > before + 20)
    control.config_set("maxmemory", 0)
    control.config_set("maxmemory-policy", "noeviction")


@_fault("ten keys gone, whichever")
def keys_gone(stage: Stage) -> None:
    names = sorted([*stage.control.scan_iter("vlac:*"), *stage.control.scan_iter("rq:job:*")])
    stage.control.delete(*stage.chance.sample(names, min(10, len(names))))


@_fault("Redis refuses writes: a snapshot failed (MISCONF)")
def misconf(stage: Stage) -> None:
    in_the_way = stage.server.folder / "dump.rdb"
    (in_the_way / "full").mkdir(parents=True)
    stage.control.config_set("save", "3600 1000000000")
    until(lambda: _snapshot_failed(stage.control))
    stage.lasts(1, 8)
    stage.control.config_set("save", "")
    shutil.rmtree(in_the_way)


@_fault("Redis refuses writes: too few replicas (NOREPLICAS)")
def no_replicas(stage: Stage) -> None:
    stage.control.config_set("min-replicas-to-write", 1)
    stage.lasts(1, 8)
    stage.control.config_set("min-replicas-to-write", 0)


@_fault("Redis refuses all: a script without end, killed later (BUSY)")
def busy(stage: Stage) -> None:
    stage.control.config_set("lua-time-limit", 200)
    script = threading.Thread(target=_run_without_end, args=(stage.server.port,))
    script.start()
    stage.lasts(1, 8)
    until(lambda: _killed(stage.control))
    script.join()


@_fault("keys of a wrong type: rq:failed:vlac, totals, events")
def wrong_types(stage: Stage) -> None:
    names = ("rq:failed:vlac", stage.keys.totals, stage.keys.events)
    for name in names:
        stage.control.set(name, "somebody else's")
    stage.lasts(2, 8)
    stage.control.delete(*names)


@_fault("`rq empty` while jobs wait")
def queue_emptied(stage: Stage) -> None:
    alive = stage.alive()
    for process in alive:
        process.send_signal(signal.SIGSTOP)
    # Where frozen workers hold all that is asked, nothing comes to wait.
    with suppress(AssertionError):
        until(lambda: stage.control.llen(stage.keys.rq_queue), seconds=3)
    command = [sys.executable, "-m", "rq.cli", "empty", "vlac", "--url", stage.server.url]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    for process in alive:
        process.send_signal(signal.SIGCONT)


@_fault("Redis' clock jumps by an hour, ahead and back", shifts_clock=True)
def clock_jumps(stage: Stage) -> None:
    stage.shift_clock(_HOUR_S)
    stage.lasts(2, 5)
    stage.shift_clock(-_HOUR_S)
    # Until a worker has beaten by the new time, its key outlives it by an hour.
    stage.lasts(3, 4)


@_fault("Redis' clock an hour back while no episode is open", shifts_clock=True)
def clock_back(stage: Stage) -> None:
    with stage.between_rounds(), stage.client() as client:
        for _ in range(2):
            with client.episode("task") as episode:
                episode.push(frame(51))
                pending = episode.ask_done()
                until(pending.done)  # without waiting for it
            stage.shift_clock(-_HOUR_S)
        stage.lasts(3, 4)


# The network.


@_fault("Redis unreachable")
def unreachable(stage: Stage) -> None:
    stage.proxy.refuse()
    stage.lasts(2, 15)
    stage.proxy.accept()


@_fault("Redis silent: nothing passes")
def silent(stage: Stage) -> None:
    stage.proxy.hold()
    stage.lasts(2, 15)
    stage.proxy.release()


@_fault("connection reset in the middle of a reply, ten times")
def cut(stage: Stage) -> None:
    stage.proxy.cuts, stage.proxy.cut_chance = 0, 0.03
    until(lambda: stage.proxy.cuts >= 10, 120)
    stage.proxy.cut_chance = 0.0


@_fault("all connections reset")
def reset(stage: Stage) -> None:
    stage.proxy.reset()


@_fault("network slow: 30 ms each way, 2 % lost")
def slow(stage: Stage) -> None:
    stage.proxy.delay_s, stage.proxy.loss = 0.03, 0.02
    stage.lasts(2, 8)
    stage.proxy.delay_s = stage.proxy.loss = 0.0


# Parts of them.


@contextmanager
def _ctrl_c() -> Iterator[Callable[[Callable[[], Any], float | None], Any]]:
    """Gives a function that does something, breaks it off by Ctrl-C after some seconds, and returns None then."""
    armed = threading.Event()

    def raise_once(*_: object) -> None:
        if armed.is_set():
            armed.clear()
            raise KeyboardInterrupt

    def do(work: Callable[[], Any], seconds: float | None) -> Any:
        if seconds is None:
            return work()
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
        try:
            try:
                armed.set()
                timer.start()
                return work()
            finally:
                armed.clear()
        except KeyboardInterrupt:
            return None

    before = signal.signal(signal.SIGINT, raise_once)
    try:
        yield do
    finally:
        signal.signal(signal.SIGINT, before)


def _ask(client: CriticClient, task: str, red: int) -> Any:
    episode = client.episode(task)
    episode.push(frame(red))
    return episode.ask_done()


def _answered_by_the_next(stage: Stage, word: str) -> float:
    since = time.monotonic()
    with stage.client() as client:
        assert _ask(client, f"{word} {_new_file(stage, word)}", 51).result().score == 0.2
        stage.answered = time.monotonic()
    return since


def _new_file(stage: Stage, word: str) -> str:
    return str(stage.server.folder / f"{word}-{time.monotonic_ns()}")


def _streams(stage: Stage) -> set[bytes]:
    return set(stage.control.keys("vlac:vlac:client:*:answers"))  # type: ignore[arg-type]


def _snapshot_failed(control: redis.Redis) -> bool:
    """Begins a snapshot, unless one is on its way."""
    with suppress(redis.ResponseError):
        control.bgsave()
    return bool(control.info("persistence")["rdb_last_bgsave_status"] == "err")


def _run_without_end(port: int) -> None:
    # Sent once, however long it takes: sent again after it was killed it would run on.
    connection = redis.Redis(port=port, socket_timeout=None, retry=Retry(NoBackoff(), 0))
    with connection, suppress(redis.ResponseError):
        connection.eval("while true do end", 0)


def _killed(control: redis.Redis) -> bool:
    """Kills the script that runs; it may not have begun."""
    with suppress(redis.ResponseError):
        return bool(control.script_kill())
    return False


@contextmanager
def _connections_killed(stage: Stage) -> Iterator[None]:
    over = threading.Event()

    def kill() -> None:
        with stage.server.connection() as connection:
            while not over.wait(0.2):
                for kind in ("normal", "pubsub"):
                    connection.client_kill_filter(_type=kind, skipme=True)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
