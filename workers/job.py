"""The job function. Our workers never call it: a CriticWorker reads the text itself."""

from __future__ import annotations

from rq import get_current_job


def answer(text: str) -> None:
    """Answers a job's queries, then goes on serving the queue from within this job.

    A worker that is not ours (plain `rq worker vlac`) forks a work-horse for each job and calls this in it.
    Loading the critic takes far longer than a query, so the work-horse that got the first job stays: it
    becomes a CriticWorker and takes the further jobs itself, until its parent stops or dies.

    Args:
        text: the queries, as `vlac_queue.messages.encode_job` writes them.
    """
    from workers.worker import CriticWorker

    job = get_current_job()
    if job is None:
        raise RuntimeError("workers.job.answer runs inside an RQ worker; start one with `rq worker vlac`.")
    CriticWorker.serve_inside(job, text)
