"""The state of one queue at one moment, and its JSON form (docs/dashboard.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

import msgspec

from vlac_queue.control import WorkerInfo
from vlac_queue.records import Episodes, Failed, PlainWorker, QueueState, RedisState, Training
from vlac_queue.texts import clean

#: Version of the JSON documents and of recordings.
SCHEMA = 1

#: Seconds over which rates (queries/s, busy) are taken.
RATE_S = 10.0
#: Seconds over which latencies and failures are taken.
WINDOW_S = 60.0

#: Most that a number of a document may be: well above sums of what Redis counts.
_MAX_NUMBER = 1e30

Made = TypeVar("Made")


@dataclass(frozen=True)
class Worker(WorkerInfo):
    """One worker with a critic: what it said of itself at its last beat, and what its beats tell.

    Attributes:
        state: also "lost": no beat for some seconds; it died, or can't reach Redis, and what it had taken goes to
            others.
        taken: jobs that it has taken and not finished.
        silent_s: seconds since its last beat.
        busy: part of the last RATE_S seconds for which its critic worked, 0..1; None until two beats were seen.
        queries_per_s, batches_per_s: likewise.
        mean_batch: queries for each call of the critic in that time; None where there was none.
    """

    taken: int = 0
    silent_s: float = 0.0
    busy: float | None = None
    queries_per_s: float | None = None
    batches_per_s: float | None = None
    mean_batch: float | None = None


@dataclass(frozen=True)
class Rates:
    """All workers together, over the last RATE_S seconds; None where nothing is known yet.

    Attributes:
        queries_per_s, batches_per_s: what was answered.
        arriving_per_s: queries asked a second: those answered, and the growth of what is under way.
        mean_batch: queries for each call of a critic.
        busy: mean part of the time for which the workers' critics worked, 0..1; sleeping ones left out.
        still_s: seconds since an answer was last counted, as far as this dashboard has seen; None before.
        queries_in_window, failures_in_window: answers of the last WINDOW_S seconds, and failures among them.
    """

    queries_per_s: float | None = None
    batches_per_s: float | None = None
    arriving_per_s: float | None = None
    mean_batch: float | None = None
    busy: float | None = None
    still_s: float | None = None
    queries_in_window: int = 0
    failures_in_window: int = 0


@dataclass(frozen=True)
class Percentiles:
    """How long queries took in one phase, over the last WINDOW_S seconds: their number, and seconds."""

    count: int = 0
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """All of it.

    Attributes:
        time: seconds since 1970 on Redis' clock.
        latency: phase (vlac_queue.metrics.PHASES) -> its percentiles.
        failed: the last failed queries, the newest first.
        fooled: by what the critic is fooled, in words (dashboards.trust); "" where it does not seem so.
    """

    time: float
    redis: RedisState
    queue: QueueState = field(default_factory=QueueState)
    episodes: Episodes = field(default_factory=Episodes)
    workers: tuple[Worker, ...] = ()
    plain: tuple[PlainWorker, ...] = ()
    rates: Rates = Rates()
    latency: Mapping[str, Percentiles] = field(default_factory=dict)
    failed: tuple[Failed, ...] = ()
    training: Training = field(default_factory=Training)
    fooled: str = ""

    @property
    def alive(self) -> tuple[Worker, ...]:
        """The workers with a critic that live."""
        return tuple(worker for worker in self.workers if worker.state != "lost")

    @property
    def listening(self) -> int:
        """Workers that live, with a critic or without."""
        return len(self.plain) + len(self.alive)


@dataclass(frozen=True)
class Look:
    """One look at the queue.

    Attributes:
        at: seconds since 1970 on this host's clock.
        snapshot: what it saw, or None where it failed.
        error: why it failed, or "".
    """

    at: float
    snapshot: Snapshot | None
    error: str = ""


def to_json(value: Any) -> Any:
    """A dataclass as JSON values; numbers keep 6 digits, times milliseconds, so that recordings stay small."""
    if is_dataclass(value):
        return {spec.name: to_json(getattr(value, spec.name)) for spec in fields(value)}
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return round(value, 3) if abs(value) >= 1000 else float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: to_json(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(each) for each in value]
    return value


def from_json(kind: type[Made], value: Any) -> Made:
    """Return what `to_json` made of a `kind`; what is missing takes its default, what is unknown is left out.

    Raises:
        ValueError: a value is not of its type, or one without a default is missing.
    """
    try:
        return msgspec.convert(_fit(value), kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}") from None


def _fit(value: Any) -> Any:
    """Return JSON values with texts that are fit for a terminal and numbers that can be reckoned with."""
    if isinstance(value, dict):
        return {clean(key): _fit(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_fit(each) for each in value]
    if isinstance(value, float | int) and not abs(value) <= _MAX_NUMBER:
        raise ValueError(f"{value!r:.80} is out of range")
    return clean(value) if isinstance(value, str) else value
