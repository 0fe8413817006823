"""A recorded run as columns of numbers, for plots and a summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dashboards.diagnosis import Diagnosis, Severity
from dashboards.snapshot import Look, Snapshot, Worker
from vlac_queue.metrics import PHASES

#: Seconds over which done rate and value are taken.
_TRAINING_S = 60.0
_NAN = float("nan")


@dataclass
class Span:
    """A time for which one diagnosis stood.

    Attributes:
        start, end: seconds since 1970.
    """

    start: float
    end: float
    diagnosis: Diagnosis


@dataclass
class Run:
    """A recorded run.

    Attributes:
        at: time of each look, seconds since 1970.
        columns: name -> a number for each look; NaN where it is not known.
        spans: the diagnoses, one after the other.
        audit: name -> a number for each look, likewise.
        queries, failures: answered in all while it was recorded.
        away_s: seconds for which Redis could not be read.
        workers: names of all workers that were seen.
        last: the last snapshot, or None.
    """

    at: list[float] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)
    audit: dict[str, list[float]] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    queries: int = 0
    failures: int = 0
    away_s: float = 0.0
    workers: set[str] = field(default_factory=set)
    last: Snapshot | None = None

    @property
    def seconds(self) -> float:
        return self.at[-1] - self.at[0] if self.at else 0.0

    def known(self, name: str) -> list[float]:
        """The numbers of a column that are known."""
        return [value for value in self.columns.get(name, ()) if value == value]

    def time_by_diagnosis(self) -> list[tuple[Severity, str, float, str]]:
        """(severity, kind, seconds, its first sentence) of all diagnoses, the longest first."""
        times: dict[tuple[Severity, str], tuple[float, str]] = {}
        for span in self.spans:
            key = (span.diagnosis.severity, span.diagnosis.kind)
            seconds, sentence = times.get(key, (0.0, span.diagnosis.sentence))
            times[key] = (seconds + span.end - span.start, sentence)
        ordered = sorted(times.items(), key=lambda item: -item[1][0])
        return [(severity, kind, seconds, sentence) for (severity, kind), (seconds, sentence) in ordered]


def read_run(looks: Iterable[tuple[Look, Sequence[Diagnosis]]]) -> Run:
    """The run of a recording's looks."""
    run, outcomes = Run(), _Outcomes()
    before: dict[str, Worker] = {}
    for look, diagnoses in looks:
        if run.spans:
            run.spans[-1].end = look.at
            if run.spans[-1].diagnosis.kind == "redis-away":
                run.away_s += look.at - run.at[-1]
        first = diagnoses[0]
        if not run.spans or (run.spans[-1].diagnosis.kind, run.spans[-1].diagnosis.severity) != (
            first.kind, first.severity,
        ):  # fmt: skip
            run.spans.append(Span(look.at, look.at, first))
        numbers = _numbers(look.snapshot, outcomes, look.at) if look.snapshot else {}
        audit = look.snapshot.training.audit if look.snapshot else {}
        _append(run.columns, numbers, len(run.at))
        _append(run.audit, {name: _NAN if value is None else value for name, value in audit.items()}, len(run.at))
        run.at.append(look.at)
        if look.snapshot is None:
            continue
        run.last = look.snapshot
        for worker in look.snapshot.workers:
            run.workers.add(worker.name)
            earlier = before.get(worker.name)
            if earlier is not None:
                queries, failures = _since(earlier, worker)
                run.queries, run.failures = run.queries + queries, run.failures + failures
            before[worker.name] = worker
    return run


class _Outcomes:
    """Done rate, mean value and share of contradicted dones, of the outcomes of the last _TRAINING_S seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int, int, int, float, int, int]] = []

    def add(self, at: float, snapshot: Snapshot) -> tuple[float, float, float]:
        training = snapshot.training
        counted = training.episodes - training.masked
        if self._seen and counted < self._seen[-1][1]:
            self._seen.clear()
        values, audited = (training.values, training.value_sum), (training.audited, training.contradicted)
        self._seen.append((at, counted, training.done, *values, *audited))
        while len(self._seen) > 2 and self._seen[1][0] <= at - _TRAINING_S:
            self._seen.pop(0)
        pairs = zip(self._seen[0], self._seen[-1], strict=True)
        _, episodes, done, count, value_sum, asked, contradicted = (last - first for first, last in pairs)
        return _share(done, episodes), _share(value_sum, count), _share(contradicted, asked)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else _NAN


def _numbers(snapshot: Snapshot, outcomes: _Outcomes, at: float) -> dict[str, float]:
    queue, rates, busy = snapshot.queue, snapshot.rates, [w.busy for w in snapshot.alive if w.busy is not None]
    done_rate, value, contradicted = outcomes.add(at, snapshot)
    numbers: dict[str, float | None] = {
        "waiting": queue.waiting,
        "taken": queue.taken,
        "oldest": queue.oldest_s if queue.waiting else 0.0,
        "queries": rates.queries_per_s,
        "arriving": rates.arriving_per_s,
        "batch": rates.mean_batch,
        "busy": rates.busy,
        "busy_least": min(busy, default=None),
        "busy_most": max(busy, default=None),
        "workers": len(snapshot.alive),
        "failures": rates.failures_in_window,
        "episodes": snapshot.episodes.open,
        "frame_bytes": snapshot.episodes.frame_bytes,
        "frame_limit": snapshot.episodes.limit_bytes or None,
        "redis_bytes": snapshot.redis.used_bytes,
        "redis_limit": snapshot.redis.max_bytes or None,
        "done_rate": done_rate,
        "value": value,
        "contradicted": contradicted,
    }
    for phase in PHASES:
        times = snapshot.latency.get(phase)
        for name in ("p50", "p95", "p99"):
            numbers[f"{phase}_{name}"] = getattr(times, f"{name}_s") if times else None
    return {name: _NAN if value is None else float(value) for name, value in numbers.items()}


def _append(columns: dict[str, list[float]], numbers: dict[str, float], length: int) -> None:
    """Adds a row to columns that are `length` long; columns that begin or stop are filled with NaN."""
    for name in numbers:
        columns.setdefault(name, [_NAN] * length)
    for name, column in columns.items():
        column.append(numbers.get(name, _NAN))


def _since(earlier: Worker, worker: Worker) -> tuple[int, int]:
    """Queries and failures of a worker between two looks; one that started anew began at zero."""
    if worker.pid == earlier.pid and worker.queries >= earlier.queries:
        return worker.queries - earlier.queries, worker.failures - earlier.failures
    return worker.queries, worker.failures
