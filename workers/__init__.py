"""What a GPU host runs: `rq worker vlac`, with RQ_WORKER_CLASS=workers.CriticWorker or without."""

from workers.worker import CriticWorker

__all__ = ["CriticWorker"]
