"""What commands that ask the critic share: how many questions are open at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import click

Item = TypeVar("Item")

#: Most questions that wait for an answer at a time: enough for several workers' batches, little on Redis.
MAX_OPEN = 64

timeout_option = click.option(
    "--timeout", type=float, help="Seconds to wait for an answer.  [default: VLAC_TIMEOUT_S, or 120]"
)


def keep_open(items: Iterable[Item], ready: Callable[[Item], bool] = lambda item: False) -> Iterator[Item]:
    """Yield `items` in order, each once it is ready, MAX_OPEN of them are out, or all are."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        while waiting and (len(waiting) >= MAX_OPEN or ready(waiting[0])):
            yield waiting.popleft()
    yield from waiting
