"""One long run, fault after fault drawn from all of faults.py: nothing lost or doubled, and memory flat."""

from __future__ import annotations

import logging
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.chaos.conftest import Table, median_and_worst
from tests.chaos.faults import FAULTS, PERMITTED, harm
from tests.chaos.load import check
from tests.chaos.stage import CAN_SHIFT, Stage, staged
from tests.conftest import until

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
SEED = int(os.environ.get("SEED", "1"))
#: Names of the faults to draw, with commas; none: all of them.
ONLY = os.environ.get("SOAK_FAULTS", "")
_WORKERS = 4
#: Parts of the run whose memory is compared: the second, when all that is kept is full, and the last.
_PARTS = 10
_GROWTH_MB = 8.0
#: Keys that have no time to live by themselves.
_LASTING = {b"rq:queues", b"rq:workers", b"rq:workers:vlac", b"vlac:vlac:workers"}
#: What killed rollouts leave has: its members' time is in there.
_LEFT = {b"vlac:vlac:open", b"vlac:vlac:sizes"}
#: Chance that the next fault comes before this one's harm is mended.
_OVERLAPPING = 0.2


def order(seed: int, keys: Sequence[str]) -> Iterator[str]:
    """Faults for ever: all of them, shuffled, again and again."""
    chance = random.Random(seed)
    while True:
        yield from chance.sample(keys, len(keys))


class Memory:
    """What the rollouts' process, a worker that is spared, and Redis take, from time to time."""

    def __init__(self, stage: Stage) -> None:
        self._processes = [psutil.Process(), psutil.Process(stage.spared[0].pid)]
        self._control = stage.control
        self._began = time.monotonic()
        #: Seconds since the start, and MB of the three.
        self.series: list[tuple[float, float, float, float]] = []

    def look(self) -> None:
        client, worker = (process.memory_info().rss / 1e6 for process in self._processes)
        on_redis = int(self._control.info("memory")["used_memory"]) / 1e6
        self.series.append((time.monotonic() - self._began, client, worker, on_redis))

    def parts(self) -> list[tuple[float, ...]]:
        """Medians of each part of the run."""
        end = self.series[-1][0]
        parts = []
        for part in range(_PARTS):
            here = [each for each in self.series if part <= _PARTS * each[0] / end <= part + 1]
            if here:
                parts.append(tuple(map(statistics.median, zip(*here, strict=True))))
        return parts


@pytest.mark.chaos
@pytest.mark.soak
@pytest.mark.timeout(int(60 * MINUTES) + 1800)
def test_soak(tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # what is logged would be kept for the whole run
    keys = ONLY.split(",") if ONLY else [k for k, fault in FAULTS.items() if CAN_SHIFT or not fault.shifts_clock]
    with staged(tmp_path, SEED, _WORKERS) as stage:
        stage.spare(stage.alive()[0])
        for overlap in (True, False):
            stage.rolls(rollouts=2, pause_s=0.05, overlap=overlap, permits=PERMITTED)
        memory, recovered = Memory(stage), {key: [] for key in keys}
        try:
            _do_harm(stage, order(SEED, keys), memory, recovered)
            stage.finish()
        finally:
            table.say(*_report(stage, memory, recovered))
        check([load.account for load in stage.loads], wire=False)
        _check_memory(memory.parts())
        until(lambda: set(stage.control.scan_iter()) >= _LASTING)
        without_end = {key for key in stage.control.scan_iter() if stage.control.ttl(key) == -1}
        assert without_end <= _LASTING | (_LEFT if recovered.get("rollout_killed") else set())


def _do_harm(stage: Stage, keys: Iterator[str], memory: Memory, recovered: dict[str, list[float | None]]) -> None:
    """Until the time is over; notes seconds until each was mended, None where another came first."""
    end = time.monotonic() + 60 * MINUTES
    number = 0
    while time.monotonic() < end:
        key = next(keys)
        stage.chance.seed(f"{SEED} {(number := number + 1)}")
        print(f"{end - time.monotonic():6.0f} s left: {number:4} {FAULTS[key].name}", end="", flush=True)
        stage.asks()
        since = harm(stage, key)
        stage.staff()
        if stage.chance.random() < _OVERLAPPING:
            recovered[key].append(None)
            print(" ...", flush=True)
            continue
        seconds = stage.recovered_s(since)
        recovered[key].append(seconds)
        print(f": {seconds:.1f} s", flush=True)
        for load in stage.loads:
            load.forget_times()
        memory.look()
        time.sleep(stage.chance.uniform(1, 4))
    stage.recovered_s(time.monotonic())
    memory.look()


def _report(stage: Stage, memory: Memory, recovered: dict[str, list[float | None]]) -> list[str]:
    """The tables of docs/reliability.md."""
    accounts = [load.account for load in stage.loads]
    sums = {
        name: sum(getattr(account, name) for account in accounts)
        for name in ("queries", "lost", "doubled", "masked")
    }
    times = [seconds for of_it in recovered.values() for seconds in of_it]
    lines = [
        "",
        f"{MINUTES:g} minutes, SEED={SEED}, {len(stage.workers.processes)} worker processes:",
        "",
        "| fault | times | recovered after, median | worst |",
        "|---|---:|---:|---:|",
    ]
    for key, of_it in recovered.items():
        lines.append(_row(FAULTS[key].name, of_it))
    lines += [
        _row("all", times),
        "",
        "| queries | lost | doubled | masked |",
        "|---:|---:|---:|---:|",
        f"| {sums['queries']:,} | {sums['lost']} | {sums['doubled']} | {sums['masked']} |",
        "",
        "| minutes | rollouts | a worker | Redis |",
        "|---:|---:|---:|---:|",
    ]
    for seconds, *megabytes in memory.parts():
        lines.append(f"| {seconds / 60:.1f} | " + " | ".join(f"{mb:.1f} MB" for mb in megabytes) + " |")
    return lines


def _row(name: str, times: Sequence[float | None]) -> str:
    measured = [seconds for seconds in times if seconds is not None]
    return f"| {' | '.join([name, str(len(times)), *median_and_worst(measured)])} |"


def _check_memory(parts: Sequence[tuple[float, ...]]) -> None:
    _, *settled = parts[1]
    _, *last = parts[-1]
    assert all(after < before + _GROWTH_MB for before, after in zip(settled, last, strict=True)), parts
