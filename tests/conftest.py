"""A real redis-server for all tests, emptied for each, and real worker processes on demand."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from click.testing import CliRunner, Result

from vlac_queue import CriticClient, VlacConfig
from vlac_queue.control import live_workers, worker_command
from vlac_queue.keys import Keys
from vlac_queue.server import RedisServer
from vlac_queue.signals import ENDING

ROOT = Path(__file__).parent.parent


with suppress(ImportError):  # the environments of `make test-vlac` and `make test-verl` are without it
    from hypothesis import HealthCheck, settings

    # How long a machine takes is no property of ours.
    settings.register_profile("tests", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")


if "mix_stderr" in inspect.signature(CliRunner).parameters:  # click 8.1: as later ones show the two streams
    CliRunner.__init__ = partialmethod(CliRunner.__init__, mix_stderr=False)
    Result.output = property(lambda result: result.stdout + result.stderr)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--none-skipped", action="store_true", help="Fail if a test was skipped.")


def pytest_sessionstart() -> None:
    """Forget the user's own settings, before anything is collected and any fixture begins."""
    for name in list(os.environ):
        if name.startswith(("VLAC_", "RQ_")) or name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            del os.environ[name]
    # A matrix product is too small here for threads, and each process that is started would begin some.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Who starts the tests in the background has them, and all that they start, ignore Ctrl-C or a hang-up.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes share the tests: two a core, since half of the time a test waits."""
    return 2 * len(os.sched_getaffinity(0))


def _skipped(config: pytest.Config) -> list[pytest.TestReport]:
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    return list(reporter.stats.get("skipped", ())) if reporter else []


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--none-skipped") and _skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say in one line what was skipped and why, e.g. "9 skipped: tmux is missing (6), chromium is missing (3)"."""
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in _skipped(config))  # type: ignore[index]
    if reasons:
        told = ", ".join(f"{reason} ({times})" for reason, times in reasons.most_common())
        terminalreporter.write_line(f"{reasons.total()} skipped: {told}")


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Take back what a program that ran in this process does at signals."""
    hook, handlers = sys.unraisablehook, [(number, signal.getsignal(number)) for number in ENDING]
    yield
    sys.unraisablehook = hook
    for number, handler in handlers:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture
def connection(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as opened:
        opened.flushall()
        yield opened


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Waits for a condition, and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came true: {condition}"
        time.sleep(0.01)
    return value


def started_by(mark: str) -> list[psutil.Process]:
    """Living processes that have this `TEST_MARK` in their environment, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class Workers:
    """Starts real `rq worker` processes, and ends them all."""

    def __init__(self, url: str, connection: redis.Redis, folder: Path) -> None:
        self._url = url
        self._connection = connection
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        critic: str = "reference",
        *arguments: str,
        worker_class: str | None = "workers.CriticWorker",
        wait: bool = True,
        prefix: tuple[str, ...] = (),
        **environ: str,
    ) -> subprocess.Popen[bytes]:
        """`rq worker vlac --with-scheduler` with these settings, after `prefix`; returns once it listens."""
        before = set(live_workers(self._connection, Keys("vlac")))
        variables = {
            **os.environ,
            "RQ_REDIS_URL": self._url,
            "VLAC_CRITIC": critic,
            "PYTHONPATH": str(ROOT),
            **environ,
        }
        if worker_class:
            variables["RQ_WORKER_CLASS"] = worker_class
        command = [*prefix, *worker_command("vlac", *arguments)]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=self._folder)
        self.processes.append(process)
        if wait:
            until(lambda: process.poll() is not None or set(live_workers(self._connection, Keys("vlac"))) - before)
            assert process.poll() is None, self.log.read_text()
        return process

    @property
    def log(self) -> Path:
        """What all workers print."""
        return self._folder / "workers.log"

    def described(self) -> list[dict[str, str]]:
        """What the critic workers say of themselves."""
        names: Any = self._connection.smembers("vlac:vlac:workers")
        hashes: list[Any] = [
            self._connection.hgetall(Keys("vlac").worker(name.decode())) for name in sorted(names)
        ]
        return [{key.decode(): value.decode() for key, value in each.items()} for each in hashes if each]

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                for each in (*children, psutil.Process(process.pid)):
                    each.kill()
                process.wait()


@pytest.fixture
def workers(server: RedisServer, connection: redis.Redis, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(server.url, connection, tmp_path)
    yield started
    started.stop()


@pytest.fixture
def client(server: RedisServer, connection: redis.Redis) -> Iterator[CriticClient]:
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as made:
        yield made
