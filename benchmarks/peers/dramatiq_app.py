"""The Dramatiq actor: Redis broker, results on Redis."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers import look, unpack

_URL = os.environ["BENCH_REDIS_URL"]

# Frames are bytes, which the default encoder (JSON) can't carry.
dramatiq.set_encoder(dramatiq.PickleEncoder())
broker = RedisBroker(url=_URL, middleware=[Retries(), Results(backend=RedisBackend(url=_URL))])
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True, result_ttl=60_000)
def answer(packed: bytes) -> bool:
    """Looks at one packed frame; Dramatiq knows no batches."""
    return look(unpack(packed))
