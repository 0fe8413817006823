from collections.abc import Iterator

import pytest
import redis

from tests.conftest import Workers
from vlac_queue.server import RedisServer


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis of this folder's own, with one worker, where `pixel_critic.PixelCritic` answers."""
    with RedisServer() as server, redis.Redis.from_url(server.url) as connection:
        workers = Workers(server.url, connection, tmp_path_factory.mktemp("workers"))
        try:
            workers.start("tests.verl_adapter.pixel_critic:PixelCritic")
            yield server.url
        finally:
            workers.stop()
