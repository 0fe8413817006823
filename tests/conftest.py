"""A real redis-server for all tests, emptied for each, and real worker processes on demand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from vlac_queue import CriticClient, VlacConfig
from vlac_queue.client import live_workers
from vlac_queue.keys import Keys
from vlac_queue.server import RedisServer

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("VLAC_", "RQ_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture
def connection(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as opened:
        opened.flushall()
        yield opened


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Waits for a condition, and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came true: {condition}"
        time.sleep(0.01)
    return value


class Workers:
    """Starts real `rq worker` processes, and ends them all."""

    def __init__(self, url: str, connection: redis.Redis, folder: Path) -> None:
        self._url = url
        self._connection = connection
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        critic: str = "reference",
        *arguments: str,
        worker_class: str | None = "workers.CriticWorker",
        wait: bool = True,
        prefix: tuple[str, ...] = (),
        **environ: str,
    ) -> subprocess.Popen[bytes]:
        """`rq worker vlac --with-scheduler` with these settings, after `prefix`; returns once it listens."""
        before = set(live_workers(self._connection, Keys("vlac")))
        variables = {
            **os.environ,
            "RQ_REDIS_URL": self._url,
            "VLAC_CRITIC": critic,
            "PYTHONPATH": str(ROOT),
            **environ,
        }
        if worker_class:
            variables["RQ_WORKER_CLASS"] = worker_class
        command = [*prefix, sys.executable, "-m", "rq.cli", "worker", "vlac", "--with-scheduler", *arguments]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=self._folder)
        self.processes.append(process)
        if wait:
            until(lambda: process.poll() is not None or set(live_workers(self._connection, Keys("vlac"))) - before)
            assert process.poll() is None, self.log.read_text()
        return process

    @property
    def log(self) -> Path:
        """What all workers print."""
        return self._folder / "workers.log"

    def described(self) -> list[dict[str, str]]:
        """What the critic workers say of themselves."""
        names: Any = self._connection.smembers("vlac:vlac:workers")
        hashes: list[Any] = [
            self._connection.hgetall(Keys("vlac").worker(name.decode())) for name in sorted(names)
        ]
        return [{key.decode(): value.decode() for key, value in each.items()} for each in hashes if each]

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                for each in (*children, psutil.Process(process.pid)):
                    each.kill()
                process.wait()


@pytest.fixture
def workers(server: RedisServer, connection: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(server.url, connection, tmp_path)
    yield started
    started.stop()


@pytest.fixture
def client(server: RedisServer, connection: redis.Redis) -> Iterator[CriticClient]:
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as made:
        yield made
