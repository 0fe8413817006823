"""Real worker processes for the demo."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from vlac_queue.client import CriticClient
from vlac_queue.control import worker_command
from vlac_queue.errors import NoWorkers, VlacQueueError
from vlac_queue.signals import signals_held

#: Seconds that a worker may take to start.
_START_S = 60.0


class WorkerProcesses:
    """`rq worker` processes with our worker class; they end with the `with` block, come what may.

    Args:
        count: how many.
        redis_url: Redis that they listen on.
        critic: critic that they run.
        logs: folder for what they print.
    """

    def __init__(self, count: int, *, redis_url: str, critic: str, logs: Path) -> None:
        self._count = count
        # Settings of a queue of the user's own don't concern these.
        outside = {name: text for name, text in os.environ.items() if not name.startswith(("VLAC_", "RQ_"))}
        self._environ = {
            **outside,
            "RQ_REDIS_URL": redis_url,
            "RQ_WORKER_CLASS": "workers.CriticWorker",
            "VLAC_CRITIC": critic,
        }
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> WorkerProcesses:
        command = worker_command("vlac")
        for number in range(1, self._count + 1):
            with signals_held(), open(self._logs / f"worker-{number}.log", "wb") as log:
                # A session of their own: Ctrl-C reaches the demo, which then ends them in order.
                started = subprocess.Popen(
                    command, env=self._environ, stdout=log, stderr=log, start_new_session=True
                )
                self._processes.append(started)
        return self

    def wait_until_ready(self, client: CriticClient) -> None:
        """Returns when all of them listen.

        Raises:
            VlacQueueError: one ended, or they take too long; the message names its log.
        """
        deadline = time.monotonic() + _START_S
        while True:
            for number, process in enumerate(self._processes, 1):
                if process.poll() is not None:
                    raise VlacQueueError(
                        f"worker {number} ended at once; see {self._logs / f'worker-{number}.log'}."
                    )
            try:
                if len(client.ping()) >= self._count:
                    return
            except NoWorkers:
                pass
            if time.monotonic() > deadline:
                raise VlacQueueError(f"the workers did not start within {_START_S:.0f} s; see {self._logs}.")
            time.sleep(0.05)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        with signals_held():
            for process in self._processes:
                process.terminate()
            for process in self._processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                # What is left of its session: itself, or a scheduler whose worker was ended while it started.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._processes.clear()
