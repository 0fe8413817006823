"""`python -m benchmarks.overlap`: wall time of a rollout with the critic over the same rollout without it.

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
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.figures import ratio
from benchmarks.peers import PEERS
from benchmarks.peers.http_service import body_of, wait_for_port
from benchmarks.processes import machine, process, wait_for_workers, worker
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
            assert self._post("/done", body_of(frames)) == [False] * EPISODES

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


def wall(make: Callable[..., Service], arguments: list[dict[str, Any]], chunks: int) -> tuple[float, float]:
    """Seconds until the slowest rank is through, and those of them after its last chunk.

    Args:
        make: makes the ranks' service.
        arguments: its arguments for each rank.
        chunks: action chunks of an episode.
    """
    context = multiprocessing.get_context("spawn")
    start, walls = context.Barrier(RANKS), context.Queue()
    ranks = [context.Process(target=rank, args=(make, given, chunks, start, walls)) for given in arguments]
    for each in ranks:
        each.start()
    slowest: tuple[float, float] = max(walls.get(timeout=600) for _ in ranks)
    for each in ranks:
        each.join()
    return slowest


#: Seconds until a rollout is through, and those of them after its last chunk.
Wall = tuple[float, float]


def measure(*, chunks: int, rounds: int, http: bool, advance: Callable[[], None]) -> dict[str, list[Wall]]:
    """Every row once a round: what else the machine does falls on all alike.

    Args:
        chunks: action chunks of an episode.
        rounds: how many rounds.
        http: whether to measure the HTTP service too, which needs FastAPI.
        advance: called after each measurement.
    """
    ways: dict[str, tuple[Callable[..., Service], list[dict[str, Any]]]] = {"no critic": (Nobody, [{}] * RANKS)}
    measured: dict[str, list[Wall]] = {}
    with ExitStack() as stack:
        url = stack.enter_context(RedisServer()).url
        settings = {"VLAC_CRITIC": "benchmarks.critics:RolloutCritic", "VLAC_MAX_BATCH": str(BATCH)}
        for _ in range(WORKERS):
            stack.enter_context(worker(url, "vlac", "workers.CriticWorker", settings))
        for name, overlap in (("overlapped", True), ("blocking", False)):
            ways[name] = ThroughQueue, [{"url": url, "overlap": overlap}] * RANKS
        if http:
            ports = [free_port() for _ in range(WORKERS)]
            for port in ports:
                arguments = [str(port), "--most", str(BATCH), "--batch-seconds", str(CRITIC_S)]
                stack.enter_context(process(["-m", "benchmarks.peers.http_app", *arguments]))
                wait_for_port(port)
            given = [{"port": ports[index % WORKERS]} for index in range(RANKS)]
            ways["HTTP, synchronous"] = OverHttp, given
        with CriticClient(VlacConfig(redis_url=url)) as client:
            wait_for_workers(client, WORKERS)
        for _ in range(rounds):
            for name, (make, each) in ways.items():
                measured.setdefault(name, []).append(wall(make, each, chunks))
                advance()
    return measured


def table(measured: Mapping[str, Sequence[Wall]], chunks: int) -> Table:
    """Wall times, and how they compare with no critic."""
    made = Table(
        title=f"{RANKS} ranks x {EPISODES} episodes x {chunks} chunks: policy {POLICY_S * 1000:.0f} ms, "
        f"simulators {SIMULATOR_S * 1000:.0f} ms, critic {CRITIC_S * 1000:.0f} ms a batch, {WORKERS} workers",
    )
    for column in ("", "seconds", "over no critic", "of them for values"):
        made.add_column(column, justify="right" if column else "left")
    for name, walls in measured.items():
        whole, after = sorted(walls)[len(walls) // 2]
        over = ratio([each for each, _ in walls], [each for each, _ in measured["no critic"]])
        made.add_row(name, f"{whole:.2f}", f"{over.median:.3f}", f"{after:.2f}")
    return made


@click.command()
@click.option("--chunks", default=64, show_default=True, help="Action chunks of an episode.")
@click.option("--rounds", default=1, show_default=True, help="Times that every row is measured.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures to this file too.")
def main(chunks: int, rounds: int, json_file: str | None) -> None:
    """Measures rollouts, and prints a table of ratios."""
    http = PEERS["fastapi"].versions() is not None
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rollouts", total=rounds * (4 if http else 3))
        measured = measure(chunks=chunks, rounds=rounds, http=http, advance=lambda: progress.advance(task))
    Console().print(table(measured, chunks), machine())
    if json_file:
        with open(json_file, "w") as file:
            json.dump({"machine": machine(), "chunks": chunks, "seconds": measured}, file, indent=2)


if __name__ == "__main__":
    main()
