"""What commands that ask the critic share: options, and how many questions are open at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import click

from vlac_queue.console import Command

Item = TypeVar("Item")

#: Most questions that wait for an answer at a time: enough for several workers' batches, little on Redis.
MAX_OPEN = 64

timeout_option = click.option(
    "--timeout", type=float, help="Seconds to wait for an answer.  [default: VLAC_TIMEOUT_S, or 120]"
)
camera_option = click.option(
    "--camera", help="Camera of a LeRobot dataset: its key, or the end of it, such as top."
)


def _every(option: str, what: str) -> Callable[[Command], Command]:
    return click.option(option, type=click.IntRange(min=1), default=1, show_default=True, help=what)


stride_option = _every("--stride", "Ask about every N-th frame, and the last.")
reference_stride_option = _every("--reference-stride", "Take every N-th frame of a reference, and its last.")


def keep_open(items: Iterable[Item], ready: Callable[[Item], bool] = lambda item: False) -> Iterator[Item]:
    """Yield `items` in order, each once it is ready, MAX_OPEN of them are out, or all are."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        while waiting and (len(waiting) >= MAX_OPEN or ready(waiting[0])):
            yield waiting.popleft()
    yield from waiting
