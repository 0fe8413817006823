"""vlac-queue: all episodes of a step in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.peers import Asker
from benchmarks.processes import wait_for_workers, worker
from benchmarks.workloads import EPISODE_STEPS
from vlac_queue.client import CriticClient, Episode
from vlac_queue.config import VlacConfig
from vlac_queue.frames import Frames

TASK = "open the drawer"
#: Bytes that the open episodes may hold on Redis before new ones are opened.
_MOST_BYTES = 1 << 30


@contextmanager
def start(url: str, episodes: int) -> Iterator[Asker]:
    """Start one CriticWorker; new episodes every EPISODE_STEPS steps, as a rollout opens them."""
    environ = {"VLAC_CRITIC": "benchmarks.critics:InstantCritic", "VLAC_MAX_BATCH": "64"}
    with (
        worker(url, **environ),
        CriticClient(VlacConfig(redis_url=url, max_batch=64)) as client,
    ):
        wait_for_workers(client)
        opened: list[Episode] = []
        steps = sent = 0

        def ask(frames: Sequence[Frames]) -> list[bool]:
            nonlocal steps, sent
            full = client.stats.sent_bytes - sent > _MOST_BYTES
            if len(frames) > len(opened) or steps == EPISODE_STEPS or full:
                client.close_many(opened)
                opened[:] = client.episodes([TASK] * len(frames))
                steps, sent = 0, client.stats.sent_bytes
            steps += 1
            pendings = client.observe_many(zip(opened[: len(frames)], frames, strict=True))
            client.wait(pendings)
            return [pending.verdict().done for pending in pendings]

        yield Asker(ask)
