"""The job function. Our workers never call it: a CriticWorker reads the job itself."""

from __future__ import annotations

import os
import signal

from rq import get_current_job
from rq.job import Job


def answer(text: str) -> None:
    """Answer a job's queries, then go on serving the queue from within this job.

    A worker that is not ours (plain `rq worker vlac`) forks a work-horse for each job and calls this in it.
    Loading the critic takes far longer than a query, so the work-horse that got the first job stays: it
    becomes a CriticWorker and takes the further jobs itself, until its parent stops or dies.

    Args:
        text: the queries, as `vlac_queue.messages.encode_job` writes them; read from the job, as for any other.
    """
    job = get_current_job()
    if job is None:
        raise RuntimeError("workers.job.answer runs inside an RQ worker; start one with `rq worker vlac`.")
    _serve_inside(job)


def _serve_inside(job: Job) -> None:
    # Here, not on top: who enqueues a job may import its function.
    from workers.flow import TakenJob
    from workers.heart import Parent
    from workers.worker import CriticWorker

    name = job.worker_name or os.environ.get("RQ_WORKER_ID", "rq")
    pid = job.connection.hget(f"{CriticWorker.redis_worker_namespace_prefix}{name}", "pid")
    parent = Parent(name, os.getppid(), same_process=pid is not None and int(pid) == os.getpid())
    worker = CriticWorker([job.origin], f"{name}.{os.getpid()}", connection=job.connection)
    worker.live_inside(TakenJob(job.id, job.data), parent)
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        worker.work()
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
    if parent.same_process and worker.signalled:
        # The signal was meant for the worker around this job.
        os.kill(os.getpid(), signal.SIGTERM)
