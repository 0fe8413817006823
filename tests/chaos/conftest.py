"""The table of faults, and the parts that harm is done to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.chaos.load import Account, Load, Row, check
from tests.conftest import Workers

_ROWS = pytest.StashKey[list[Row]]()
_LINES = pytest.StashKey[list[str]]()


def harm(full: int, short: int = 0, timeout: int = 900) -> Any:
    """Run a test with `times` = `full` in `make test-chaos`, and with `short`, unless 0, in `make test-all`."""
    marks = [pytest.mark.chaos, pytest.mark.timeout(timeout)]
    runs = [pytest.param(short, id="short", marks=pytest.mark.slow)] if short else []
    return pytest.mark.parametrize("times", [*runs, pytest.param(full, id="full", marks=marks)])


class Table:
    """Collects a row for each fault; printed at the end of the run."""

    def __init__(self, rows: list[Row], lines: list[str]) -> None:
        self._rows = rows
        self._lines = lines

    def add(
        self, fault: str, times: int, load: Load | list[Account], recover_s: list[float], *, wire: bool = True
    ) -> None:
        """Checks the invariant, then notes the row."""
        queries, lost, doubled = check([load.account] if isinstance(load, Load) else load, wire=wire)
        assert all(seconds < float("inf") for seconds in recover_s)
        self._rows.append(Row(fault, times, queries, lost, doubled, recover_s))

    def say(self, *lines: str) -> None:
        """Adds lines to what is printed below the table."""
        self._lines += lines

    def note(self, fault: str, times: int, queries: int, recover_s: list[float]) -> None:
        """Notes a row whose queries the test has checked one by one."""
        self._rows.append(Row(fault, times, queries, 0, 0, recover_s))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS], config.stash[_LINES] = [], []
    config.addinivalue_line("markers", "soak: many faults in one long run; run with `make soak`")


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    return Table(request.config.stash[_ROWS], request.config.stash[_LINES])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows, lines = config.stash.get(_ROWS, []), config.stash.get(_LINES, [])
    for line in ([""] if rows or lines else []) + (markdown(rows) if rows else []) + lines:
        terminalreporter.write_line(line)


def markdown(rows: Sequence[Row]) -> list[str]:
    """The table, as it stands in docs/reliability.md."""
    lines = [
        "| fault | times | queries | lost | doubled | recovered after, median | worst |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row.fault, str(row.times), f"{row.queries:,}", str(row.lost), str(row.doubled)]
        cells += median_and_worst(row.recover_s)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def median_and_worst(seconds: Sequence[float]) -> list[str]:
    """Two cells of a table; dashes where nothing was measured."""
    if not seconds:
        return ["-", "-"]
    return [f"{statistics.median(seconds):.1f} s", f"{max(seconds):.1f} s"]


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
