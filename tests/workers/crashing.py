"""`CrashingWorker`: its main thread fails at an open query about an episode called "crash"."""

from __future__ import annotations

from typing import Any

from workers import CriticWorker


class CrashingWorker(CriticWorker):
    def _prepare(self, queries: Any, *args: Any) -> None:
        if self._store.still_open([query for _, query in queries if query.episode == "crash"]):
            raise MemoryError("too little of it")
        super()._prepare(queries, *args)
