"""The policy's updates, while the critics give their GPU memory back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vlac_queue import CriticClient


def with_critics_asleep(update: Callable[..., Any], client: CriticClient) -> Callable[..., Any]:
    """`update`, with all critics of the client's queue asleep meanwhile and awake again afterwards.

    A query that comes meanwhile (another training on the same queue) wakes its critic, and is answered.

    Raises (the function returned):
        NoWorkers, CriticTimeout: a critic did not give its memory back, so that the update might run out of it.
    """

    @functools.wraps(update)
    def asleep(*args: Any, **options: Any) -> Any:
        client.sleep_workers()
        result = update(*args, **options)
        client.wake_workers()
        return result

    return asleep
