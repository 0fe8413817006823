"""A worker of the queue in a process of its own, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlac_queue import CriticClient, NoWorkers, VlacConfig

_START_S = 60


@contextmanager
def running_worker(url: str, critic: str, queue: str = "vlac") -> Iterator[subprocess.Popen[bytes]]:
    """`rq worker`, once it listens; ends with the block.

    Args:
        url: of Redis.
        critic: VLAC_CRITIC; modules next to this file can be named.
        queue: to listen on.
    """
    environment = {
        **os.environ,
        "RQ_REDIS_URL": url,
        "RQ_WORKER_CLASS": "workers.CriticWorker",
        "VLAC_CRITIC": critic,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "rq.cli", "worker", queue, "--with-scheduler"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with CriticClient(VlacConfig(redis_url=url, queue=queue)) as client:
            deadline = time.monotonic() + _START_S
            while True:
                try:
                    client.ping()
                    break
                except NoWorkers:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
