"""Workers that die, hang, run out of memory, are poisoned, come and go."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.conftest import Table, harm
from tests.chaos.critic import CHAOS
from tests.chaos.load import Load
from tests.conftest import Workers, until
from tests.workers.critics import frame
from vlac_queue import CriticClient, CriticFailed, VlacConfig
from vlac_queue.server import RedisServer


@harm(10)
def test_workers_killed_under_load(server: RedisServer, workers: Workers, table: Table, times: int) -> None:
    chance = random.Random(1)
    processes = [workers.start(CHAOS, CHAOS_BATCH_S="0.05") for _ in range(3)]
    load = Load(server.url, rollouts=2).start()
    killed = []
    for _ in range(times):
        load.asks()
        time.sleep(chance.random() / 2)
        victim = processes.pop(chance.randrange(len(processes)))
        killed.append(time.monotonic())
        victim.kill()
        processes.append(workers.start(CHAOS, CHAOS_BATCH_S="0.05"))
        time.sleep(chance.random())
    load.finish()
    recovered = [load.recovered_s(since) for since in killed]
    table.add("worker killed (-9) under load", times, load, recovered)
    # What is promised, of each death: one after another may hit the same query, its second worker as the first.
    answered = [since + seconds for since, seconds in zip(killed, recovered, strict=True)]
    assert max(answered) < killed[-1] + 10


@harm(3)
def test_the_only_worker_killed(server: RedisServer, workers: Workers, table: Table, times: int) -> None:
    """Whoever is started next takes over."""
    process = workers.start(CHAOS, CHAOS_BATCH_S="0.05")
    load = Load(server.url).start()
    started = []
    for _ in range(times):
        load.asks()
        process.kill()
        process.wait()
        process = workers.start(CHAOS, CHAOS_BATCH_S="0.05")
        started.append(time.monotonic())
        load.rounds_pass()
    load.finish()
    recovered = [load.recovered_s(since) for since in started]
    table.add("the only worker killed (-9), another started", times, load, recovered)


@harm(3)
def test_a_worker_frozen(server: RedisServer, workers: Workers, table: Table, times: int) -> None:
    """SIGSTOP: others take its work over; when it wakes, its late answers do no harm."""
    processes = [workers.start(CHAOS, CHAOS_BATCH_S="0.1") for _ in range(2)]
    load = Load(server.url, rollouts=2).start()
    frozen = []
    for number in range(times):
        load.asks()
        victim = processes[number % 2]
        frozen.append(time.monotonic())
        victim.send_signal(signal.SIGSTOP)
        load.rounds_pass()
        victim.send_signal(signal.SIGCONT)
        until(lambda: len(workers.described()) == 2)
        load.rounds_pass()
    load.finish()
    recovered = [load.recovered_s(since) for since in frozen]
    table.add("worker frozen (SIGSTOP), woken later", times, load, recovered)


@harm(3, short=1)
def test_a_critic_that_hangs(
    server: RedisServer, workers: Workers, tmp_path: Path, table: Table, times: int
) -> None:
    """The heartbeat goes on: the batch's time tells. The worker restarts, and its queries are answered."""
    settings = {"VLAC_BATCH_LIMIT_S": "2", "VLAC_MAX_BATCH": "4"}
    workers.start(CHAOS, **settings)
    workers.start(CHAOS, **settings)
    load = Load(server.url).start()
    recovered = []
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as client:
        for number in range(times):
            gate = tmp_path / f"gate-{number}"
            began = time.monotonic()
            pending = _ask(client, f"hang {gate}", 51)
            until(Path(f"{gate}.hangs").exists)
            gate.touch()  # only who hangs already does not see it
            assert pending.result().score == 0.2
            recovered.append(time.monotonic() - began)
    until(lambda: len(workers.described()) == 2)
    load.rounds_pass()
    load.finish()
    assert all(process.poll() is None for process in workers.processes)
    table.add("critic stuck in a loop", times, load, recovered)


@harm(3)
def test_a_lost_accelerator(
    server: RedisServer, workers: Workers, tmp_path: Path, table: Table, times: int
) -> None:
    """A CUDA error that poisons the process: the worker gives its jobs back, and starts anew."""
    process = workers.start(CHAOS)
    load = Load(server.url).start()
    recovered = []
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as client:
        for number in range(times):
            began = time.monotonic()
            assert _ask(client, f"lose {tmp_path / str(number)}", 51).result().score == 0.2
            recovered.append(time.monotonic() - began)
    load.rounds_pass()
    load.finish()
    assert process.poll() is None
    until(lambda: [said["loads"] for said in workers.described()] == ["1"])  # the process began anew
    table.add("CUDA error that poisons the process", times, load, recovered)


@harm(3)
def test_the_model_out_of_memory(server: RedisServer, workers: Workers, table: Table, times: int) -> None:
    """A batch that does not fit is asked one by one."""
    workers.start(CHAOS, CHAOS_BATCH_S="0.02")
    load = Load(server.url).start()
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as client:
        for _ in range(times):
            episodes = [client.episode("memory") for _ in range(8)]
            client.push_many([(episode, frame(51)) for episode in episodes])
            pendings = client.ask_done_many(episodes)
            client.wait(pendings)
            assert [pending.verdict().score for pending in pendings] == [0.2] * 8
            client.close_many(episodes)
    load.finish()
    table.add("model out of memory with a whole batch", times, load, [])


@harm(1)
def test_a_poison_query(server: RedisServer, workers: Workers, table: Table, times: int) -> None:
    """It kills three workers, fails with its history, and takes no neighbour with it."""
    for _ in range(3 * times + 1):
        workers.start(CHAOS, CHAOS_BATCH_S="0.02")
    load = Load(server.url).start()
    recovered = []
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=60)) as client:
        for number in range(times):
            tasks = ["task"] * 3 + ["kill"] + ["task"] * 4
            episodes = [client.episode(task) for task in tasks]
            client.push_many([(episode, frame(51)) for episode in episodes])
            began = time.monotonic()
            pendings = client.ask_done_many(episodes)
            client.wait(pendings)
            recovered.append(time.monotonic() - began)
            poison = pendings.pop(3)
            assert [pending.verdict().score for pending in pendings] == [0.2] * 7
            with pytest.raises(CriticFailed, match="3 workers died") as failure:
                poison.verdict()
            dead = {process.pid for process in workers.processes if process.poll() is not None}
            assert len(dead) == 3 * (number + 1)
            named = {pid for pid in dead if f"-{pid}-" in str(failure.value)}
            assert len(named) == 3
            client.close_many(episodes)
    load.rounds_pass()
    load.finish()
    table.add("poison query: kills three workers, then fails alone", times, load, recovered)


@harm(1)
def test_rolling_restart(server: RedisServer, workers: Workers, table: Table, times: int) -> None:
    processes = [workers.start(CHAOS, CHAOS_BATCH_S="0.02") for _ in range(3)]
    load = Load(server.url, rollouts=2).start()
    stopped = []
    for _ in range(times):
        for old in processes:
            load.asks()
            workers.start(CHAOS, CHAOS_BATCH_S="0.02")
            stopped.append(time.monotonic())
            old.terminate()
            assert old.wait(120) == 0
        processes = workers.processes[-3:]
    load.rounds_pass()
    load.finish()
    table.add("rolling restart of all workers", len(stopped), load, [load.recovered_s(t) for t in stopped])


@harm(1)
def test_from_one_worker_to_many_to_two(server: RedisServer, workers: Workers, table: Table, times: int) -> None:
    most = 8
    workers.start(CHAOS, CHAOS_BATCH_S="0.02")
    load = Load(server.url, rollouts=2).start()
    changed = []
    for _ in range(times):
        for _ in range(most - len(_alive(workers))):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02", wait=False)
        until(lambda: len(workers.described()) == most, 240)
        load.rounds_pass()
        changed.append(time.monotonic())
        leaving = _alive(workers)[2:]
        for process in leaving:
            process.terminate()
        assert all(process.wait(120) == 0 for process in leaving)
        load.rounds_pass()
    load.finish()
    recovered = [load.recovered_s(t) for t in changed]
    table.add(f"1 -> {most} -> 2 workers under load", times, load, recovered)


def _alive(workers: Workers) -> list[subprocess.Popen[bytes]]:
    return [process for process in workers.processes if process.poll() is None]


def _ask(client: CriticClient, task: str, red: int) -> Any:
    episode = client.episode(task)
    episode.push(frame(red))
    return episode.ask_done()
