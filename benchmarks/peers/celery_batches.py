"""Celery with celery-batches: a group of tasks a step, results by Redis' publish and subscribe.

The pool is `solo`, which runs tasks in the worker's own process: what one would take for a model on a GPU, and
the quickest. The worker imports this module too.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from celery import Celery, group
from celery_batches import Batches, SimpleRequest

from benchmarks.peers import Asker, look, pack, unpack
from benchmarks.processes import module
from vlac_queue.frames import Frames

app = Celery("bench")
app.conf.update(
    # Frames are bytes, which JSON can't carry.
    task_serializer="pickle",
    result_serializer="json",
    accept_content=["pickle", "json"],
    # celery-batches fills a batch only from what is prefetched.
    worker_prefetch_multiplier=128,
    worker_send_task_events=False,
    worker_disable_rate_limits=True,
    task_track_started=False,
    result_expires=60,
    broker_connection_retry_on_startup=True,
    # The worker asks Redis with BRPOP; results come by publish and subscribe. Nothing polls.
)
_WORKER = ["--pool", "solo", "--loglevel", "error", "--without-gossip", "--without-mingle", "--without-heartbeat"]


@app.task(base=Batches, flush_every=64, flush_interval=0.005)
def answer(requests: Sequence[SimpleRequest]) -> None:
    """Look at a batch of packed frames; flushed when full, or 5 ms after its first."""
    for request in requests:
        app.backend.mark_as_done(request.id, look(unpack(request.args[0])), request=request)


@contextmanager
def start(url: str, episodes: int) -> Iterator[Asker]:
    """Start one Celery worker."""
    app.conf.update(broker_url=url, result_backend=url)
    where = ("-A", __name__, "-b", url, "--result-backend", url)
    with module("celery", *where, "worker", *_WORKER, C_FORCE_ROOT="1"), app:

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
