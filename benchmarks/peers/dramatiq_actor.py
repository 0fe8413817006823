"""Dramatiq: a group of messages a step, results by blocking reads.

One process with one thread, which prefetches a whole step. Its Redis broker polls; the longest pause between two
looks is brought down from 1 s to 2 ms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.peers import Asker, pack
from benchmarks.processes import process
from vlac_queue.frames import Frames


@contextmanager
def start(url: str, episodes: int) -> Iterator[Asker]:
    """One Dramatiq worker."""
    os.environ["BENCH_REDIS_URL"] = url
    from dramatiq import group

    from benchmarks.peers.dramatiq_app import answer

    command = ["-m", "dramatiq", "benchmarks.peers.dramatiq_app", "--processes", "1", "--threads", "1"]
    settings = {"dramatiq_queue_prefetch": "64", "dramatiq_worker_timeout": "2", "BENCH_REDIS_URL": url}
    with process([*command, "--skip-logging"], **settings):

        def ask(frames: Sequence[Frames]) -> list[bool]:
            asked = group([answer.message(pack(frame)) for frame in frames]).run()
            return list(asked.get_results(block=True, timeout=60_000))

        yield Asker(ask)
