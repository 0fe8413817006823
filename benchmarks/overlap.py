"""Wall time of a rollout with the critic over the same rollout without it.

8 ranks of 8 episodes, 64 chunks each (LIBERO's 512 steps): a policy step takes 200 ms, the simulators of a rank
150 ms a chunk, the critic 60 ms a batch of up to 16; all of these sleep. Two workers serve all ranks. Frames are
recorded ones, 256x256x3. No episode is ever done, so that after the last chunk all 64 want a value list at once,
and the workers decode each of their frames: on few cores that, not the waiting, is most of what remains. The HTTP
service keeps no frames, and is spared it; its row is there where FastAPI is installed (`make bench-peers`).
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from rich.table import Table

from benchmarks.figures import interleaved, ratio
from benchmarks.peers import PEERS
from benchmarks.peers.bodies import body_of
from benchmarks.processes import module, wait_for_port, wait_for_workers, worker
from benchmarks.report import table as report_table
from verl_adapter.environments import Chunk
from verl_adapter.watch import RolloutWatch
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.commands.demo.rollouts import load_rollouts
from vlac_queue.frames import Frames
from vlac_queue.server import RedisServer, free_port

RANKS, EPISODES, WORKERS = 8, 8, 2
POLICY_S, SIMULATOR_S = 0.200, 0.150
#: Of benchmarks.critics:RolloutCritic, a batch of up to 16.
CRITIC_S, BATCH = 0.060, 16
#: Environment steps in a chunk.
CHUNK = 8
#: Seconds until a rollout is through, and those of them after its last chunk.
Wall = tuple[float, float]


class NoCritic:
    """What a rank tells of its episodes, and when; here nobody listens."""

    def seen(self, step: int, frames: list[Frames]) -> None:
        """After the simulators; before the policy."""

    def acted(self) -> None:
        """After the policy."""

    def ended(self) -> None:
        """After the last chunk."""


class ThroughQueue(NoCritic):
    """As `verl_adapter.rollout` does it."""

    def __init__(self, url: str, overlap: bool) -> None:
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


class OverHttp(NoCritic):
    """Posts the frames of all its episodes, and waits for the answers."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def seen(self, step: int, frames: list[Frames]) -> None:
        if step:
            assert self._post("/done", body_of(frames)) == [False] * EPISODES

    def ended(self) -> None:
        assert len(self._post(f"/value/{EPISODES}", b"")) == EPISODES

    def _post(self, path: str, body: bytes) -> list[Any]:
        self._connection.request("POST", path, body)
        answers: list[Any] = json.loads(self._connection.getresponse().read())
        return answers


def rank(make: Callable[[], NoCritic], chunks: int, start: Any, walls: Any) -> None:
    """Play one rank's rollout, and put its Wall on the queue `walls`."""
    rollouts = [rollout.frames for rollout in load_rollouts()][:EPISODES]
    service = make()
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


def wall(services: Sequence[Callable[[], NoCritic]], chunks: int) -> Wall:
    """Play a rollout with one of `services` for each rank; return the slowest rank's times."""
    context = multiprocessing.get_context("spawn")
    start, walls = context.Barrier(RANKS), context.Queue()
    ranks = [context.Process(target=rank, args=(make, chunks, start, walls)) for make in services]
    for each in ranks:
        each.start()
    slowest: Wall = max(walls.get(timeout=600) for _ in ranks)
    for each in ranks:
        each.join()
    return slowest


def measure(chunks: int, rounds: int) -> dict[str, list[Wall]]:
    """Measure rollouts of `chunks` chunks; over HTTP too where FastAPI is installed."""
    ways: dict[str, list[Callable[[], NoCritic]]] = {"no critic": [NoCritic] * RANKS}
    with ExitStack() as stack:
        url = stack.enter_context(RedisServer()).url
        settings = {"VLAC_CRITIC": "benchmarks.critics:RolloutCritic", "VLAC_MAX_BATCH": str(BATCH)}
        for _ in range(WORKERS):
            stack.enter_context(worker(url, **settings))
        for name, overlap in (("overlapped", True), ("blocking", False)):
            ways[name] = [partial(ThroughQueue, url, overlap)] * RANKS
        if PEERS["fastapi"].versions():
            ports = [free_port() for _ in range(WORKERS)]
            for port in ports:
                arguments = (port, "--most", BATCH, "--batch-seconds", CRITIC_S)
                stack.enter_context(module("benchmarks.peers.http_app", *arguments))
                wait_for_port(port)
            ways["HTTP, synchronous"] = [partial(OverHttp, ports[index % WORKERS]) for index in range(RANKS)]
        with CriticClient(VlacConfig(redis_url=url)) as client:
            wait_for_workers(client, WORKERS)
        rows = {name: partial(wall, services, chunks) for name, services in ways.items()}
        return interleaved("overlap", rows, rounds)


def table(measured: Mapping[str, Sequence[Wall]], chunks: int) -> Table:
    """Return wall times, and how they compare with no critic."""
    bare = [whole for whole, _ in measured["no critic"]]
    rows = []
    for name, walls in measured.items():
        whole, after = sorted(walls)[len(walls) // 2]
        over = ratio([each for each, _ in walls], bare).median
        rows.append([name, f"{whole:.2f}", f"{over:.3f}", f"{after:.2f}"])
    title = (
        f"{RANKS} ranks x {EPISODES} episodes x {chunks} chunks: policy {POLICY_S * 1000:.0f} ms, "
        f"simulators {SIMULATOR_S * 1000:.0f} ms, critic {CRITIC_S * 1000:.0f} ms a batch, {WORKERS} workers"
    )
    return report_table(title, ("", "seconds", "over no critic", "of them for values"), rows)
