"""The policy's updates, while the critics give their GPU memory back."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from vlac_queue import CriticClient, CriticTimeout, VlacQueueError

_log = logging.getLogger(__name__)


def with_critics_asleep(update: Callable[..., Any], client: CriticClient) -> Callable[..., Any]:
    """Return `update`, with all critics of the client's queue asleep meanwhile and awake again afterwards.

    A query that comes meanwhile (another training on the same queue) wakes its critic, and is answered. The
    critics are awake again however the update ended; here already they are woken, as a training that was killed
    may have left them asleep.

    Raises (the function returned):
        NoWorkers, CriticTimeout: a critic did not give its memory back, so that the update might run out of it.
    """
    _wake(client)

    @functools.wraps(update)
    def asleep(*args: Any, **options: Any) -> Any:
        try:
            client.sleep_workers()
        except CriticTimeout:  # some sleep
            _wake(client)
            raise
        try:
            return update(*args, **options)
        finally:
            _wake(client)

    return asleep


def _wake(client: CriticClient) -> None:
    """Wake the critics, which is done ahead of time: the next query would do it as well."""
    try:
        client.wake_workers()
    except VlacQueueError as error:
        _log.warning("the critics wake with the next query only: %s", error)
