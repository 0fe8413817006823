"""What more workers bring, how soon a new one helps, and how busy one is kept. The critics sleep."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import click
import psutil

from benchmarks.critics import MARKS, read_marks
from benchmarks.load import full_queue
from benchmarks.processes import wait_for_workers, worker
from vlac_queue.client import CriticClient
from vlac_queue.config import VlacConfig
from vlac_queue.server import RedisServer

BATCH = 16
#: Critics by which scaling is measured: their class (and most queries in a batch, if not BATCH), and how the table
#: calls them. Eight of the first two answer some 1,600 queries/s, eight of the last some 970.
CRITICS = {
    "ImageCritic": "5 ms an image",
    "BatchCritic": "50 ms a batch + 2 ms a row",
    "BatchCritic:8": "50 ms a batch + 2 ms a row, batches of 8",
}
#: Seconds of a full queue before anything is measured.
_WARM_UP_S = 1.5


@dataclass(frozen=True)
class Served:
    """Queries per second of some workers with an always-full queue."""

    critic: str
    workers: int
    queries_per_s: float


@contextmanager
def _serving(
    critic: str, count: int, *, batch: int = BATCH, **environ: str
) -> Iterator[tuple[str, CriticClient, ExitStack]]:
    """A Redis with `count` workers, a client of it, and a stack on which more workers can be put."""
    with ExitStack() as stack:
        url = stack.enter_context(RedisServer()).url
        for _ in range(count):
            add_worker(stack, url, critic, VLAC_MAX_BATCH=str(batch), **environ)
        client = stack.enter_context(CriticClient(VlacConfig(redis_url=url, max_batch=batch)))
        wait_for_workers(client, count)
        yield url, client, stack


def add_worker(stack: ExitStack, url: str, critic: str, **environ: str) -> psutil.Process:
    """Starts a worker, which ends with the stack."""
    settings = {"VLAC_CRITIC": f"benchmarks.critics:{critic}", "VLAC_MAX_BATCH": str(BATCH), **environ}
    return stack.enter_context(worker(url, "vlac", "workers.CriticWorker", settings))


def serve(critic: str, workers: int, seconds: float) -> Served:
    """Measures how many queries workers answer while each has a batch at hand, and three more wait."""
    name, _, size = critic.partition(":")
    batch = int(size or BATCH)
    with _serving(name, workers, batch=batch) as (_, client, _):
        times: list[float] = []
        with closing(full_queue(client, batch=batch, open_batches=4 * workers)) as answered:
            started = time.monotonic()
            for now in answered:
                if now - started > _WARM_UP_S:
                    times.append(now)
                if len(times) > 3 and times[-1] - times[0] > seconds:
                    break
    return Served(critic, workers, (len(times) - 1) * batch / (times[-1] - times[0]))


def first_job_s(critic: str = "BatchCritic") -> float:
    """Seconds from the moment that a worker, added under load, has loaded its critic until that is first asked."""
    with (
        tempfile.TemporaryDirectory(prefix="vlac-bench-") as folder,
        _serving(critic, 1) as (url, client, stack),
        # More waits than the first worker takes at once, and than both will.
        closing(full_queue(client, batch=BATCH, open_batches=6)) as answered,
    ):
        added: psutil.Process | None = None
        for count, _ in enumerate(answered):
            if count == 10:
                added = add_worker(stack, url, critic, **{MARKS: folder})
            if added and added.status() == psutil.STATUS_ZOMBIE:
                raise click.ClickException("the added worker ended; what it said is above.")
            marks = read_marks(folder)
            if marks and marks[0].batches:
                break
    return marks[0].batches[0][0] - marks[0].loaded


def busy(seconds: float, critic: str = "SteadyCritic") -> float:
    """The part of the time, 0..1, that a critic of 50 ms a batch works while its queue is full.

    Whatever its thread waits for Redis, decoding or other threads is missing from it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="vlac-bench-") as folder,
        _serving(critic, 1, **{MARKS: folder}) as (_, client, _),
    ):
        with closing(full_queue(client, batch=BATCH, open_batches=6)) as answered:
            started = time.monotonic()
            for now in answered:
                if now - started > _WARM_UP_S + max(seconds, 1.0):
                    break
        (marks,) = read_marks(folder)
    return busy_part([each for each in marks.batches if each[0] > started + _WARM_UP_S and each[1] < now])


def busy_part(batches: Sequence[tuple[float, float]]) -> float:
    """The part of the time from the first begin to the last end that lies within a batch."""
    return sum(end - begin for begin, end in batches) / (batches[-1][1] - batches[0][0])


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
