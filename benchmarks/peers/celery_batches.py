"""Celery with celery-batches: a group of tasks a step, results by Redis' publish and subscribe.

The pool is `solo`, which runs tasks in the worker's own process: what one would take for a model on a GPU, and
the quickest.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.peers import Asker, pack
from benchmarks.processes import process
from vlac_queue.frames import Frames


@contextmanager
def start(url: str, episodes: int) -> Iterator[Asker]:
    """One Celery worker."""
    os.environ["BENCH_REDIS_URL"] = url
    from celery import group

    from benchmarks.peers.celery_app import answer, app

    command = [
        "-m",
        "celery",
        "-A",
        "benchmarks.peers.celery_app",
        "worker",
        "--pool",
        "solo",
        "--loglevel",
        "error",
    ]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with process(command, C_FORCE_ROOT="1", BENCH_REDIS_URL=url), app:

        def ask(frames: Sequence[Frames]) -> list[bool]:
            asked = group(answer.s(pack(frame)) for frame in frames).apply_async()
            # Its first look at a group would otherwise sleep for the default interval, 0.5 s.
            answers: list[bool] = asked.get(timeout=60, interval=0)
            return answers

        try:
            yield Asker(ask)
        finally:
            # Results left in reference cycles unsubscribe when they are collected; while Redis is still there.
            gc.collect()
