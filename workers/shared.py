"""What the threads of one worker share."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field

import redis

from vlac_queue.config import VlacConfig
from vlac_queue.connection import RedisClock
from vlac_queue.keys import Keys
from workers.batcher import Batcher
from workers.flow import Prepared
from workers.log import LOG
from workers.open_jobs import OpenJobs
from workers.stats import WorkerStats
from workers.trouble import Trouble


@dataclass(eq=False)
class Shared:
    """One worker's name, settings and connection, and what passes between its threads.

    Attributes:
        name: the worker's.
        config: its settings.
        connection: to Redis.
        keys: of its queue.
        clock: Redis' clock.
        stats: what it counts.
        jobs: the jobs at work.
        batcher: queries on their way to the critic.
        stopping: set once no more jobs are to be taken. A signal's handler sets it, so the main thread never waits
            for it: it would wait for itself.
        over: set once the beats may end.
        others: how many other critic workers serve the queue.
        alone: whether a job is tried alone, and nothing else to be at work.
        fatal: what ends the worker, if anything does.
    """

    name: str
    config: VlacConfig
    connection: redis.Redis
    stats: WorkerStats = field(default_factory=WorkerStats)
    jobs: OpenJobs = field(default_factory=OpenJobs)
    stopping: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    others: int = 0
    alone: bool = False
    fatal: BaseException | None = None

    def __post_init__(self) -> None:
        #: Tells this process from another one of the same worker's name.
        self.life = uuid.uuid4().hex[:12]
        self.keys = Keys(self.config.queue)
        self.clock = RedisClock(self.connection)
        self.batcher: Batcher[Prepared] = Batcher(self.config.max_batch, self.config.max_wait_ms / 1000)

    @property
    def ends(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.stopping.is_set() or self.fatal is not None

    def stop(self) -> None:
        """Have no more jobs taken, and the critic's thread end after the batch at hand."""
        self.batcher.close()
        self.stopping.set()

    def fail(self, error: BaseException, what: str) -> None:
        """Have the worker end with the first error that it can't live with; to be called where it is handled."""
        self.fatal = self.fatal or error
        LOG.exception("Worker %s: %s", self.name, what)

    def trouble(self, part: str) -> Trouble:
        """Return what tells of Redis' errors in one part of the worker, such as "taking jobs"."""
        return Trouble(LOG, self.name, part, self.connection)
