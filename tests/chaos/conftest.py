"""The table of faults, and the parts that harm is done to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.chaos.load import Load, Row, check
from tests.conftest import Workers
from vlac_queue.client import Pending

_ROWS = pytest.StashKey[list[Row]]()


def harm(short: int, full: int, timeout: int = 240) -> Any:
    """Runs a test with `times` = `short` among all tests, and = `full` in `make test-chaos`."""
    marks = [pytest.mark.chaos, pytest.mark.timeout(timeout)]
    return pytest.mark.parametrize(
        "times", [pytest.param(short, id="short"), pytest.param(full, id="full", marks=marks)]
    )


class Table:
    """Collects a row for each fault; printed at the end of the run."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def add(
        self, fault: str, times: int, loads: Load | Sequence[Load], recover_s: list[float], *, wire: bool = True
    ) -> None:
        """Checks the invariant, then notes the row."""
        queries, lost, doubled = check(loads, wire=wire)
        assert all(seconds < float("inf") for seconds in recover_s)
        self._rows.append(Row(fault, times, queries, lost, doubled, recover_s))

    def note(self, fault: str, times: int, queries: int, recover_s: list[float]) -> None:
        """Notes a row whose queries the test has checked one by one."""
        self._rows.append(Row(fault, times, queries, 0, 0, recover_s))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    return Table(request.config.stash[_ROWS])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        terminalreporter.write_line("")
        for line in markdown(rows):
            terminalreporter.write_line(line)


def markdown(rows: Sequence[Row]) -> list[str]:
    """The table, as it stands in docs/reliability.md."""
    lines = [
        "| fault | times | queries | lost | doubled | recovered after, median | worst |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        times = (
            [f"{statistics.median(row.recover_s):.1f} s", f"{max(row.recover_s):.1f} s"]
            if row.recover_s
            else ["-", "-"]
        )
        cells = [row.fault, str(row.times), f"{row.queries:,}", str(row.lost), str(row.doubled), *times]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


@pytest.fixture(autouse=True)
def _count_resolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Pending counts how often an answer was taken in for it."""
    resolve: Callable[..., None] = Pending._resolve

    def counting(self: Any, *args: Any, **kwargs: Any) -> None:
        self.resolutions = getattr(self, "resolutions", 0) + 1
        resolve(self, *args, **kwargs)

    monkeypatch.setattr(Pending, "_resolve", counting)


@pytest.fixture
def fleets(tmp_path: Path) -> Iterator[Callable[[str, redis.Redis], Workers]]:
    """Makes workers for a Redis of the test's own; all end with the test."""
    made: list[Workers] = []

    def make(url: str, connection: redis.Redis) -> Workers:
        folder = tmp_path / f"workers-{len(made)}"
        folder.mkdir()
        made.append(Workers(url, connection, folder))
        return made[-1]

    yield make
    for each in made:
        each.stop()
