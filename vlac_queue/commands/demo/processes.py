"""Real worker processes for the demo."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlac_queue.client import CriticClient
from vlac_queue.control import end_worker, start_worker
from vlac_queue.errors import NoWorkers, VlacQueueError
from vlac_queue.signals import signals_held

#: Seconds that a worker may take to start, and to end.
_START_S, _END_S = 60.0, 10.0

Processes = list[subprocess.Popen[bytes]]


@contextmanager
def worker_processes(count: int, url: str, logs: Path) -> Iterator[Processes]:
    """Run workers with the critic `reference`, which log to worker-N.log in a folder; end them come what may."""
    # Settings of a queue of the user's own don't concern these.
    outside = {name: text for name, text in os.environ.items() if not name.startswith(("VLAC_", "RQ_"))}
    environ = {**outside, "VLAC_REDIS_URL": url, "VLAC_CRITIC": "reference"}
    started: Processes = []
    try:
        for number in range(1, count + 1):
            with signals_held(), _log(logs, number).open("wb") as log:
                started.append(start_worker("vlac", environ, stdout=log, stderr=log))
        yield started
    finally:
        with signals_held():
            for process in started:
                process.terminate()
            for process in started:
                end_worker(process, _END_S)


def wait_until_ready(processes: Processes, client: CriticClient, logs: Path) -> None:
    """Return when all of `worker_processes` listen.

    Raises:
        VlacQueueError: one ended, or they take too long; the message names its log.
    """
    deadline = time.monotonic() + _START_S
    while True:
        for number, process in enumerate(processes, 1):
            if process.poll() is not None:
                raise VlacQueueError(f"worker {number} ended at once; see {_log(logs, number)}.")
        with suppress(NoWorkers):
            if len(client.ping()) >= len(processes):
                return
        if time.monotonic() > deadline:
            raise VlacQueueError(f"the workers did not start within {_START_S:.0f} s; see {logs}.")
        time.sleep(0.05)


def _log(folder: Path, number: int) -> Path:
    return folder / f"worker-{number}.log"
