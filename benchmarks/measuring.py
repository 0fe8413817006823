"""`python -m benchmarks.measuring PEER`: one round of one peer in a process of its own; prints figures as JSON.

A process of its own is the client alone, so that its CPU time is the client's, and nothing that another peer
started (threads, daemons) is there while it is measured.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import lz4.block
import psutil
import redis

from benchmarks.figures import quantile
from benchmarks.peers import PEERS, Asker, Peer
from benchmarks.processes import ROOT, process
from benchmarks.workloads import WORKLOADS, Workload
from vlac_queue.server import RedisServer

#: Seconds that a peer may take to come up and go away, beyond what it is measured.
_PATIENCE_S = 120.0
_LEAST_STEPS = 3
_LEAST_SINGLES = 20


class ApartError(Exception):
    """A measurement in a process of its own failed, or did not end; the message holds what it printed."""


@dataclass(frozen=True)
class Round:
    """What one round of one peer gave.

    Attributes:
        queries_per_s: while full steps were asked, one after the other.
        step_p50_s, step_p99_s: seconds of a full step: all frames asked, all answers here.
        single_p50_s, single_p99_s: seconds of a query asked alone.
        client_s, redis_s, workers_s, wire_bytes: of one query of a full step; wire_bytes None where no byte goes
            through a socket that can be counted.
        lz4_s: CPU seconds of compressing one of the frames once with lz4, in the same process.
        queries: how many were measured in full steps.
    """

    queries_per_s: float
    step_p50_s: float
    step_p99_s: float
    single_p50_s: float
    single_p99_s: float
    client_s: float
    redis_s: float
    workers_s: float
    wire_bytes: float | None
    lz4_s: float
    queries: int


def measure_apart(
    peer: str, workload: str, episodes: int, seconds: float, *, root: Path = ROOT, python: str = sys.executable
) -> Round:
    """Measure one round of a peer in a process of its own; end whatever it leaves behind.

    Args:
        root, python: the checkout that is measured, and its interpreter.

    Raises:
        ApartError: it failed, or did not end.
    """
    command = [python, "-m", "benchmarks.measuring", peer, "--workload", workload]
    command += ["--episodes", str(episodes), "--seconds", str(seconds)]
    shown = " ".join(command[1:])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with process(command, {}, root=root, cwd=root, **pipes) as started:
        try:
            out, err = started.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise ApartError(f"{shown} did not end in time") from None
    if started.returncode:
        raise ApartError(f"{shown} failed:\n{err or out}")
    return Round(**json.loads(out.splitlines()[-1]))


def measure(peer: Peer, workload: Workload, episodes: int, seconds: float) -> Round:
    """Bring a peer up with a Redis of its own, and ask it.

    Full steps for `seconds`, then single queries for half of that.
    """
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        connection = stack.enter_context(redis.Redis.from_url(server.url))
        asker = stack.enter_context(peer.start(server.url, episodes))
        for index in range(2):
            _ask(asker, workload, index, episodes)
        costs = _Costs(connection, asker.wire_bytes)
        before, started = costs.read(), time.perf_counter()
        steps = _timed(asker, workload, episodes, seconds, _LEAST_STEPS)
        took, after = time.perf_counter() - started, costs.read()
        for index in range(5):
            _ask(asker, workload, index, 1)
        singles = _timed(asker, workload, 1, seconds / 2, _LEAST_SINGLES)
    queries = len(steps) * episodes
    each: dict[str, Any] = {
        name: None if total is None else (total - before[name]) / queries for name, total in after.items()
    }
    return Round(
        queries_per_s=queries / took,
        step_p50_s=quantile(steps, 0.5),
        step_p99_s=quantile(steps, 0.99),
        single_p50_s=quantile(singles, 0.5),
        single_p99_s=quantile(singles, 0.99),
        lz4_s=lz4_s(workload, episodes),
        queries=queries,
        **each,
    )


def lz4_s(workload: Workload, episodes: int) -> float:
    """Return the CPU seconds of compressing one of the frames of a step once."""
    frames = workload.step(1, episodes)
    started, count = time.process_time(), 0
    while count == 0 or time.process_time() - started < 0.2:
        for frame in frames:
            lz4.block.compress(frame)
        count += len(frames)
    return (time.process_time() - started) / count


class _Costs:
    """Reads what this process, its Redis and its descendants have cost.

    Args:
        connection: to the Redis that this process started.
        wire_bytes: counts the bytes where Redis does not carry them.
    """

    def __init__(self, connection: redis.Redis, wire_bytes: Callable[[], int | None] | None) -> None:
        self._connection = connection
        self._wire_bytes = wire_bytes or self._redis_bytes
        self._redis_pid = int(connection.info("server")["process_id"])

    def read(self) -> dict[str, Any]:
        """Return the CPU seconds (user and system) and the bytes so far, by the names of a Round.

        Workers are all descendants of this process but Redis: schedulers, services, daemons.
        """
        client = psutil.Process()
        others = {each.pid: cpu_s(each) for each in client.children(recursive=True)}
        redis_s = others.pop(self._redis_pid)
        workers_s = sum(others.values())
        wire_bytes = self._wire_bytes()
        return {"client_s": cpu_s(client), "redis_s": redis_s, "workers_s": workers_s, "wire_bytes": wire_bytes}

    def _redis_bytes(self) -> int:
        said = self._connection.info("stats")
        return int(said["total_net_input_bytes"]) + int(said["total_net_output_bytes"])


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU seconds of a process so far, user and system; 0 where it has ended."""
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _timed(asker: Asker, workload: Workload, episodes: int, seconds: float, least: int) -> list[float]:
    """Return the seconds of each step, over about `seconds`."""
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < least or time.perf_counter() < end:
        started = time.perf_counter()
        _ask(asker, workload, len(took), episodes)
        took.append(time.perf_counter() - started)
    return took


def _ask(asker: Asker, workload: Workload, step: int, episodes: int) -> None:
    answers = asker.ask(workload.step(step, episodes))
    if list(answers) != [False] * episodes:
        raise RuntimeError(f"{episodes} frames were asked about, and the answers were {list(answers)!r}")


@click.command()
@click.argument("peer", type=click.Choice(list(PEERS)))
@click.option("--workload", type=click.Choice(list(WORKLOADS)), default="simulator", show_default=True)
@click.option("--episodes", default=64, show_default=True, help="Episodes that ask at once.")
@click.option("--seconds", default=3.0, show_default=True, help="Time to measure.")
def main(peer: str, workload: str, episodes: int, seconds: float) -> None:
    """Measures one round of one peer."""
    # Ended from outside, it ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(json.dumps(asdict(measure(PEERS[peer], WORKLOADS[workload](), episodes, seconds))))


if __name__ == "__main__":
    main()
