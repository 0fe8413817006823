"""What workers and rollouts leave on Redis, written as they would, for tests of what is read."""

from __future__ import annotations

import json
import time
from typing import Any

import redis

from vlac_queue.keys import LIMIT_FIELD, TOTAL_FIELD, WORKER_TTL_MS, Keys
from vlac_queue.metrics import PHASES, Histogram

KEYS = Keys("vlac")


def histogram(*seconds: float) -> str:
    """An encoded histogram of these durations."""
    made = Histogram()
    for each in seconds:
        made.observe(each)
    return made.encode()


def describe_worker(
    connection: redis.Redis, name: str = "w1", *, ttl_ms: int = WORKER_TTL_MS, **fields: Any
) -> None:
    """Leaves on Redis what a CriticWorker says of itself."""
    described: dict[str, Any] = {
        "loads": 1, "jobs": 10, "rejected_jobs": 1, "queries": 120, "failures": 3, "batches": 16, "busy_s": 5.0,
        "host": "gpu-1", "pid": 42, "protocol": 2, "critic": "vlac", "model": "/models/VLAC", "prompt": "3fa9c1",
        "engine": "pt", "device": "cuda:0", "state": "busy", "parent": "", "uptime_s": 20.0, "max_batch": 16,
        "rss_bytes": 3 << 30, "accelerator_bytes": 6 << 30, "accelerator_limit_bytes": 12 << 30,
        "last_error": "ValueError: the model said 'banana'", "last_error_at": time.time() - 5,
        **{f"latency_{phase}": histogram(0.1, 0.2) for phase in PHASES}, "time": time.time(), **fields,
    }  # fmt: skip
    with connection.pipeline() as pipeline:
        pipeline.sadd(KEYS.workers, name)
        pipeline.hset(KEYS.worker(name), mapping=described)
        pipeline.pexpire(KEYS.worker(name), ttl_ms)
        register_rq_worker(pipeline, name)
        pipeline.execute()


def register_rq_worker(connection: redis.Redis, name: str, **fields: Any) -> None:
    key = f"rq:worker:{name}"
    connection.sadd(KEYS.rq_workers, key)
    mapping = {"birth": "2026-01-01T00:00:00.000000Z", "hostname": "gpu-2", "pid": 7, "state": "idle", **fields}
    connection.hset(key, mapping=mapping)


def enqueue(connection: redis.Redis, job: str, **fields: Any) -> None:
    connection.rpush(KEYS.rq_queue, job)
    connection.hset(KEYS.rq_job(job), mapping={"status": "queued", **fields})


def open_episode(connection: redis.Redis, name: str, *, expires_s: float = 3500, size: int = 1000) -> None:
    keys = KEYS.episode(name)
    with connection.pipeline() as pipeline:
        pipeline.hset(keys.meta, mapping={"task": f"task of {name}", "ttl_s": 3600})
        pipeline.zadd(KEYS.open, {name: time.time() + expires_s})
        pipeline.rpush(keys.frames, b"x" * 10, b"y" * 10)
        pipeline.hset(keys.queries, mapping={"q1": "done", "q2": "{}", "q3": "done"})
        pipeline.hset(KEYS.sizes, name, str(size))
        pipeline.hincrby(KEYS.sizes, TOTAL_FIELD, size)
        pipeline.hset(KEYS.sizes, LIMIT_FIELD, str(2 << 30))
        pipeline.execute()


def fail(connection: redis.Redis, **fields: Any) -> None:
    event = {"kind": "failure", "worker": "w1", "episode": "e1", "task": "open the drawer", "query": "done",
             "frame": 12, "error": "ValueError: the model said 'banana'", **fields}  # fmt: skip
    connection.xadd(KEYS.events, {"e": json.dumps(event)})


def contents(connection: redis.Redis) -> dict[bytes, tuple[bytes | None, int]]:
    """Every key with its value and its time to live in milliseconds, -1 where it has none."""
    keys: Any = connection.keys("*")
    return {key: (connection.dump(key), connection.pttl(key)) for key in keys}  # type: ignore[misc]
