from collections.abc import Iterator

import pytest
from running_worker import running_worker

from vlac_queue.server import RedisServer


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a Redis without workers on its queue `vlac`."""
    with RedisServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def pixel_queue(redis_url: str) -> Iterator[str]:
    """Name of a queue on `redis_url` where `pixel_critic.PixelCritic` answers."""
    with running_worker(redis_url, "pixel_critic:PixelCritic", queue="pixels"):
        yield "pixels"
