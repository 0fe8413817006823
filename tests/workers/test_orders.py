"""Orders to sleep and to wake reach every critic, whatever breaks or starts meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from tests.conftest import Workers, until
from tests.workers.critics import NAME, frame
from tests.workers.test_worker import ask, hold
from vlac_queue import CriticClient, NoWorkers
from vlac_queue.cli import main
from vlac_queue.keys import Keys

SLOW = "tests.workers.critics:SlowToLoad"
BUSY = "tests.workers.critics:Busy"


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def states(workers: Workers) -> list[str]:
    return sorted(each["state"] for each in workers.described())


def test_an_order_arrives_though_connections_are_killed(
    client: CriticClient, workers: Workers, connection: redis.Redis, beside: ThreadPoolExecutor
) -> None:
    workers.start(NAME)
    assert ask(client, "task").result()

    @contextmanager
    def killing() -> Iterator[None]:
        done = threading.Event()

        def kill() -> None:
            while not done.wait(0.05):
                connection.client_kill_filter(_type="pubsub")
                connection.client_kill_filter(_type="normal", skipme=True)

        killed = beside.submit(kill)
        try:
            yield
        finally:
            done.set()
            killed.result()

    with killing():
        client.sleep_workers(timeout_s=15)
    assert states(workers) == ["asleep"]
    with killing():
        client.wake_workers(timeout_s=15)
    assert "asleep" not in states(workers)


def test_a_worker_that_loads_counts_as_asleep_and_follows_once_it_has(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    workers.start(SLOW)
    until(lambda: states(workers) == ["idle", "loading"])
    client.sleep_workers(timeout_s=5)
    assert states(workers) == ["asleep", "loading"]
    (tmp_path / "weights").touch()
    until(lambda: states(workers) == ["asleep", "asleep"])
    client.wake_workers(timeout_s=5)
    assert "asleep" not in states(workers)


@pytest.mark.slow
def test_a_worker_that_starts_while_critics_sleep_loads_when_a_job_waits(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    first = workers.start(NAME)
    until(workers.described)
    client.sleep_workers()
    first.terminate()
    assert first.wait(20) == 0
    workers.start(NAME)
    until(lambda: states(workers) == ["asleep"])
    assert workers.described()[0]["loads"] == "0"
    client.sleep_workers(timeout_s=5)  # it follows without its critic
    assert ask(client, "task").result().score == 0.2
    until(lambda: states(workers) == ["idle"])


def test_no_worker_for_a_moment_is_waited_for(
    client: CriticClient, workers: Workers, beside: ThreadPoolExecutor
) -> None:
    with pytest.raises(NoWorkers):
        client.sleep_workers()  # it never worked: told at once
    first = workers.start(NAME)
    assert ask(client, "task").result()
    first.terminate()
    assert first.wait(20) == 0
    sleeping = beside.submit(client.sleep_workers, timeout_s=10)
    workers.start(NAME)
    sleeping.result(20)
    assert states(workers) == ["asleep"]


def test_an_order_that_redis_lost_is_given_again(
    client: CriticClient, workers: Workers, connection: redis.Redis, tmp_path: Path, beside: ThreadPoolExecutor
) -> None:
    workers.start(NAME)
    held, gate = hold(client, tmp_path)
    sleeping = beside.submit(client.sleep_workers)
    until(lambda: connection.exists(Keys("vlac").orders))
    connection.delete(Keys("vlac").orders)
    until(lambda: connection.exists(Keys("vlac").orders))
    assert 0 < connection.ttl(Keys("vlac").orders) <= 3600  # type: ignore[operator]
    gate.touch()
    sleeping.result(20)
    assert held.result() and states(workers) == ["asleep"]


def test_a_later_order_counts_and_names_go_before_all(client: CriticClient, workers: Workers) -> None:
    workers.start(NAME)
    workers.start(NAME)
    until(lambda: states(workers) == ["idle", "idle"])
    client.sleep_workers()
    name = client.ping()[0]
    arguments = ["workers", "wake", name, "--redis-url", client.config.redis_url]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert states(workers) == ["asleep", "idle"]
    client.sleep_workers()
    assert states(workers) == ["asleep", "asleep"]


@pytest.mark.slow
def test_workers_under_load_follow(client: CriticClient, workers: Workers, beside: ThreadPoolExecutor) -> None:
    workers.start(BUSY, VLAC_MAX_BATCH="2")
    done = threading.Event()

    def load() -> None:
        episodes = client.episodes(["task"] * 8)
        while not done.is_set():
            client.wait(client.observe_many([(episode, frame(51)) for episode in episodes]))

    loading = beside.submit(load)
    try:
        until(lambda: states(workers) == ["busy"])
        client.wake_workers(timeout_s=5)
        client.sleep_workers(timeout_s=10)
        client.wake_workers(timeout_s=5)
    finally:
        done.set()
    loading.result(30)
