"""`CrashingWorker`: its main thread fails at an open query about an episode called "crash"."""

from __future__ import annotations

from typing import Any

from workers import CriticWorker, worker
from workers.taker import Taker


class CrashingTaker(Taker):
    def _prepare(self, queries: Any, *args: Any) -> None:
        if self._store.still_open([query for _, query in queries if query.episode == "crash"]):
            raise MemoryError("too little of it")
        super()._prepare(queries, *args)


class CrashingWorker(CriticWorker):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        worker.Taker = CrashingTaker  # type: ignore[misc]
        super().__init__(*args, **kwargs)
