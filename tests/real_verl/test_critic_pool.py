"""`python -m verl_adapter.critic_pool` on a real Ray cluster: real workers, a real Redis."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pytest

from tests.conftest import until
from vlac_queue import CriticClient, NoWorkers, VlacConfig
from vlac_queue.server import RedisServer

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def client(reference_file: str) -> Iterator[CriticClient]:
    with RedisServer() as server:
        config = VlacConfig(redis_url=server.url, reference=reference_file, timeout_s=60)
        with CriticClient(config) as made:
            yield made


@pytest.fixture
def pool(environment: dict[str, str], cluster: str, client: CriticClient) -> Iterator[Callable[..., str]]:
    """Runs the command; what it prints. Drains all in the end."""
    settings = {"VLAC_REDIS_URL": client.config.redis_url, "VLAC_CRITIC": "reference"}

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "verl_adapter.critic_pool", *arguments],
            env={**environment, **settings, "RAY_ADDRESS": cluster},
            text=True,
            capture_output=True,
            timeout=200,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    yield run
    run("--drain", "99")


def workers(client: CriticClient) -> list[str]:
    try:
        return client.ping()
    except NoWorkers:
        return []


def test_the_pool_grows_answers_and_shrinks(pool, client):
    assert pool("--num-workers", "1").count("listening:") == 1
    assert "workers in the pool: 2" in pool("--num-workers", "1")
    assert len(client.ping()) == 2
    with client.episode("push the square") as episode:
        episode.push(np.zeros((64, 64, 3), np.uint8))
        assert 0 <= episode.ask_done().result().score <= 1
    assert "workers in the pool: 1" in pool("--drain", "1")
    # A worker that is drained takes its leave; it does not wait to be missed.
    assert len(client.ping()) == 1
    assert "workers in the pool: 0" in pool("--drain", "1")
    assert workers(client) == []


def test_a_worker_that_dies_is_started_again(pool, client):
    pool("--num-workers", "1")
    (first,) = client.ping()
    # RQ's scheduler, a child of it, has the same command line.
    family = {each.pid: each for each in psutil.process_iter(["cmdline"]) if first in (each.info["cmdline"] or [])}
    (process,) = [each for each in family.values() if each.ppid() not in family]
    process.kill()
    until(lambda: [name for name in workers(client) if name != first], seconds=120)
    until(lambda: not any(each.is_running() for each in family.values()))
