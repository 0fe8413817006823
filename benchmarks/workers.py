"""What more workers bring, how soon a new one helps, and how busy one is kept. The critics sleep."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from benchmarks.critics import MARKS
from benchmarks.load import full_queue
from benchmarks.processes import wait_for_workers, worker
from vlac_queue.client import CriticClient
from vlac_queue.config import VlacConfig
from vlac_queue.keys import Keys
from vlac_queue.server import RedisServer

BATCH = 16
#: Critics by which scaling is measured: their class, and how the table calls them.
CRITICS = {"ImageCritic": "5 ms an image", "BatchCritic": "50 ms a batch + 2 ms a row"}
#: Seconds of a full queue before anything is measured.
_WARM_UP_S = 1.5


@dataclass(frozen=True)
class Served:
    """Queries per second of some workers with an always-full queue."""

    critic: str
    workers: int
    queries_per_s: float


@contextmanager
def _serving(critic: str, count: int, **environ: str) -> Iterator[tuple[str, CriticClient, ExitStack]]:
    """A Redis with `count` workers, a client of it, and a stack on which more workers can be put."""
    with ExitStack() as stack:
        url = stack.enter_context(RedisServer()).url
        for _ in range(count):
            add_worker(stack, url, critic, **environ)
        client = stack.enter_context(CriticClient(VlacConfig(redis_url=url, max_batch=BATCH)))
        wait_for_workers(client, count)
        yield url, client, stack


def add_worker(stack: ExitStack, url: str, critic: str, **environ: str) -> None:
    """Starts a worker, which ends with the stack."""
    settings = {"VLAC_CRITIC": f"benchmarks.critics:{critic}", "VLAC_MAX_BATCH": str(BATCH), **environ}
    stack.enter_context(worker(url, "vlac", "workers.CriticWorker", settings))


def serve(critic: str, workers: int, seconds: float) -> Served:
    """Measures how many queries workers answer while each has a batch at hand and another one waiting."""
    with _serving(critic, workers) as (_, client, _):
        times: list[float] = []
        with closing(full_queue(client, batch=BATCH, open_batches=2 * workers + 2)) as answered:
            started = time.monotonic()
            for now in answered:
                if now - started > _WARM_UP_S:
                    times.append(now)
                if len(times) > 3 and times[-1] - times[0] > seconds:
                    break
    return Served(critic, workers, (len(times) - 1) * BATCH / (times[-1] - times[0]))


def first_job_s(critic: str = "BatchCritic") -> float:
    """Seconds from the moment that a worker, added under load, has loaded its critic until that is first asked."""
    with tempfile.TemporaryDirectory(prefix="vlac-bench-") as folder, _serving(critic, 1) as (url, client, stack):
        # More waits than the first worker takes at once, and than both will.
        with closing(full_queue(client, batch=BATCH, open_batches=6)) as answered:
            added = False
            for count, _ in enumerate(answered):
                if count > 10 and not added:
                    add_worker(stack, url, critic, **{MARKS: folder})
                    added = True
                if marks := list(Path(folder).glob("*.asked")):
                    break
        return _time(marks[0]) - _time(marks[0].with_suffix(".loaded"))


def _time(mark: Path) -> float:
    while not (text := mark.read_text()):  # just made, and not written yet
        time.sleep(0.001)
    return float(text)


def busy(seconds: float, critic: str = "SteadyCritic") -> float:
    """The part of the time, 0..1, that a critic of 50 ms a batch works while its queue is full.

    Whatever its thread waits for Redis, decoding or other threads is missing from it. It is the worker's own
    account, taken from two of its heartbeats that are `seconds` or more apart.
    """
    with _serving(critic, 1) as (url, client, _), redis.Redis.from_url(url) as connection:
        (name,) = client.ping()

        def published() -> dict[str, float]:
            said = connection.hmget(Keys("vlac").worker(name), "busy_s", "time")
            return {key: float(value or 0) for key, value in zip(("busy_s", "time"), said, strict=True)}

        first: dict[str, float] = {}
        with closing(full_queue(client, batch=BATCH, open_batches=6)) as answered:
            started = time.monotonic()
            for now in answered:
                if now - started < _WARM_UP_S:
                    continue
                last = published()
                first = first or last
                if last["time"] - first["time"] >= max(seconds, 1.0):
                    break
    return (last["busy_s"] - first["busy_s"]) / (last["time"] - first["time"])


def scale(
    counts: tuple[int, ...], *, rounds: int, seconds: float, advance: Callable[[], None]
) -> list[list[Served]]:
    """Every critic with every number of workers, once a round."""
    measured = []
    for _ in range(rounds):
        served = []
        for critic in CRITICS:
            for count in counts:
                served.append(serve(critic, count, seconds))
                advance()
        measured.append(served)
    return measured
