"""`python -m benchmarks.queue`: the queue against plain RQ and a bare Redis loop, in one run on one machine.

64 episodes ask at once about 256x256x3 frames of a fixed camera, and wait for all answers before the next
step, as a rollout does. The critic costs nothing: what is measured is the way there and back.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import lz4.frame
import psutil
import redis
import rq
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.peers import consume, look
from vlac_queue.client import CriticClient, Episode
from vlac_queue.config import VlacConfig
from vlac_queue.demo.rollouts import load_rollouts
from vlac_queue.errors import NoWorkers
from vlac_queue.frames import Frames
from vlac_queue.server import RedisServer

EPISODES = 64


def machine() -> str:
    """What the figures were measured on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


@contextmanager
def worker(url: str, queue: str, worker_class: str, **environ: str) -> Iterator[psutil.Process]:
    """A real `rq worker` process on `queue`."""
    command = [sys.executable, "-m", "rq.cli", "worker", queue, "--with-scheduler", "--quiet"]
    variables = {**os.environ, "RQ_REDIS_URL": url, "RQ_WORKER_CLASS": worker_class, **environ}
    process = subprocess.Popen(command, env=variables)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def wait_for_worker(client: CriticClient) -> None:
    """Returns when a worker listens."""
    while True:
        try:
            client.ping()
            return
        except NoWorkers:
            time.sleep(0.05)


def step_frames(step: int) -> list[Frames]:
    """One frame for each episode: its rollout, played over and over."""
    return [ROLLOUTS[i % len(ROLLOUTS)][step % len(ROLLOUTS[i % len(ROLLOUTS)])] for i in range(EPISODES)]


ROLLOUTS = [rollout.frames for rollout in load_rollouts()]


def measure(steps: int, step: Callable[[int], None]) -> float:
    """Queries per second over `steps` steps of all episodes, after two to warm up."""
    for index in range(2):
        step(index)
    started = time.perf_counter()
    for index in range(2, steps + 2):
        step(index)
    return steps * EPISODES / (time.perf_counter() - started)


def plain_rq(url: str, steps: int) -> float:
    """One job a frame, the frame in its arguments, SimpleWorker."""
    with redis.Redis.from_url(url) as connection, worker(url, "plain", "rq.SimpleWorker"):
        queue = rq.Queue("plain", connection=connection)

        def step(index: int) -> None:
            jobs = [queue.enqueue(look, frame, result_ttl=60) for frame in step_frames(index)]
            for job in jobs:
                assert job.latest_result(timeout=60) is not None

        return measure(steps, step)


def bare_loop(url: str, steps: int) -> float:
    """One producer and one consumer over two Redis lists, plain lz4 with checksum."""
    consumer = multiprocessing.get_context("spawn").Process(target=consume, args=(url, 256), daemon=True)
    consumer.start()
    with redis.Redis.from_url(url) as connection:

        def step(index: int) -> None:
            for frame in step_frames(index):
                connection.rpush("bare:frames", lz4.frame.compress(frame.data, content_checksum=True))
            for _ in range(EPISODES):
                connection.blpop(["bare:answers"], timeout=60)

        rate = measure(steps, step)
        connection.rpush("bare:frames", b"")
    consumer.join()
    return rate


def reopen(client: CriticClient, episodes: list[Episode], step: int, length: int = 16) -> None:
    """Opens new episodes every `length` steps, and closes those before them."""
    if step % length == 0:
        client.close_many(episodes)
        episodes[:] = [client.episode("open the drawer") for _ in range(EPISODES)]


def queue_rate(url: str, steps: int, *, together: bool) -> tuple[float, float]:
    """Queries per second, and bytes on the wire over raw, with one job a step or one job a query."""
    with CriticClient(VlacConfig(redis_url=url, max_batch=EPISODES)) as client:
        wait_for_worker(client)
        episodes: list[Episode] = []

        def step(index: int) -> None:
            reopen(client, episodes, index)
            if together:
                client.push_many(list(zip(episodes, step_frames(index), strict=True)))
                pendings = client.ask_done_many(episodes)
            else:
                pendings = []
                for episode, frame in zip(episodes, step_frames(index), strict=True):
                    episode.push(frame)
                    pendings.append(episode.ask_done())
            client.wait(pendings)

        rate = measure(steps, step)
        return rate, client.stats.sent_bytes / client.stats.raw_bytes


def settled_keys(connection: redis.Redis) -> int:
    """Number of keys once all jobs are finished."""
    while connection.keys("rq:job:*"):
        time.sleep(0.05)
    return int(connection.dbsize())  # type: ignore[arg-type]


def memory(url: str, process: psutil.Process, queries: int, progress: Progress) -> dict[str, Any]:
    """Resident memory of client and worker, and Redis' keys, over many queries."""
    task = progress.add_task("memory", total=queries)
    with (
        redis.Redis.from_url(url) as connection,
        CriticClient(VlacConfig(redis_url=url, max_batch=EPISODES)) as client,
    ):
        wait_for_worker(client)
        episodes: list[Episode] = []
        samples: list[tuple[int, int]] = []
        first_keys = 0
        for step in range(queries // EPISODES + 1):
            reopen(client, episodes, step)
            client.push_many(list(zip(episodes, step_frames(step), strict=True)))
            client.wait(client.ask_done_many(episodes))
            progress.advance(task, EPISODES)
            if step == 15:
                client.close_many(episodes)
                first_keys = settled_keys(connection)
            if step % 16 == 15:
                samples.append((psutil.Process().memory_info().rss, process.memory_info().rss))
        client.close_many(episodes)
        last_keys = settled_keys(connection)
    quarter = max(1, len(samples) // 4)
    client_mb, worker_mb = (
        [
            statistics.mean(each[side] for each in part) / 2**20
            for part in (samples[quarter : 2 * quarter], samples[-quarter:])
        ]
        for side in (0, 1)
    )
    return {
        "queries": client.stats.queries,
        "client_rss_mb": [round(each, 1) for each in client_mb],
        "worker_rss_mb": [round(each, 1) for each in worker_mb],
        "redis_keys": [first_keys, last_keys],
    }


@click.command()
@click.option("--steps", default=100, show_default=True, help="Steps of 64 queries for each row.")
@click.option(
    "--memory-queries", default=20_000, show_default=True, help="Queries of the memory row; 0 leaves it out."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures to this file as well."
)
def main(steps: int, memory_queries: int, json_file: str | None) -> None:
    """Measures the queue, and prints a table of ratios."""
    rounds = 3
    rates: dict[str, list[float]] = {"plain RQ": [], "bare loop": [], "one job a step": [], "one job a query": []}
    shares: list[float] = []
    with RedisServer() as server, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rates", total=rounds * 4)
        environ = {"VLAC_CRITIC": "benchmarks.critics:InstantCritic", "VLAC_MAX_BATCH": str(EPISODES)}
        # Interleaved rounds: what else the machine does falls on all alike.
        for _ in range(rounds):
            rates["plain RQ"].append(plain_rq(server.url, max(5, steps // 10)))
            progress.advance(task)
            rates["bare loop"].append(bare_loop(server.url, steps))
            progress.advance(task)
            with worker(server.url, "vlac", "workers.CriticWorker", **environ):
                for name, together in (("one job a step", True), ("one job a query", False)):
                    rate, share = queue_rate(server.url, steps, together=together)
                    rates[name].append(rate)
                    shares.append(share)
                    progress.advance(task)
    held = {}
    if memory_queries:
        # A Redis of its own: what the rows above left there must not be counted.
        with (
            RedisServer() as server,
            Progress(console=Console(stderr=True), transient=True) as progress,
            worker(server.url, "vlac", "workers.CriticWorker", **environ) as process,
        ):
            held = memory(server.url, process, memory_queries, progress)
    best = {name: max(each) for name, each in rates.items()}
    table = Table(title="64 episodes at once, 256x256x3, critic with zero cost", caption=machine())
    for column in ("", "queries/s", "x plain RQ", "x bare loop"):
        table.add_column(column, justify="right" if column else "left")
    for name, rate in best.items():
        label = f"vlac-queue, {name}" if name.startswith("one") else name
        table.add_row(label, f"{rate:,.0f}", f"{rate / best['plain RQ']:.1f}", f"{rate / best['bare loop']:.2f}")
    console = Console()
    console.print(table)
    console.print(f"bytes on the wire: {statistics.mean(shares):.3f} of raw (1/{1 / statistics.mean(shares):.1f})")
    if held:
        console.print(
            f"over {held['queries']:,} queries (2nd quarter -> last): client {held['client_rss_mb']} MB, "
            f"worker {held['worker_rss_mb']} MB, Redis keys {held['redis_keys']}"
        )
    if json_file:
        figures = {"machine": machine(), "queries_per_s": rates, "bytes_share": shares, "memory": held}
        with open(json_file, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
