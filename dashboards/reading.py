"""Looks at a queue again and again: what Redis holds, and what that and the looks before tell."""

from __future__ import annotations

import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dashboards.history import History
from dashboards.snapshot import Look
from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.connection import connect
from vlac_queue.credentials import DASHBOARD
from vlac_queue.faults import as_ours
from vlac_queue.keys import Keys
from vlac_queue.reading import EPISODES_SHOWN, QueueReader
from vlac_queue.texts import clean

#: Seconds until a silent Redis counts as away; shorter than elsewhere, since somebody looks at the screen.
_TIMEOUT_S = 2.0
#: Most open episodes that are told one by one in recordings, for their size.
EPISODES_RECORDED = 20


class Reader(QueueReader):
    """Looks at one queue again and again.

    Raises:
        ConfigError: the URL can't be parsed.
    """

    def __init__(self, config: VlacConfig) -> None:
        self.url = redact_url(config.redis_url)
        self._history = History()
        self._seen = 0.0
        # One more try right away: the server closes idle connections, and they all break with a restart.
        connection = connect(
            config.redis_url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),
        )
        super().__init__(connection, Keys(config.queue))

    def look(self, *, episodes: int = EPISODES_SHOWN) -> Look:
        """The queue now; a failure is part of the look.

        Args:
            episodes: most open episodes that are read one by one.
        """
        snapshot, error = None, ""
        try:
            reading = self.read(episodes=episodes)
            if reading.time < self._seen - 1:  # another server, or its clock was set back
                self._history = History()
            self._seen = reading.time
            snapshot = self._history.add(reading)
        except redis.exceptions.RedisError as failure:
            error = clean(as_ours(failure, self.url, DASHBOARD), 2000)
        return Look(time.time(), snapshot, error)
