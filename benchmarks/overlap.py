"""`python -m benchmarks.overlap`: wall time of a rollout with the critic over the same rollout without it.

8 ranks of 8 episodes, 64 chunks each (LIBERO's 512 steps): a policy step takes 200 ms, the simulators of a rank
150 ms a chunk, the critic 60 ms a batch of up to 16; all of these sleep. Two workers serve all ranks. Frames are
recorded ones, 256x256x3. No episode is ever done, so that after the last chunk all 64 want a value list at once,
and the workers decode each of their frames: on few cores that, not the waiting, is most of what remains. The HTTP
service keeps no frames, and is spared it. Needs `pip install fastapi uvicorn` for the row it is compared with.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.critics import InstantCritic
from benchmarks.http_peer import serve
from benchmarks.queue import wait_for_worker, worker
from verl_adapter.environments import Chunk
from verl_adapter.watch import RolloutWatch
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.demo.rollouts import load_rollouts
from vlac_queue.frames import Frames
from vlac_queue.server import RedisServer, free_port

RANKS, EPISODES, WORKERS = 8, 8, 2
POLICY_S, SIMULATOR_S, CRITIC_S = 0.200, 0.150, 0.060
#: Environment steps in a chunk.
CHUNK = 8


class Steady60Critic(InstantCritic):
    """Takes 60 ms a batch. `VLAC_CRITIC=benchmarks.overlap:Steady60Critic`"""

    batch_s = CRITIC_S


class Service(Protocol):
    """What a rank tells of its episodes, and when."""

    def seen(self, step: int, frames: list[Frames]) -> None:
        """After the simulators; before the policy."""

    def acted(self) -> None:
        """After the policy."""

    def ended(self) -> None:
        """After the last chunk."""


class Nobody:
    """No critic."""

    def seen(self, step: int, frames: list[Frames]) -> None:
        pass

    def acted(self) -> None:
        pass

    def ended(self) -> None:
        pass


class ThroughQueue:
    """As `verl_adapter.rollout` does it."""

    def __init__(self, url: str, *, overlap: bool) -> None:
        self._client = CriticClient(VlacConfig(redis_url=url, overlap=overlap))
        self._watch = RolloutWatch(self._client)

    def seen(self, step: int, frames: list[Frames]) -> None:
        for index, frame in enumerate(frames):
            self._watch.see(Chunk(f"{index}", step, frame[None]))
        self._watch.advance(["open the drawer"] * EPISODES)

    def acted(self) -> None:
        assert not self._watch.over()

    def ended(self) -> None:
        endings = self._watch.settle()
        assert not any(ending.done or ending.masked for ending in endings)
        self._watch.close()


class OverHttp:
    """Posts the frames of all its episodes, and waits for the answers."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def seen(self, step: int, frames: list[Frames]) -> None:
        if step:
            assert self._post("/done", np.stack(frames).tobytes()) == [False] * EPISODES

    def acted(self) -> None:
        pass

    def ended(self) -> None:
        assert len(self._post(f"/value/{EPISODES}", b"")) == EPISODES

    def _post(self, path: str, body: bytes) -> list[Any]:
        self._connection.request("POST", path, body)
        answers: list[Any] = json.loads(self._connection.getresponse().read())
        return answers


def rank(make: Callable[..., Service], arguments: dict[str, Any], chunks: int, start: Any, walls: Any) -> None:
    """One rank's rollout; puts the seconds that it took, and those of them after the last chunk."""
    rollouts = [rollout.frames for rollout in load_rollouts()][:EPISODES]
    service = make(**arguments)
    start.wait()
    started = time.perf_counter()
    service.seen(0, [frames[0] for frames in rollouts])
    for chunk in range(1, chunks + 1):
        time.sleep(POLICY_S)
        service.acted()
        time.sleep(SIMULATOR_S)
        service.seen(chunk * CHUNK, [frames[chunk % len(frames)] for frames in rollouts])
    last = time.perf_counter()
    service.ended()
    walls.put((time.perf_counter() - started, time.perf_counter() - last))


def wall(make: Callable[..., Service], each: list[dict[str, Any]], chunks: int) -> tuple[float, float]:
    """Seconds until the slowest rank is through, and those of them after its last chunk.

    Args:
        make: makes the ranks' service.
        each: its arguments for each rank.
        chunks: action chunks of an episode.
    """
    context = multiprocessing.get_context("spawn")
    start, walls = context.Barrier(RANKS), context.Queue()
    ranks = [context.Process(target=rank, args=(make, given, chunks, start, walls)) for given in each]
    for process in ranks:
        process.start()
    slowest: tuple[float, float] = max(walls.get(timeout=600) for _ in ranks)
    for process in ranks:
        process.join()
    return slowest


def median(measured: list[tuple[float, float]]) -> tuple[float, float]:
    """The round that took the median time."""
    return sorted(measured)[len(measured) // 2]


@click.command()
@click.option("--chunks", default=64, show_default=True, help="Action chunks of an episode.")
@click.option("--rounds", default=1, show_default=True, help="Times that every row is measured.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures to this file too.")
def main(chunks: int, rounds: int, json_file: str | None) -> None:
    """Measures rollouts, and prints a table of ratios."""
    rows = ("no critic", "overlapped", "blocking", "HTTP, synchronous")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    with ExitStack() as stack:
        url = stack.enter_context(RedisServer()).url
        for _ in range(WORKERS):
            critic = "benchmarks.overlap:Steady60Critic"
            stack.enter_context(worker(url, "vlac", "workers.CriticWorker", VLAC_CRITIC=critic))
        ports = [free_port() for _ in range(WORKERS)]
        for port in ports:
            service = multiprocessing.get_context("spawn").Process(target=serve, args=(port, CRITIC_S))
            service.start()
            stack.callback(service.join)
            stack.callback(service.terminate)
        with CriticClient(VlacConfig(redis_url=url)) as client:
            wait_for_worker(client)
            while len(client.ping()) < WORKERS:
                time.sleep(0.05)
        # Interleaved rounds: what else the machine does falls on all alike.
        for _ in range(rounds):
            seconds["no critic"].append(wall(Nobody, [{}] * RANKS, chunks))
            for name, overlap in (("overlapped", True), ("blocking", False)):
                given = [{"url": url, "overlap": overlap}] * RANKS
                seconds[name].append(wall(ThroughQueue, given, chunks))
            given = [{"port": ports[index % WORKERS]} for index in range(RANKS)]
            seconds["HTTP, synchronous"].append(wall(OverHttp, given, chunks))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    table = Table(
        title=f"{RANKS} ranks x {EPISODES} episodes x {chunks} chunks: policy {POLICY_S * 1000:.0f} ms, "
        f"simulators {SIMULATOR_S * 1000:.0f} ms, critic {CRITIC_S * 1000:.0f} ms a batch, {WORKERS} workers",
        caption=f"{machine}; median of {rounds}",
    )
    for column in ("", "seconds", "over no critic", "of them for values"):
        table.add_column(column, justify="right" if column else "left")
    alone, _ = median(seconds["no critic"])
    for name, measured in seconds.items():
        whole, after = median(measured)
        table.add_row(name, f"{whole:.2f}", f"{whole / alone:.3f}", f"{after:.2f}")
    Console().print(table)
    if json_file:
        with open(json_file, "w") as file:
            json.dump({"machine": machine, "chunks": chunks, "seconds": seconds}, file, indent=2)


if __name__ == "__main__":
    main()
