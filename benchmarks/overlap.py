"""What a rollout costs: its wall time with VLAC over the same rollout without a critic, by the number of GPUs.

8 ranks of 8 episodes, 64 chunks each (LIBERO's 512 steps): a policy step takes 200 ms, the simulators of a rank
150 ms a chunk. The critic is VLAC's own code on a model that sleeps for as long as VLAC would compute on a GPU
(benchmarks/timed_vlac.py, vlac_queue/costs.py), in as many workers as there would be GPUs: on torch without
reference frames, and with 9 of them on vLLM, which computes prompts that begin alike once. Frames are recorded
ones, 256x256x3, made different for each episode and chunk, since vision is spared a frame that it knows. No
episode is ever done, so that after the last chunk all 64 want a value list at once: the most that a rollout asks.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty
from typing import Any

import click
import numpy as np

from benchmarks.critics import MARKS
from benchmarks.figures import interleaved, quantile
from benchmarks.processes import wait_for_workers, worker
from benchmarks.timed_vlac import total_work
from benchmarks.workloads import stamped
from verl_adapter.environments import Chunk
from verl_adapter.watch import RolloutWatch
from vlac_queue import CriticClient, Pending, VlacConfig
from vlac_queue.commands.demo.rollouts import load_rollouts
from vlac_queue.errors import VlacQueueError
from vlac_queue.frames import Frames
from vlac_queue.server import RedisServer
from vlac_queue.signals import ENDING

RANKS, EPISODES = 8, 8
POLICY_S, SIMULATOR_S = 0.200, 0.150
#: Environment steps in a chunk.
CHUNK = 8
TASK = "open the drawer"
#: Settings of the workers: those that docs/vlac.md gives for such a GPU.
SETTINGS = {
    "VLAC_CRITIC": "benchmarks.timed_vlac:TimedVlac",
    "VLAC_MAX_BATCH": "32",
    "VLAC_MAX_IMAGES": "128",
    "VLAC_ENGINE_ARGS": '{"max_num_batched_tokens": 131072}',
}
#: Seconds that a query may take: value lists of all ranks wait for one another.
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Case:
    """How a rollout is judged: by so many workers, with or without reference frames, while it goes on or not."""

    workers: int
    references: bool
    overlap: bool

    def __str__(self) -> str:
        references = ", 9 references" if self.references else ""
        return f"{self.workers} workers{references}, {'overlapped' if self.overlap else 'blocking'}"


#: By their names in the table.
CASES: Mapping[str, Case | None] = {"no critic": None} | {
    str(case): case
    for case in (Case(*each) for each in [(w, r, o) for r in (False, True) for w in (2, 3) for o in (True, False)])
}


@dataclass(frozen=True)
class Wall:
    """One rollout of all ranks.

    Attributes:
        seconds: until the slowest rank was through.
        after_s: of those, after its last chunk.
        vision: images through vision over frames pushed.
        call_images: images whose tokens went through the language model in a call.
        busy: part of the time that the critics' GPUs worked, 0..1.
        wait_p50_s, wait_p95_s: from asking whether an episode is done until the answer was there.
    """

    seconds: float
    after_s: float
    vision: float = 0.0
    call_images: float = 0.0
    busy: float = 0.0
    wait_p50_s: float = 0.0
    wait_p95_s: float = 0.0


class NoCritic:
    """What a rank tells of its episodes, and when; here nobody listens."""

    def seen(self, step: int, frames: list[Frames]) -> None:
        """After the simulators; before the policy."""

    def acted(self) -> None:
        """After the policy."""

    def ended(self) -> None:
        """After the last chunk."""

    def waits(self) -> list[float]:
        """Return the seconds that the answer to each done query took."""
        return []


class ThroughQueue(NoCritic):
    """As `verl_adapter.rollout` does it."""

    def __init__(self, url: str, overlap: bool, reference: str | None) -> None:
        config = VlacConfig(redis_url=url, overlap=overlap, reference=reference, timeout_s=_TIMEOUT_S)
        self._client = _NotingClient(config)
        self._watch = RolloutWatch(self._client)

    def seen(self, step: int, frames: list[Frames]) -> None:
        for index, frame in enumerate(frames):
            self._watch.see(Chunk(f"{index}", step, frame[None]))
        self._watch.advance([TASK] * EPISODES)

    def acted(self) -> None:
        assert not self._watch.over()

    def ended(self) -> None:
        endings = self._watch.settle()
        assert not any(ending.done or ending.masked for ending in endings)
        self._watch.close()

    def waits(self) -> list[float]:
        return [pending.answer_s for pending in self._client.asked]


class _NotingClient(CriticClient):
    """Keeps its done queries."""

    def __init__(self, config: VlacConfig) -> None:
        super().__init__(config)
        self.asked: list[Pending[Any]] = []

    def observe_each(self, pairs: Iterable[Any]) -> list[Any]:
        results = super().observe_each(pairs)
        self.asked += [each for each in results if not isinstance(each, VlacQueueError)]
        return results


def rank(make: Callable[[], NoCritic], number: int, chunks: int, start: Any, walls: Any) -> None:
    """Play one rank's rollout; put its seconds, those after the last chunk and its waits on the queue `walls`."""
    runs = [rollout.frames for rollout in load_rollouts()][:EPISODES]
    service = make()

    def frames(chunk: int) -> list[Frames]:
        return [stamped(run[chunk % len(run)], number, episode, chunk) for episode, run in enumerate(runs)]

    start.wait()
    started = time.perf_counter()
    service.seen(0, frames(0))
    for chunk in range(1, chunks + 1):
        time.sleep(POLICY_S)
        service.acted()
        time.sleep(SIMULATOR_S)
        service.seen(chunk * CHUNK, frames(chunk))
    last = time.perf_counter()
    service.ended()
    walls.put((time.perf_counter() - started, time.perf_counter() - last, service.waits()))


def play(case: Case | None, chunks: int) -> Wall:
    """Play a rollout with a Redis and workers of its own."""
    if case is None:
        seconds, after_s, _ = _ranks(NoCritic, chunks)
        return Wall(seconds, after_s)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vlac-bench-")))
        work = folder / "work"
        work.mkdir()
        url = stack.enter_context(RedisServer()).url
        settings = SETTINGS | {"VLAC_ENGINE": "vllm" if case.references else "pt", MARKS: str(work)}
        for _ in range(case.workers):
            stack.enter_context(worker(url, **settings))
        with CriticClient(VlacConfig(redis_url=url)) as client:
            wait_for_workers(client, case.workers)
        reference = None
        if case.references:
            reference = str(folder / "reference.npy")
            np.save(reference, load_rollouts("reference")[-1].frames)
        seconds, after_s, waits = _ranks(partial(ThroughQueue, url, case.overlap, reference), chunks)
        done = total_work(work)
    return Wall(
        seconds,
        after_s,
        vision=done.vision / (RANKS * EPISODES * (chunks + 1)),
        call_images=done.language / done.calls,
        busy=done.seconds / (case.workers * seconds),
        wait_p50_s=quantile(waits, 0.5),
        wait_p95_s=quantile(waits, 0.95),
    )


def _ranks(make: Callable[[], NoCritic], chunks: int) -> tuple[float, float, list[float]]:
    """Play all ranks; return the slowest one's seconds, those of them after its last chunk, and all waits."""
    context = multiprocessing.get_context("spawn")
    start, walls = context.Barrier(RANKS), context.Queue()
    ranks = [context.Process(target=rank, args=(make, number, chunks, start, walls)) for number in range(RANKS)]
    try:
        # They inherit what is blocked: Ctrl-C reaches this process alone, which then ends them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            for each in ranks:
                each.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        played = [_next(walls, ranks) for _ in ranks]
    finally:
        for each in multiprocessing.active_children():
            each.kill()
            each.join()
    seconds, after_s, _ = max(played)
    return seconds, after_s, [wait for _, _, waits in played for wait in waits]


def _next(walls: Any, ranks: Sequence[BaseProcess]) -> Any:
    """Return what the next rank to be through has put on the queue.

    Raises:
        ClickException: a rank failed.
    """
    while True:
        with suppress(Empty):
            return walls.get(timeout=1.0)
        if any(each.exitcode for each in ranks):
            raise click.ClickException("a rank of the rollout failed; what it said is above.")


def measure(chunks: int, rounds: int, chosen: Collection[str] = ()) -> dict[str, list[Wall]]:
    """Measure rollouts of `chunks` chunks without a critic, and in the cases of `chosen` names, or all."""
    rows = {
        name: partial(play, case, chunks)
        for name, case in CASES.items()
        if case is None or not chosen or name in chosen
    }
    return interleaved("overlap", rows, rounds)
