"""A queue that is always full: what shows how busy workers are kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence

from benchmarks.peers.ours import ask_together
from benchmarks.workloads import EPISODE_STEPS, simulator
from vlac_queue.client import CriticClient, Episode, Pending
from vlac_queue.messages import DoneVerdict

_TASK = "open the drawer"


def full_queue(
    client: CriticClient,
    *,
    batch: int,
    open_batches: int,
    wait: Callable[[Sequence[Pending[DoneVerdict]]], None] | None = None,
) -> Generator[float, None, None]:
    """Keeps `open_batches` batches of `batch` queries asked and not answered, for as long as it is iterated.

    Use it with `contextlib.closing`: what is still out then is waited for.

    Yields:
        The time, in seconds of the monotonic clock, when the oldest of them was answered and all others wait.
    """
    wait = wait or client.wait
    groups = deque(_open(client, batch) for _ in range(open_batches))
    asked: deque[Sequence[Pending[DoneVerdict]]] = deque()
    step = 0
    try:
        while True:
            if len(asked) == open_batches:
                wait(asked.popleft())
                yield time.monotonic()
            if groups[0][0].frames == EPISODE_STEPS:
                client.close_many(groups[0])
                groups[0] = _open(client, batch)
            asked.append(ask_together(client, groups[0], simulator().step(step, batch)))
            groups.rotate(-1)
            step += 1
    finally:
        for pendings in asked:
            wait(pendings)
        client.close_many([episode for group in groups for episode in group])


def _open(client: CriticClient, count: int) -> list[Episode]:
    return [client.episode(_TASK) for _ in range(count)]
