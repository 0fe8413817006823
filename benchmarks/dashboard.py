"""`python -m benchmarks.dashboard`: what looking at a queue costs the one who looks, Redis, and the queue.

200 workers that beat once a second, 10,000 queued jobs, 100,000 failed ones and 1,000 open episodes; the dashboard
runs in a real pseudo-terminal, at one refresh a second.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import click
import psutil
import redis
from redis.client import Pipeline
from rich.console import Console
from rich.table import Table

from benchmarks.figures import interleaved, ratio
from benchmarks.measuring import cpu_s
from benchmarks.peers import ours
from benchmarks.processes import machine, process
from benchmarks.report import table
from benchmarks.workloads import simulator
from dashboards.reading import Reader
from vlac_queue.config import VlacConfig
from vlac_queue.control import WorkerInfo
from vlac_queue.keys import LIMIT_FIELD, TOTAL_FIELD, Keys
from vlac_queue.metrics import PHASES, Histogram
from vlac_queue.server import RedisServer

_KEYS = Keys("vlac")
#: Episodes that ask at once.
_AT_ONCE = 64
_JOBS, _FAILED, _EPISODES = 10_000, 100_000, 1_000
#: Seconds until the dashboard has started and its charts move.
_WARM_UP_S = 5.0
#: Workers, screen (columns, lines) and page of each row; and the key that opens a page.
_CASES = (
    (4, 80, 24, "overview"), (200, 80, 24, "overview"), (200, 200, 60, "overview"), (200, 200, 60, "workers"),
)  # fmt: skip
_KEY_OF_PAGE = {"overview": "", "workers": "w"}


def fill(connection: redis.Redis, workers: int) -> None:
    """Make a queue that is in trouble."""
    for start in range(0, _JOBS, 1000):
        connection.rpush(_KEYS.rq_queue, *(f"job-{n}" for n in range(start, start + 1000)))
    for start in range(0, _FAILED, 5000):
        connection.zadd("rq:failed:vlac", {f"failed-{n}": n for n in range(start, start + 5000)})
    with connection.pipeline(transaction=False) as pipeline:
        now = time.time()
        for n in range(_EPISODES):
            keys = _KEYS.episode(f"episode-{n}")
            pipeline.hset(keys.meta, mapping={"task": f"put the red mug on plate {n}", "ttl_s": 3600})
            pipeline.zadd(_KEYS.open, {f"episode-{n}": now + 3600 - n / 10})
            pipeline.rpush(keys.frames, b"x")
            pipeline.hset(_KEYS.sizes, f"episode-{n}", "1000000")
        pipeline.hset(_KEYS.sizes, mapping={TOTAL_FIELD: _EPISODES * 1_000_000, LIMIT_FIELD: 2 << 30})
        pipeline.hset(_KEYS.totals, mapping={"episodes": 1000, "done": 600, "values": 400, "value_sum": 120.5})
        for n in range(workers):
            pipeline.sadd(_KEYS.workers, f"gpu-{n:03d}-4242-ab12")
        for n in range(1000):
            event = {"kind": "failure", "worker": f"gpu-{n % 200:03d}", "error": "ValueError: no"}
            pipeline.xadd(_KEYS.events, {"e": json.dumps(event)})
        pipeline.execute()


@contextmanager
def beating(url: str, workers: int) -> Iterator[None]:
    """Have `workers` workers say each second what real ones do."""
    stop = threading.Event()
    latencies = [{phase: Histogram() for phase in PHASES} for _ in range(workers)]

    def beat() -> None:
        chance, second = random.Random(0), 0
        with redis.Redis.from_url(url) as connection:
            while not stop.wait(1.0 if second else 0.0):
                second += 1
                with connection.pipeline(transaction=False) as pipeline:
                    for n, histograms in enumerate(latencies):
                        for histogram in histograms.values():
                            for _ in range(8):
                                histogram.observe(chance.lognormvariate(-2, 1.2), 5)
                        key = _KEYS.worker(f"gpu-{n:03d}-4242-ab12")
                        pipeline.hset(key, mapping=_described(n, second, histograms))
                        pipeline.pexpire(key, 60_000)
                    pipeline.execute()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _described(number: int, second: int, histograms: Mapping[str, Histogram]) -> dict[str, Any]:
    said = WorkerInfo(
        name="", host=f"gpu-{number:03d}", pid=4242, protocol="2", critic="vlac", model="/models/VLAC",
        prompt="3fa9c1", engine="pt", device="cuda:0", state="busy", uptime_s=100 + second, max_batch=16, loads=1,
        jobs=4 * second, queries=40 * second, failures=second // 10, batches=3 * second, busy_s=0.9 * second,
        rss_bytes=3 << 30, accelerator_bytes=6 << 30, accelerator_limit_bytes=12 << 30,
        last_error="ValueError: no", last_error_at=time.time(), time=time.time(),
    )  # fmt: skip
    latencies = {f"latency_{phase}": histogram.encode() for phase, histogram in histograms.items()}
    return asdict(said) | latencies


def cost_of_looks(url: str, looks: int) -> dict[str, float]:
    """Return round trips, commands and bytes of a look, by Redis' own count."""
    reader = Reader(VlacConfig(redis_url=url))
    reader.look(episodes=0)
    with (
        redis.Redis.from_url(url) as connection,
        patch.object(Pipeline, "execute", autospec=True, side_effect=Pipeline.execute) as trips,
    ):
        connection.config_resetstat()
        for _ in range(looks):
            assert reader.look(episodes=0).snapshot is not None
        info: Any = connection.info("stats")
        commands: Any = connection.info("commandstats")
    busy_us = sum(stat["usec"] for name, stat in commands.items() if not name.startswith("cmdstat_config"))
    return {
        "round_trips": trips.call_count / looks,
        "commands": (info["total_commands_processed"] - 1) / looks,
        "sent_bytes": info["total_net_input_bytes"] / looks,
        "read_bytes": info["total_net_output_bytes"] / looks,
        "redis_ms": busy_us / 1000 / looks,
    }


def own_cpu(url: str, seconds: float, width: int, height: int, key: str) -> float:
    """Return the part of a core that the dashboard takes in a terminal of this size, over `seconds` seconds.

    Args:
        key: pressed at first; "" for none.
    """
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    screen = {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": str(height)}
    try:
        with _dashboard(url, screen, stdin=side, stdout=side, stderr=side) as process:
            os.close(side)
            os.write(main, key.encode())
            _read_for(main, _WARM_UP_S)
            started, before = time.monotonic(), cpu_s(process)
            drawn = _read_for(main, seconds)
            elapsed_s, took_s = time.monotonic() - started, cpu_s(process) - before
            assert process.poll() is None and drawn > seconds, "the dashboard drew nothing"
            return took_s / elapsed_s
    finally:
        os.close(main)


def _dashboard(
    url: str, environ: Mapping[str, str], *arguments: str, **options: Any
) -> AbstractContextManager[psutil.Popen]:
    command = [sys.executable, "-m", "dashboards.live", "--redis-url", url, *arguments]
    return process(command, environ, start_new_session=True, **options)


def _read_for(terminal: int, seconds: float) -> int:
    """Read what is drawn, as a terminal does; return how many bytes."""
    end, count = time.monotonic() + seconds, 0
    while (left_s := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left_s)[0]:
            count += len(os.read(terminal, 65536))
    return count


def cost_on_the_queue(rounds: int, steps: int) -> dict[str, list[dict[str, float]]]:
    """Measure what the queue does while the dashboard stands still, and while it looks once a second.

    Returns:
        "watched" and "alone" -> for each round `queries_per_s`, and `cpu_ms`: CPU time of client, worker and Redis
        for a query, which tells more than the rate where others use the machine too.
    """
    with RedisServer() as server, ours.start(server.url, _AT_ONCE) as asker:
        me = psutil.Process()
        parts = (me, *me.children(recursive=True))
        with _dashboard(server.url, {}, "--record", "-", stdout=subprocess.PIPE) as dashboard:
            assert dashboard.stdout.readline()
            threading.Thread(target=dashboard.stdout.read, daemon=True).start()

            def leg(turn: Callable[[], None]) -> dict[str, float]:
                turn()
                before, started = sum(map(cpu_s, parts)), time.perf_counter()
                for step in range(steps):
                    asker.ask(simulator().step(step, _AT_ONCE))
                took, queries = time.perf_counter() - started, steps * _AT_ONCE
                cpu_ms = 1000 * (sum(map(cpu_s, parts)) - before) / queries
                return {"queries_per_s": queries / took, "cpu_ms": cpu_ms}

            leg(dashboard.resume)  # warms up
            rows = {"watched": partial(leg, dashboard.resume), "alone": partial(leg, dashboard.suspend)}
            measured = interleaved("the queue's cost", rows, rounds)
            dashboard.resume()
    return measured


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="Seconds for each figure of the CPU.")
@click.option("--rounds", default=20, show_default=True, help="Rounds with and without; 0 leaves them out.")
@click.option("--steps", default=40, show_default=True, help="Steps of 64 queries in a round.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures to this file too.")
def main(seconds: float, rounds: int, steps: int, json_file: str | None) -> None:
    """Measures the dashboard, and prints a table."""
    console = Console()
    rows = [cost_of_screen(seconds, *case) for case in _CASES]
    console.print(_table(rows))
    figures: dict[str, Any] = {"machine": machine(), "rows": rows}
    if rounds:
        figures["queue"] = measured = cost_on_the_queue(rounds, steps)
        console.print(f"the queue at full speed, medians of {rounds} rounds:")
        for name, legs in measured.items():
            rate, cpu_ms = (median(leg[key] for leg in legs) for key in ("queries_per_s", "cpu_ms"))
            console.print(f"  {name:<8} {rate:,.0f} queries/s, {cpu_ms:.3f} ms of CPU a query")
        cost = ratio(*([leg["cpu_ms"] for leg in measured[name]] for name in ("watched", "alone")))
        console.print(f"  cost     {cost.median - 1:+.1%} CPU a query")
    if json_file:
        with open(json_file, "w") as file:
            json.dump(figures, file, indent=2)


def cost_of_screen(seconds: float, workers: int, width: int, height: int, page: str) -> dict[str, Any]:
    """Measure the dashboard's own CPU on one screen, and what its looks cost."""
    with RedisServer() as server, redis.Redis.from_url(server.url) as connection:
        fill(connection, workers)
        with beating(server.url, workers):
            cpu = own_cpu(server.url, seconds, width, height, _KEY_OF_PAGE[page])
        # Without the beats, which Redis would count too.
        looks = cost_of_looks(server.url, 20)
    return {"workers": workers, "screen": f"{width}x{height}", "page": page, "cpu": cpu, **looks}


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    return table(
        "the dashboard, one refresh a second",
        ("workers", "screen", "page", "own CPU", "round trips", "commands", "KiB read", "Redis ms"),
        [
            [
                str(row["workers"]),
                row["screen"],
                row["page"],
                f"{row['cpu']:.1%}",
                f"{row['round_trips']:.0f}",
                f"{row['commands']:.0f}",
                f"{row['read_bytes'] / 1024:,.0f}",
                f"{row['redis_ms']:.1f}",
            ]
            for row in rows
        ],
        caption=f"{machine()}; {_JOBS:,} queued jobs, {_FAILED:,} failed, {_EPISODES:,} open episodes",
    )


if __name__ == "__main__":
    main()
