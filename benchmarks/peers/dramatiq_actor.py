"""Dramatiq: a group of messages a step, results by blocking reads.

One process with one thread, which prefetches a whole step. Its Redis broker polls; the longest pause between two
looks is brought down from 1 s to 2 ms. The worker imports this module too, with Redis' URL in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dramatiq
from dramatiq import group
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers import Asker, look, pack, unpack
from benchmarks.processes import module
from vlac_queue.frames import Frames

_URL = "BENCH_REDIS_URL"


def actor(url: str) -> dramatiq.Actor:
    """Return the actor, which looks at one packed frame, on the Redis at `url`; Dramatiq knows no batches."""
    # Frames are bytes, which the default encoder (JSON) can't carry.
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    dramatiq.set_broker(RedisBroker(url=url, middleware=[Retries(), Results(backend=RedisBackend(url=url))]))
    return dramatiq.actor(_answer, store_results=True, result_ttl=60_000)


def _answer(packed: bytes) -> bool:
    return look(unpack(packed))


@contextmanager
def start(url: str, episodes: int) -> Iterator[Asker]:
    """Start one Dramatiq worker."""
    answer = actor(url)
    settings = {"dramatiq_queue_prefetch": "64", "dramatiq_worker_timeout": "2", _URL: url}
    with module("dramatiq", __name__, "--processes", 1, "--threads", 1, "--skip-logging", **settings):

        def ask(frames: Sequence[Frames]) -> list[bool]:
            asked = group([answer.message(pack(frame)) for frame in frames]).run()
            return list(asked.get_results(block=True, timeout=60_000))

        yield Asker(ask)


if redis_url := os.environ.get(_URL):  # in the worker
    actor(redis_url)
