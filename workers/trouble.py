"""What is wrong with Redis, told when it begins, changes and ends instead of at each try."""

from __future__ import annotations

import logging
import math
import time

import redis

from vlac_queue.connection import address
from vlac_queue.credentials import WORKER
from vlac_queue.faults import as_ours, error_code

#: Seconds without it after which an error is a new one, even if nobody said that it was over.
_NEW_S = 120.0


class Trouble:
    """The errors of Redis that one part of a worker meets and lives with.

    Args:
        log: takes the lines.
        worker: the worker's name.
        part: what can't be done, such as "taking jobs".
        connection: names the server in the lines.
    """

    def __init__(self, log: logging.Logger, worker: str, part: str, connection: redis.Redis) -> None:
        self._log = log
        self._where = f"Worker {worker}: {part}"
        self._server = address(connection)
        self._last: tuple[type[Exception], str] | None = None
        self._met_at = -math.inf

    def met(self, error: redis.RedisError) -> None:
        """Log an error, unless it is the last one again."""
        ours = as_ours(error, self._server, WORKER)
        kind, now = (type(ours), error_code(error)), time.monotonic()
        if kind != self._last or now - self._met_at > _NEW_S:
            self._log.error("%s: %s", self._where, ours)
        self._last, self._met_at = kind, now

    def over(self) -> None:
        """Log that it works again, if it did not."""
        if self._last is not None:
            self._last = None
            self._log.info("%s: goes on", self._where)
