"""A queue that is always full: what shows how busy workers are kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence

from benchmarks.peers.ours import TASK
from benchmarks.workloads import EPISODE_STEPS, simulator, stamped
from vlac_queue.client import CriticClient, Pending
from vlac_queue.messages import DoneVerdict

Wait = Callable[[Sequence[Pending[DoneVerdict]]], object]


def full_queue(
    client: CriticClient, *, batch: int, open_batches: int, wait: Wait | None = None
) -> Generator[float, None, None]:
    """Keep `open_batches` batches of `batch` queries asked and not answered, for as long as it is iterated.

    Use it with `contextlib.closing`: what is still out then is waited for.

    Yields:
        The time, in seconds of the monotonic clock, when the oldest of them was answered and all others wait.
    """
    wait = wait or client.wait
    tasks = [TASK] * batch
    groups = deque(client.episodes(tasks) for _ in range(open_batches))
    asked: deque[Sequence[Pending[DoneVerdict]]] = deque()
    step = 0
    try:
        while True:
            if len(asked) == open_batches:
                wait(asked.popleft())
                yield time.monotonic()
            if groups[0][0].frames == EPISODE_STEPS:
                client.close_many(groups[0])
                groups[0] = client.episodes(tasks)
            frames = [stamped(frame, step, i) for i, frame in enumerate(simulator().step(step, batch))]
            asked.append(client.observe_many(zip(groups[0], frames, strict=True)))
            groups.rotate(-1)
            step += 1
    finally:
        for pendings in asked:
            wait(pendings)
        client.close_many([episode for group in groups for episode in group])
