"""A Redis and a worker with `PixelCritic`, as the base suite's."""

from tests.verl_adapter.conftest import redis_url

__all__ = ["redis_url"]
