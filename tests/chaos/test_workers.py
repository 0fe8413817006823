"""Workers that die, hang, run out of memory, are poisoned, come and go."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import Table, harm
from tests.chaos.critic import CHAOS
from tests.chaos.load import Load
from tests.conftest import Workers, until
from tests.workers.critics import frame
from vlac_queue import CriticClient, CriticFailed, VlacConfig
from vlac_queue.server import RedisServer


@harm(short=1, full=10)
def test_workers_killed_under_load(server: RedisServer, workers: Workers, table: Table, times: int) -> None:
    chance = random.Random(1)
    processes = [workers.start(CHAOS, CHAOS_BATCH_S="0.05") for _ in range(3)]
    load = Load(server.url, rollouts=2).start()
    killed = []
    for _ in range(times):
        until(load.open_queries)
        time.sleep(chance.random() / 2)
        victim = processes.pop(chance.randrange(len(processes)))
        killed.append(time.monotonic())
        victim.kill()
        processes.append(workers.start(CHAOS, CHAOS_BATCH_S="0.05"))
        time.sleep(chance.random())
    # Rounds that were begun before the last death end after it.
    load.finish()
    recovered = [load.recovered_s(since) for since in killed]
    table.add("worker killed (-9) under load", times, load, recovered)
    assert max(recovered) < 10


@harm(short=1, full=3)
def test_the_last_worker_killed(server: RedisServer, workers: Workers, table: Table, times: int) -> None:
    process = workers.start(CHAOS, CHAOS_BATCH_S="0.05")
    load = Load(server.url).start()
    recovered, started = [], []
    for _ in range(times):
        until(load.open_queries)
        process.kill()
        process.wait()
        process = workers.start(CHAOS, CHAOS_BATCH_S="0.05")
        started.append(time.monotonic())
        until(lambda rounds=load.finished_rounds: load.finished_rounds > rounds, 60)
    load.finish()
    recovered = [load.recovered_s(since) for since in started]
    table.add("the only worker killed (-9), another started", times, load, recovered)
