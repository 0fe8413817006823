"""Processes that a benchmark starts, and what they run on."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from vlac_queue.client import CriticClient
from vlac_queue.errors import NoWorkers

ROOT = Path(__file__).parents[1]


def machine() -> str:
    """What the figures were measured on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


@contextmanager
def process(command: Sequence[str], **environ: str) -> Iterator[psutil.Process]:
    """A Python program (`command` without the interpreter) that can import this checkout; ended afterwards.

    What it leaves behind is ended as well.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # Settings of a queue of the user's own would change what is measured.
    outside = {name: text for name, text in os.environ.items() if not name.startswith(("VLAC_", "RQ_"))}
    started = psutil.Popen([sys.executable, *command], env={**outside, "PYTHONPATH": path, **environ})
    try:
        yield started
    finally:
        end([started])


def end(processes: Sequence[psutil.Process], *, patience_s: float = 10.0) -> None:
    """Ends processes and their descendants: asks them first, and kills what stays."""
    family: list[psutil.Process] = []
    for each in processes:
        try:
            family += [each, *each.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for each in processes:
        _signal(each, "terminate")
    _, alive = psutil.wait_procs(family, timeout=patience_s)
    for each in alive:
        _signal(each, "kill")
    psutil.wait_procs(alive, timeout=patience_s)


def _signal(process: psutil.Process, name: str) -> None:
    with suppress(psutil.NoSuchProcess):
        getattr(process, name)()


@contextmanager
def worker(
    url: str, queue: str, worker_class: str, environ: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """A real `rq worker` process on `queue`."""
    command = ["-m", "rq.cli", "worker", queue, "--with-scheduler", "--quiet"]
    with process(command, RQ_REDIS_URL=url, RQ_WORKER_CLASS=worker_class, **(environ or {})) as started:
        yield started


def wait_for_workers(client: CriticClient, count: int = 1) -> None:
    """Returns when `count` workers listen."""
    while True:
        try:
            if len(client.ping()) >= count:
                return
        except NoWorkers:
            pass
        time.sleep(0.05)
