"""Plain RQ: one job a frame, all of a step enqueued in one pipeline, results by blocking reads.

A SimpleWorker, which runs jobs in its own process, since a fork for each would load the model each time. The
packed frame is the job's argument, which RQ packs once more with zlib; or it has a key of its own, by which the
job fetches it, which spares that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import rq

from benchmarks.peers import Asker, connect, look, pack, unpack
from benchmarks.processes import process
from vlac_queue.control import worker_command
from vlac_queue.frames import Frames


def answer(packed: bytes) -> bool:
    """Do the job."""
    return look(unpack(packed))


def answer_key(key: str) -> bool:
    """Do the job, where the frame has a key of its own."""
    job = rq.get_current_job()
    assert job is not None
    packed = job.connection.getdel(key)
    assert isinstance(packed, bytes)
    return answer(packed)


@contextmanager
def start(url: str, episodes: int, *, by_key: bool) -> Iterator[Asker]:
    """Start one SimpleWorker."""
    names = itertools.count()
    command = worker_command("plain", "--quiet", "--worker-class", "rq.SimpleWorker", "--url", url)
    with connect(url) as connection, process(command, {}):
        queue = rq.Queue("plain", connection=connection)

        def ask(frames: Sequence[Frames]) -> list[bool]:
            with connection.pipeline(transaction=False) as pipeline:
                if by_key:
                    keys = [f"frame:{next(names)}" for _ in frames]
                    for key, frame in zip(keys, frames, strict=True):
                        pipeline.set(key, pack(frame), ex=60)
                    data = [rq.Queue.prepare_data(answer_key, (key,), result_ttl=60) for key in keys]
                else:
                    data = [rq.Queue.prepare_data(answer, (pack(frame),), result_ttl=60) for frame in frames]
                jobs = queue.enqueue_many(data, pipeline=pipeline)
                pipeline.execute()
            results = [job.latest_result(timeout=60) for job in jobs]
            return [bool(result.return_value) for result in results if result is not None]

        yield Asker(ask)
