"""A thousand open episodes, and a day's queries in little time: nothing grows, nothing slows down."""

from __future__ import annotations

import os
import time

import numpy as np
import psutil
import pytest
import redis

from tests.chaos.conftest import Table
from tests.chaos.critic import CHAOS
from tests.chaos.load import Load
from tests.conftest import Workers, until
from tests.workers.critics import frame
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.server import RedisServer

#: Queries of the day; `make test-day` asks a million.
QUERIES = int(os.environ.get("CHAOS_QUERIES", "30000"))
_EPISODES, _STEPS, _PARTS = 64, 16, 10
_HEAD = (
    "",
    "| queries so far | queries/s | answered after, median | p99 | client | worker | Redis |",
    "|---:|---:|---:|---:|---:|---:|---:|",
)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_thousand_open_episodes(
    server: RedisServer, workers: Workers, connection: redis.Redis, table: Table
) -> None:
    for _ in range(2):
        workers.start(CHAOS)
    load = Load(server.url, episodes=1000, steps=3, rounds=2, pause_s=0).start()
    until(lambda: connection.zcard("vlac:vlac:open") == 1000)
    table.add("1,000 open episodes", 2, load.join(600), [])
    assert not connection.exists("vlac:vlac:open", "vlac:vlac:sizes")


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_a_day_of_queries(server: RedisServer, workers: Workers, connection: redis.Redis, table: Table) -> None:
    """With a critic that costs nothing: memory of client, worker and Redis stays as it is after the first part.

    What the worker keeps of episodes is full by then.
    """
    worker = psutil.Process(workers.start(CHAOS, VLAC_MAX_BATCH="64", VLAC_HISTORY_BYTES=str(1 << 20)).pid)
    megabytes: list[tuple[float, float, float]] = []
    asked = 0
    table.say(*_HEAD)
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=60, max_batch=64)) as client:
        for part in range(1, _PARTS + 1):
            latencies: list[float] = []
            began = time.monotonic()
            while asked < QUERIES * part // _PARTS:
                latencies += _round(client)
                asked += _EPISODES * _STEPS
            rate = len(latencies) / (time.monotonic() - began)
            memory = (
                psutil.Process().memory_info().rss / 1e6,
                worker.memory_info().rss / 1e6,
                int(connection.info("memory")["used_memory"]) / 1e6,
            )
            megabytes.append(memory)
            median, p99 = np.quantile(latencies, (0.5, 0.99)) * 1e3
            table.say(
                f"| {asked:,} | {rate:,.0f} | {median:.0f} ms | {p99:.0f} ms | "
                + " | ".join(f"{each:.1f} MB" for each in memory)
                + " |"
            )
    assert client.stats.queries == asked
    for settled, last in zip(megabytes[1], megabytes[-1], strict=True):
        assert last < settled + 8, megabytes
    table.note("a day's queries, nothing done to them", 1, asked, [])


def _round(client: CriticClient) -> list[float]:
    """Plays episodes to their end; how long each answer took, in seconds."""
    episodes = client.episodes([f"task {i}" for i in range(_EPISODES)])
    latencies: list[float] = []
    for step in range(_STEPS):
        reds = [(37 * i + 11 * step) % 256 for i in range(_EPISODES)]
        pendings = client.observe_many([(each, frame(red)) for each, red in zip(episodes, reds, strict=True)])
        client.wait(pendings)
        for pending, red in zip(pendings, reds, strict=True):
            assert round(pending.verdict().score * 255) == red
            latencies.append(pending.latency_s)
    client.close_many(episodes)
    return latencies
