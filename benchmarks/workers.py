"""What more workers bring, how soon a new one helps, and how busy one is kept. The critics sleep."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial

from benchmarks.critics import MARKS, read_marks
from benchmarks.figures import interleaved
from benchmarks.load import full_queue
from benchmarks.processes import check_alive, wait_for_workers, worker
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
#: Queries per second in each round, by critic and number of workers.
Served = Mapping[tuple[str, int], Sequence[float]]
#: Seconds of a full queue before anything is measured.
_WARM_UP_S = 1.5


def scale(most: int, rounds: int, seconds: float) -> Served:
    """Measure every critic with up to `most` workers."""
    counts = [count for count in (1, 2, 4, 8) if count <= most]
    rows = {(critic, count): partial(serve, critic, count, seconds) for critic in CRITICS for count in counts}
    return interleaved("workers", rows, rounds)


def serve(critic: str, workers: int, seconds: float) -> float:
    """Return how many queries workers answer a second while each has a batch at hand, and three more wait."""
    name, _, size = critic.partition(":")
    batch = int(size or BATCH)
    with _serving(name, workers, batch=batch) as (_, client):
        times: list[float] = []
        with closing(full_queue(client, batch=batch, open_batches=4 * workers)) as answered:
            started = time.monotonic()
            for now in answered:
                if now - started > _WARM_UP_S:
                    times.append(now)
                if len(times) > 3 and times[-1] - times[0] > seconds:
                    break
    return (len(times) - 1) * batch / (times[-1] - times[0])


def first_job_s() -> float:
    """Return the seconds from when a worker, added under load, has loaded its critic until that is first asked."""
    with (
        tempfile.TemporaryDirectory(prefix="vlac-bench-") as folder,
        _serving("BatchCritic", 1) as (url, client),
        ExitStack() as stack,
        # More waits than the first worker takes at once, and than both will.
        closing(full_queue(client, batch=BATCH, open_batches=6)) as answered,
    ):
        for count, _ in enumerate(answered):
            if count == 10:
                added = stack.enter_context(_worker(url, "BatchCritic", BATCH, marks=folder))
            if count > 10:
                check_alive(added)
            marks = read_marks(folder)
            if marks and marks[0].batches:
                break
    return marks[0].batches[0][0] - marks[0].loaded


def busy(seconds: float) -> float:
    """Return the part of the time, 0..1, that a critic of 50 ms a batch works while its queue is full.

    Whatever its thread waits for Redis, decoding or other threads is missing from it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="vlac-bench-") as folder,
        _serving("SteadyCritic", 1, marks=folder) as (_, client),
    ):
        with closing(full_queue(client, batch=BATCH, open_batches=6)) as answered:
            started = time.monotonic()
            for now in answered:
                if now - started > _WARM_UP_S + max(seconds, 1.0):
                    break
        (marks,) = read_marks(folder)
    return busy_part([each for each in marks.batches if each[0] > started + _WARM_UP_S and each[1] < now])


def busy_part(batches: Sequence[tuple[float, float]]) -> float:
    """Return the part of the time from the first begin to the last end that lies within a batch."""
    return sum(end - begin for begin, end in batches) / (batches[-1][1] - batches[0][0])


@contextmanager
def _serving(
    critic: str, count: int, *, batch: int = BATCH, marks: str = ""
) -> Iterator[tuple[str, CriticClient]]:
    """Start a Redis with `count` workers; yield its URL and a client of it."""
    with ExitStack() as stack:
        url = stack.enter_context(RedisServer()).url
        for _ in range(count):
            stack.enter_context(_worker(url, critic, batch, marks=marks))
        client = stack.enter_context(CriticClient(VlacConfig(redis_url=url, max_batch=batch)))
        wait_for_workers(client, count)
        yield url, client


def _worker(url: str, critic: str, batch: int, *, marks: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    settings = {"VLAC_CRITIC": f"benchmarks.critics:{critic}", "VLAC_MAX_BATCH": str(batch), MARKS: marks}
    return worker(url, **settings)
