"""Processes that a benchmark starts, and what they run on."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import psutil

from vlac_queue.client import CriticClient
from vlac_queue.control import end_worker, start_worker
from vlac_queue.errors import NoWorkers
from vlac_queue.signals import signals_held

ROOT = Path(__file__).parents[1]
#: Seconds in which a process may end by itself.
_PATIENCE_S = 10.0


def machine() -> str:
    """Return what the figures were measured on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


@contextmanager
def process(
    command: Sequence[str], environ: Mapping[str, str], *, root: Path = ROOT, **options: Any
) -> Iterator[psutil.Popen]:
    """Run a program that can import the checkout `root`; end it, and what it leaves behind, afterwards.

    It has a session of its own: Ctrl-C reaches the program around it, which then ends it in order.

    Args:
        environ: variables beside those of this process.
        options: of `subprocess.Popen`.
    """
    with ExitStack() as stack:
        with signals_held():
            options["start_new_session"] = True
            started = psutil.Popen(list(command), env=_environment(environ, root), **options)
            stack.callback(_end, started)
        yield started


def module(name: str, *arguments: object, **environ: str) -> AbstractContextManager[psutil.Popen]:
    """Run `python -m NAME ARGUMENTS`, as `process` does."""
    return process([sys.executable, "-m", name, *map(str, arguments)], environ)


@contextmanager
def worker(url: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a critic worker with these variables; end it afterwards."""
    with ExitStack() as stack:
        with signals_held():
            started = start_worker("vlac", _environment({**environ, "VLAC_REDIS_URL": url}), "--quiet")
            stack.callback(end_worker, started, _PATIENCE_S)
        yield started


def check_alive(worker: subprocess.Popen[bytes]) -> None:
    """Raise ClickException if a worker has ended."""
    if worker.poll() is not None:
        raise click.ClickException("the worker ended; what it said is above.")


def wait_for_workers(client: CriticClient, count: int = 1) -> None:
    """Return when `count` workers listen."""
    while True:
        with suppress(NoWorkers):
            if len(client.ping()) >= count:
                return
        time.sleep(0.05)


def wait_for_port(port: int) -> None:
    """Return when something listens there."""
    while True:
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)


def _environment(environ: Mapping[str, str], root: Path = ROOT) -> dict[str, str]:
    """Return this process's variables and these; without settings of a queue of the user's own."""
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    outside = {name: text for name, text in os.environ.items() if not name.startswith(("VLAC_", "RQ_"))}
    return {**outside, "PYTHONPATH": path, **environ}


def _end(started: psutil.Popen) -> None:
    """End a process and its descendants: ask it first, and kill what stays."""
    try:
        family = [started, *started.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    with suppress(psutil.NoSuchProcess):
        started.terminate()
    _, alive = psutil.wait_procs(family, timeout=_PATIENCE_S)
    for left in alive:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    psutil.wait_procs(alive, timeout=_PATIENCE_S)
