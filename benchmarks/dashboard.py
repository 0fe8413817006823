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
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import psutil
import redis
from rich.console import Console
from rich.table import Table

from benchmarks.peers import Asker, ours
from benchmarks.processes import machine
from benchmarks.workloads import simulator
from dashboards.reading import Reader
from vlac_queue.config import VlacConfig
from vlac_queue.keys import LIMIT_FIELD, TOTAL_FIELD, Keys
from vlac_queue.metrics import PHASES, Histogram
from vlac_queue.server import RedisServer

_KEYS = Keys("vlac")
#: Episodes that ask at once.
_AT_ONCE = 64
_JOBS, _FAILED, _EPISODES = 10_000, 100_000, 1_000
#: Seconds until the dashboard has started and its charts move.
_WARM_UP_S = 5.0


def fill(connection: redis.Redis, workers: int) -> None:
    """A queue that is in trouble."""
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
    """`workers` workers that say each second what real ones do."""
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


def _described(number: int, second: int, histograms: dict[str, Histogram]) -> dict[str, Any]:
    return {
        "host": f"gpu-{number:03d}", "pid": 4242, "protocol": 2, "critic": "vlac", "model": "/models/VLAC",
        "prompt": "3fa9c1", "engine": "pt", "device": "cuda:0", "state": "busy", "parent": "",
        "uptime_s": 100 + second, "max_batch": 16, "loads": 1, "jobs": 4 * second, "rejected_jobs": 0,
        "queries": 40 * second, "failures": second // 10, "batches": 3 * second, "busy_s": 0.9 * second,
        "rss_bytes": 3 << 30, "accelerator_bytes": 6 << 30, "accelerator_limit_bytes": 12 << 30,
        "last_error": "ValueError: no", "last_error_at": time.time(), "time": time.time(),
        **{f"latency_{phase}": histogram.encode() for phase, histogram in histograms.items()},
    }  # fmt: skip


def cost_of_looks(url: str, looks: int) -> dict[str, float]:
    """Round trips, commands and bytes of a look, by Redis' own count."""
    trips = []
    execute = redis.client.Pipeline.execute

    def counted(self: Any, *arguments: Any) -> Any:
        trips.append(1)
        return execute(self, *arguments)

    reader = Reader(VlacConfig(redis_url=url))
    reader.look(episodes=0)
    with redis.Redis.from_url(url) as connection:
        connection.config_resetstat()
        redis.client.Pipeline.execute = counted  # type: ignore[method-assign]
        try:
            for _ in range(looks):
                assert reader.look(episodes=0).snapshot is not None
        finally:
            redis.client.Pipeline.execute = execute  # type: ignore[method-assign]
        info: Any = connection.info("stats")
        commands: Any = connection.info("commandstats")
    busy_us = sum(stat["usec"] for name, stat in commands.items() if not name.startswith("cmdstat_config"))
    return {
        "round_trips": len(trips) / looks,
        "commands": (info["total_commands_processed"] - 1) / looks,
        "sent_bytes": info["total_net_input_bytes"] / looks,
        "read_bytes": info["total_net_output_bytes"] / looks,
        "redis_ms": busy_us / 1000 / looks,
    }


def own_cpu(url: str, seconds: float, width: int, height: int, key: str = "") -> float:
    """Part of a core that the dashboard takes in a terminal of this size, over `seconds` seconds.

    Args:
        key: pressed at first.
    """
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    variables = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES"):
        variables.pop(name, None)
    command = [sys.executable, "-m", "dashboards.live", "--redis-url", url]
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, env=variables, start_new_session=True
    )
    os.close(side)
    try:
        os.write(main, key.encode())
        watched = psutil.Process(process.pid)
        _read_for(main, _WARM_UP_S)
        started, before = time.monotonic(), watched.cpu_times()
        drawn = _read_for(main, seconds)
        elapsed_s, after = time.monotonic() - started, watched.cpu_times()
        assert process.poll() is None and drawn > seconds, "the dashboard drew nothing"
        return (after.user + after.system - before.user - before.system) / elapsed_s
    finally:
        process.terminate()
        process.wait()
        os.close(main)


def _read_for(terminal: int, seconds: float) -> int:
    """Reads what is drawn, as a terminal does; how many bytes."""
    end, count = time.monotonic() + seconds, 0
    while (left_s := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left_s)[0]:
            count += len(os.read(terminal, 65536))
    return count


@contextmanager
def looking(url: str) -> Iterator[psutil.Process]:
    """The dashboard, looking once a second."""
    command = [sys.executable, "-m", "dashboards.live", "--redis-url", url, "--record", "-"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def cost_on_the_queue(rounds: int, steps: int) -> dict[str, list[dict[str, float]]]:
    """What the queue does in each round while the dashboard stands still, and while it looks; interleaved.

    Returns:
        "alone" and "watched" -> for each round `queries_per_s`, and `cpu_ms`: CPU time of client, worker and Redis
        for a query, which tells more than the rate where others use the machine too.
    """
    measured: dict[str, list[dict[str, float]]] = {"alone": [], "watched": []}
    with RedisServer() as server, ours.start(server.url, _AT_ONCE) as asker:
        _rate(asker, 3)  # warms up
        me = psutil.Process()
        parts = (me, *me.children(recursive=True))

        def cpu_s() -> float:
            return sum(times.user + times.system for times in (part.cpu_times() for part in parts))

        with looking(server.url) as dashboard:
            for index in range(rounds):
                # By turns, so that neither is always the first.
                for name in ("alone", "watched") if index % 2 else ("watched", "alone"):
                    if name == "alone":
                        dashboard.suspend()
                    else:
                        dashboard.resume()
                    before = cpu_s()
                    rate = _rate(asker, steps)
                    cpu_ms = 1000 * (cpu_s() - before) / (steps * _AT_ONCE)
                    measured[name].append({"queries_per_s": rate, "cpu_ms": cpu_ms})
    return measured


def _rate(asker: Asker, steps: int) -> float:
    started = time.perf_counter()
    for step in range(steps):
        asker.ask(simulator().step(step, _AT_ONCE))
    return steps * _AT_ONCE / (time.perf_counter() - started)


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="Seconds for each figure of the CPU.")
@click.option("--rounds", default=20, show_default=True, help="Rounds with and without; 0 leaves them out.")
@click.option("--steps", default=40, show_default=True, help="Steps of 64 queries in a round.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures to this file too.")
def main(seconds: float, rounds: int, steps: int, json_file: str | None) -> None:
    """Measures the dashboard, and prints a table."""
    console = Console()
    table = Table(title="the dashboard, one refresh a second", caption=machine())
    for column in ("workers", "screen", "page", "own CPU", "round trips", "commands", "KiB read", "Redis ms"):
        table.add_column(column, justify="left" if column in ("screen", "page") else "right")
    figures: dict[str, Any] = {"machine": machine(), "rows": []}
    cases = [(4, 80, 24, ""), (200, 80, 24, ""), (200, 200, 60, ""), (200, 200, 60, "w")]
    for workers, width, height, key in cases:
        with RedisServer() as server, redis.Redis.from_url(server.url) as connection:
            fill(connection, workers)
            with beating(server.url, workers):
                cpu = own_cpu(server.url, seconds, width, height, key)
            # Without the beats, which Redis would count too.
            looks = cost_of_looks(server.url, 20)
        page = {"": "overview", "w": "workers"}[key]
        row = {"workers": workers, "screen": f"{width}x{height}", "page": page, "cpu": cpu, **looks}
        figures["rows"].append(row)
        table.add_row(
            str(workers), row["screen"], page, f"{cpu:.1%}", f"{looks['round_trips']:.0f}",
            f"{looks['commands']:.0f}", f"{looks['read_bytes'] / 1024:,.0f}", f"{looks['redis_ms']:.1f}",
        )  # fmt: skip
    console.print(table)
    console.print(f"{_JOBS:,} queued jobs, {_FAILED:,} failed, {_EPISODES:,} open episodes")
    if rounds:
        figures["queue"] = measured = cost_on_the_queue(rounds, steps)
        middle = {
            name: [statistics.median(each[key] for each in legs) for key in ("queries_per_s", "cpu_ms")]
            for name, legs in measured.items()
        }
        console.print(f"the queue at full speed, medians of {rounds} rounds:")
        for name, (rate, cpu_ms) in middle.items():
            console.print(f"  {name:<8} {rate:,.0f} queries/s, {cpu_ms:.3f} ms of CPU a query")
        console.print(f"  cost     {middle['watched'][1] / middle['alone'][1] - 1:+.1%} CPU a query")
    if json_file:
        with open(json_file, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
