"""What Redis holds of a queue at one moment, as `vlac_queue.reading` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vlac_queue.control import WorkerInfo


@dataclass(frozen=True)
class RedisState:
    """The server.

    Attributes:
        version: such as "7.2.4".
        used_bytes: memory in use.
        max_bytes: its limit (maxmemory); 0 is none.
        policy: maxmemory-policy, what it does at the limit; anything but noeviction may lose frames.
        clients: connected clients, this one among them.
    """

    version: str
    used_bytes: int
    max_bytes: int
    policy: str
    clients: int


@dataclass(frozen=True)
class QueueState:
    """Jobs.

    Attributes:
        waiting: jobs that no worker has taken yet.
        oldest_s: seconds for which the first of them has waited; None where none waits (or none says since when).
        taken: jobs that workers have taken and not finished.
        failed: jobs that were rejected or failed lately, as `rq info` counts them.
        suspended: whether `rq suspend` holds all workers.
    """

    waiting: int = 0
    oldest_s: float | None = None
    taken: int = 0
    failed: int = 0
    suspended: bool = False


@dataclass(frozen=True)
class Episode:
    """An open episode.

    Attributes:
        task: the task's text.
        untouched_s: seconds since its last push or query.
        expires_s: seconds until it expires if nobody touches it.
        pushes: batches of frames that were pushed.
        frame_bytes: their encoded size.
        queries: questions asked about it so far.
    """

    id: str
    task: str = ""
    untouched_s: float = 0.0
    expires_s: float = 0.0
    pushes: int = 0
    frame_bytes: int = 0
    queries: int = 0


@dataclass(frozen=True)
class Episodes:
    """Open episodes.

    Attributes:
        open: how many.
        frame_bytes: their encoded frames, and those of crashed ones until the next push purges them.
        limit_bytes: most bytes that the client which opened last allows (max_pending_bytes); 0 where not known.
        untouched: some of them, in order of their last touch; empty where nobody asked for them.
    """

    open: int = 0
    frame_bytes: int = 0
    limit_bytes: int = 0
    untouched: tuple[Episode, ...] = ()


@dataclass(frozen=True)
class WorkerReading:
    """A worker as Redis holds it.

    Attributes:
        info: what it says of itself; None where its hash has expired.
        latency: phase -> its encoded cumulative Histogram.
        taken: jobs that it has taken and not finished.
    """

    name: str
    info: WorkerInfo | None
    latency: Mapping[str, bytes] = field(default_factory=dict)
    taken: int = 0


@dataclass(frozen=True)
class PlainWorker:
    """An RQ worker without a critic yet: it loads one with its first job."""

    name: str
    host: str
    pid: int
    state: str


@dataclass(frozen=True)
class Failed:
    """A failed query.

    Attributes:
        at: when, in seconds since 1970 on Redis' clock.
        query: "done" or "value"; `frame` is the frame that it was about.
        error: the first line.
    """

    at: float
    worker: str = ""
    episode: str = ""
    task: str = ""
    query: str = ""
    frame: int = 0
    error: str = ""


@dataclass(frozen=True)
class Training:
    """Outcomes of training episodes since the first of them.

    Attributes:
        episodes, done, masked: how many ended, were found done, and were left without a reward.
        reward_sum: of those that have one.
        values, value_sum: episodes never done, and their value rewards (0..1) summed.
        audited, contradicted: dones of which the value was asked too, and those of them that it speaks against.
        audit: how the critic compares with the simulator (verl_adapter), by name; None: nothing of the kind.
        audit_at: when, in seconds since 1970; 0: never.
    """

    episodes: int = 0
    done: int = 0
    masked: int = 0
    reward_sum: float = 0.0
    values: int = 0
    value_sum: float = 0.0
    audited: int = 0
    contradicted: int = 0
    audit: Mapping[str, float | None] = field(default_factory=dict)
    audit_at: float = 0.0

    @property
    def done_rate(self) -> float | None:
        counted = self.episodes - self.masked
        return self.done / counted if counted > 0 else None

    @property
    def mean_value(self) -> float | None:
        return self.value_sum / self.values if self.values > 0 else None


@dataclass(frozen=True)
class Reading:
    """All of it.

    Attributes:
        time: seconds since 1970 on Redis' clock.
        failed: the last failed queries, the newest first.
        refused: names of the fields of `queue` that Redis does not tell this user; they are 0 or False then.
    """

    time: float
    redis: RedisState
    queue: QueueState
    episodes: Episodes
    workers: tuple[WorkerReading, ...]
    plain: tuple[PlainWorker, ...]
    training: Training
    failed: tuple[Failed, ...] = ()
    refused: frozenset[str] = frozenset()
