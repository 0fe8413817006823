"""The Redis and the worker with `PixelCritic` that the adapter's tests have, too."""

from tests.verl_adapter.conftest import redis_url

__all__ = ["redis_url"]
