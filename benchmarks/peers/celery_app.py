"""The Celery application: a batch task on Redis, one worker without a pool of processes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from celery import Celery
from celery_batches import Batches, SimpleRequest

from benchmarks.peers import look, unpack

_URL = os.environ["BENCH_REDIS_URL"]

app = Celery("bench", broker=_URL, backend=_URL)
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


@app.task(base=Batches, flush_every=64, flush_interval=0.005)
def answer(requests: Sequence[SimpleRequest]) -> None:
    """Looks at a batch of packed frames; flushed when full, or 5 ms after its first."""
    for request in requests:
        app.backend.mark_as_done(request.id, look(unpack(request.args[0])), request=request)
