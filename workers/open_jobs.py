"""The jobs at work in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence


class OpenJobs:
    """The jobs at work here, and how many of their queries have no answer yet; threads may share it."""

    def __init__(self) -> None:
        self._queries: dict[str, int] = {}
        self._lock = threading.Lock()
        #: Jobs taken whose queries are not added yet.
        self.at_hand: frozenset[str] = frozenset()
        #: Set while there are none but those.
        self.none = threading.Event()

    def __bool__(self) -> bool:
        return bool(self._queries)

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the jobs, those at hand among them."""
        with self._lock:
            return self.at_hand.union(self._queries)

    def left(self, job_id: str) -> int:
        """Return the number of queries of a job without an answer."""
        return self._queries.get(job_id, 0)

    def add(self, job_ids: Iterable[str]) -> None:
        """Add one more query of each of these jobs; a job stands in there once for each."""
        with self._lock:
            self.none.clear()
            for job_id in job_ids:
                self._queries[job_id] = self._queries.get(job_id, 0) + 1

    def last(self, job_ids: Sequence[str]) -> list[str]:
        """Return those jobs that one answer for each of `job_ids` would finish."""
        with self._lock:
            left = {job_id: self._queries[job_id] for job_id in job_ids if job_id in self._queries}
        finished = []
        for job_id in job_ids:
            if job_id in left:  # else others have it: they thought this worker dead
                left[job_id] -= 1
                if left[job_id] == 0:
                    finished.append(job_id)
        return finished

    def answered(self, job_ids: Iterable[str]) -> None:
        """Count one answer less to wait for, of each of these jobs."""
        with self._lock:
            for job_id in job_ids:
                if job_id in self._queries:
                    self._queries[job_id] -= 1
                    # Not simply those that `last` named: a copy of the job may have come meanwhile.
                    if self._queries[job_id] == 0:
                        del self._queries[job_id]
            self._tell()

    def drop(self, job_ids: Iterable[str]) -> None:
        """Forget jobs, whatever is left of them."""
        with self._lock:
            for job_id in job_ids:
                self._queries.pop(job_id, None)
            self._tell()

    def _tell(self) -> None:
        if not self._queries:
            self.none.set()
