"""What a client does about a Redis that goes away, fills up or forgets: it waits, pushes again and asks again."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import redis

from vlac_queue.connection import redis_errors
from vlac_queue.errors import NoWorkers, QueueFull, RedisUnavailable
from vlac_queue.keys import Keys

Result = TypeVar("Result")

#: Seconds of the first pause before Redis is tried again; doubles up to the last.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 1.0


class Patience:
    """Puts up with a Redis that is away or full, and with no worker left, but only once it had worked: so a wrong
    address is told at once.

    Args:
        url: of Redis, for messages.
        seconds: how long.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._worked = False

    def __call__(self, work: Callable[[], Result]) -> Result:
        """What `work` returns; done again for a while where it fails. It must be fit to be done twice.

        Raises:
            RedisUnavailable, QueueFull, NoWorkers: the last failure.
        """
        began, pause = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                with redis_errors(self._url):
                    result = work()
                self._worked = True
                return result
            except (RedisUnavailable, QueueFull, NoWorkers) as error:
                refused = isinstance(error.__cause__, redis.exceptions.AuthenticationError)
                if not self._worked or refused or time.monotonic() + pause > began + self._seconds:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_S)


class KeptFrames:
    """The encoded batches of open episodes, for pushing them again; threads may share it.

    Args:
        limit: most bytes of all together. An episode that does not fit is not kept at all from then on.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._batches: dict[str, list[bytes] | None] = {}
        self._lock = threading.Lock()

    def add(self, episode: str, payload: bytes) -> None:
        """Keeps the next batch of an episode."""
        with self._lock:
            batches = self._batches.setdefault(episode, [])
            if batches is None:
                return
            if self._bytes + len(payload) > self._limit:
                self._bytes -= sum(map(len, batches))
                self._batches[episode] = None
                return
            batches.append(payload)
            self._bytes += len(payload)

    def batches(self, episode: str) -> Sequence[bytes] | None:
        """All batches of an episode, in order; None where they are not kept."""
        with self._lock:
            kept = self._batches.get(episode, [])
            return None if kept is None else tuple(kept)

    def drop(self, episode: str) -> None:
        """Forgets an episode."""
        with self._lock:
            self._bytes -= sum(map(len, self._batches.pop(episode, None) or ()))


@dataclass(frozen=True)
class Asked:
    """An open query, as far as Redis must know of it.

    Attributes:
        id: the query's id.
        episode, batches: the episode, and how many of its batches the query is about.
        reference: id of the episode's reference, or "".
        job: id of the job that carries the query.
    """

    id: str
    episode: str
    batches: int
    reference: str
    job: str


@dataclass(frozen=True)
class Standing:
    """What has become of an open query.

    Attributes:
        answer: the answer's text, or "" while there is none.
        kept: whether Redis has the query, its frames and its reference.
        carried: whether a job still waits with it, or a worker has it.
        refused: why a worker refused its job, or "".
    """

    answer: str
    kept: bool
    carried: bool
    refused: str = ""


def look_up(connection: redis.Redis, keys: Keys, asked: Sequence[Asked]) -> list[Standing]:
    """Looks everywhere a query can be: in its episode, in the queue, with a worker. Three round trips at most."""
    jobs = sorted({each.job for each in asked})
    with connection.pipeline(transaction=False) as pipeline:
        for each in asked:
            episode = keys.episode(each.episode)
            pipeline.hget(episode.queries, each.id)
            pipeline.exists(episode.meta)
            pipeline.llen(episode.frames)
            pipeline.exists(keys.reference(each.reference))
        for job in jobs:
            pipeline.hmget(keys.rq_job(job), "status", "worker_name", "exc_info")
        replies = pipeline.execute()
    of_jobs = dict(zip(jobs, replies[4 * len(asked) :], strict=True))
    carried = _carried(connection, keys, {job: fields[1] for job, fields in of_jobs.items() if fields[0]})
    standings = []
    for index, each in enumerate(asked):
        text, there, batches, reference = replies[4 * index : 4 * index + 4]
        status, _, reason = of_jobs[each.job]
        answer = text.decode() if text is not None and text.startswith(b"{") else ""
        kept = text is not None and bool(there) and batches >= each.batches and (not each.reference or reference)
        refused = _reason(reason) if status == b"failed" else ""
        standings.append(Standing(answer, bool(kept), each.job in carried, refused))
    return standings


def _carried(connection: redis.Redis, keys: Keys, workers: Mapping[str, bytes | None]) -> set[str]:
    """Those of the jobs, given with the worker that had it last, that wait or are a worker's."""
    if not workers:
        return set()
    with connection.pipeline(transaction=False) as pipeline:
        for job, worker in workers.items():
            pipeline.lpos(keys.rq_queue, job)
            pipeline.lpos(keys.alone, job)
            pipeline.lpos(keys.claims(worker.decode() if worker else ""), job)
        replies = pipeline.execute()
    places = zip(replies[0::3], replies[1::3], replies[2::3], strict=True)
    return {job for job, found in zip(workers, places, strict=True) if any(place is not None for place in found)}


def _reason(compressed: bytes | None) -> str:
    try:
        text = zlib.decompressobj().decompress(compressed or b"", 4096).decode(errors="replace")
    except zlib.error:
        text = ""
    return text or "see `rq info`"
