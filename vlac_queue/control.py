"""Looking after workers from afar: who they are, and putting their critics to sleep or waking them."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import redis

from vlac_queue.errors import CriticTimeout, NoWorkers
from vlac_queue.keys import Keys


@dataclass(frozen=True)
class WorkerInfo:
    """What a critic worker says of itself, at most a second ago.

    Attributes:
        name, host, pid: which process it is.
        critic, model: what it runs.
        state: "loading", "idle", "busy" or "asleep" (its critic gave the accelerator memory back).
        queries, failures: totals since it started.
        rss_bytes, accelerator_bytes: memory of the process, and of its accelerator.
    """

    name: str
    host: str
    pid: int
    critic: str
    model: str
    state: str
    queries: int
    failures: int
    rss_bytes: int
    accelerator_bytes: int


def critic_workers(connection: redis.Redis, keys: Keys) -> list[WorkerInfo]:
    """The living critic workers of the queue, by name; a plain RQ worker without a critic is none yet."""
    names = sorted(name.decode() for name in connection.smembers(keys.workers))  # type: ignore[union-attr]
    with connection.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.hgetall(keys.worker(name))
        hashes = pipeline.execute()
    return [_info(name, fields) for name, fields in zip(names, hashes, strict=True) if fields]


def order_workers(
    connection: redis.Redis,
    keys: Keys,
    order: Literal["sleep", "wake"],
    names: Collection[str] = (),
    *,
    timeout_s: float = 60.0,
) -> list[WorkerInfo]:
    """Puts critics to sleep, or wakes them, and waits until they say so.

    A sleeping critic has given its accelerator memory back. Nothing is lost: a query that comes meanwhile
    wakes it, and one that waits is answered before it sleeps.

    Args:
        names: the workers; empty means all of the queue.
        timeout_s: seconds to wait for them.

    Raises:
        NoWorkers: one of `names`, or any at all, is not there.
        CriticTimeout: some did not follow in time.
    """
    there = {worker.name for worker in critic_workers(connection, keys)}
    chosen = set(names) or there
    if not chosen or chosen - there:
        missing = ", ".join(sorted(chosen - there)) or "none"
        raise NoWorkers(
            f"no such critic worker on queue {keys.queue!r}: {missing}; see `vlac-queue workers list`."
        )
    for name in sorted(chosen):
        connection.publish(keys.orders(name), order)
    deadline = time.monotonic() + timeout_s
    while True:
        workers = [worker for worker in critic_workers(connection, keys) if worker.name in chosen]
        late = [worker.name for worker in workers if (worker.state == "asleep") != (order == "sleep")]
        if not late:
            return workers
        if time.monotonic() > deadline:
            raise CriticTimeout(f"{', '.join(late)} did not {order} within {timeout_s:.0f} s; are they busy?")
        time.sleep(0.1)


def _info(name: str, fields: dict[bytes, bytes]) -> WorkerInfo:
    said: dict[str, Any] = {key.decode(): value.decode() for key, value in fields.items()}
    numbers = {key: int(said[key]) for key in ("pid", "queries", "failures", "rss_bytes", "accelerator_bytes")}
    return WorkerInfo(
        name, host=said["host"], critic=said["critic"], model=said["model"], state=said["state"], **numbers
    )
