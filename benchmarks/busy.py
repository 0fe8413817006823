"""`python -m benchmarks.busy`: how much of the time the critic works while its queue is full.

The critic takes 50 ms a batch. Whatever its thread waits for Redis, decoding or other threads shows as idle.
"""

from __future__ import annotations

import json
import time
from collections import deque

import click
import redis
from rich.console import Console

from benchmarks.queue import machine, step_frames, wait_for_worker, worker
from vlac_queue.client import CriticClient
from vlac_queue.config import VlacConfig
from vlac_queue.keys import Keys
from vlac_queue.server import RedisServer

_BATCH = 16
#: Batches asked and not answered: one at the critic, one waiting in the worker, the others on the queue.
_GROUPS = 6


@click.command()
@click.option("--seconds", default=20.0, show_default=True, help="Time to measure.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures to this file too.")
def main(seconds: float, json_file: str | None) -> None:
    """Measures the critic's busy fraction with an always-full queue."""
    environ = {"VLAC_CRITIC": "benchmarks.critics:Steady50Critic", "VLAC_MAX_BATCH": str(_BATCH)}
    with (
        RedisServer() as server,
        worker(server.url, "vlac", "workers.CriticWorker", **environ),
        CriticClient(VlacConfig(redis_url=server.url, max_batch=_BATCH)) as client,
        redis.Redis.from_url(server.url) as connection,
    ):
        wait_for_worker(client)
        groups = deque([client.episode("task") for _ in range(_BATCH)] for _ in range(_GROUPS))
        open_questions = deque()
        started, first, last, step = time.monotonic(), None, None, 0
        while time.monotonic() - started < seconds + 3:
            if len(open_questions) == _GROUPS:
                client.wait(open_questions.popleft())
            group = groups[0]
            groups.rotate(-1)
            frames = step_frames(step // _GROUPS)[:_BATCH]
            client.push_many(list(zip(group, frames, strict=True)))
            open_questions.append(client.ask_done_many(group))
            step += 1
            (name,) = client.ping()
            said = connection.hgetall(Keys("vlac").worker(name))
            if said and time.monotonic() - started > 2:
                last = {key.decode(): value.decode() for key, value in said.items()}  # type: ignore[union-attr]
                first = first or last
        while open_questions:
            client.wait(open_questions.popleft())
    assert first is not None and last is not None
    change = {key: float(last[key]) - float(first[key]) for key in ("busy_s", "time", "batches", "queries")}
    busy = change["busy_s"] / change["time"]
    console = Console()
    console.print(
        f"critic of 50 ms a batch, always-full queue, {_BATCH} queries of 256x256x3 a batch: busy {busy:.1%} of "
        f"{change['time']:.0f} s ({change['batches']:.0f} batches, "
        f"mean {change['queries'] / change['batches']:.1f}); {machine()}"
    )
    if json_file:
        with open(json_file, "w") as file:
            json.dump({"busy": busy, "machine": machine(), **change}, file, indent=2)


if __name__ == "__main__":
    main()
