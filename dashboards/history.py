"""What a look alone can't tell: rates, latencies and lost workers, from the readings before it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dashboards.snapshot import (
    RATE_S,
    WINDOW_S,
    Look,
    Percentiles,
    Rates,
    Snapshot,
    Worker,
)
from dashboards.trust import Stretches
from vlac_queue.control import WorkerInfo
from vlac_queue.metrics import PHASES, Histogram
from vlac_queue.records import Reading, WorkerReading

#: Seconds without a beat from which on a worker counts as lost; it beats every second.
LOST_AFTER_S = 3.0
#: Seconds for which a lost worker is remembered after its last trace has gone from Redis.
REMEMBER_LOST_S = 60.0
#: Workers whose histograms may be read each second: reading a worker's takes about 0.3 ms.
_HISTOGRAMS_PER_S = 20
#: Points that charts keep.
_POINTS = 4096


@dataclass
class _Track:
    """What is remembered of one worker.

    Attributes:
        beats: its description at each beat of the last RATE_S seconds, and one before.
        latency: phase -> its histogram when they were read last.
        seen: Redis' time of the last look that found it.
    """

    beats: deque[WorkerInfo] = field(default_factory=deque)
    latency: dict[str, Histogram] | None = None
    worker: Worker | None = None
    seen: float = 0.0


class History:
    """Makes a Snapshot of each Reading and those before it.

    Workers publish totals since their start, so two readings give what happened between them. A worker that
    started anew (another pid, or totals that fell) begins at zero.
    """

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}
        #: (time, queries, failures) answered between two readings.
        self._answered: deque[tuple[float, int, int]] = deque()
        #: (time, phase -> histogram) of what was answered between two readings of histograms.
        self._latencies: deque[tuple[float, dict[str, Histogram]]] = deque()
        #: (time, queries under way) for the rate at which queries arrive.
        self._under_way: deque[tuple[float, float]] = deque()
        self._latency = {phase: Histogram() for phase in PHASES}
        self._percentiles: dict[str, Percentiles] = {}
        self._stretches = Stretches()
        self._last: float | None = None
        self._progress: float | None = None
        self._histograms_due = 0.0

    def add(self, reading: Reading) -> Snapshot:
        """The snapshot at `reading`; readings come in the order of time."""
        now = reading.time
        self._measure_latency(reading)
        queries = failures = 0
        workers = []
        for each in reading.workers:
            track = self._tracks.setdefault(each.name, _Track())
            if each.info is not None:
                answered, failed = self._beat(track, each.info)
                queries, failures = queries + answered, failures + failed
            elif not each.taken and track.worker is None:
                continue  # a name alone is what a worker that died long ago leaves behind
            track.worker, track.seen = _worker(each, track, now), now
            workers.append(track.worker)
        workers += self._lost(now)
        if queries or self._progress is None:
            self._progress = now
        if self._last is not None:
            self._answered.append((now, queries, failures))
        _forget(self._answered, now - WINDOW_S)
        snapshot = Snapshot(
            time=now,
            redis=reading.redis,
            queue=reading.queue,
            episodes=reading.episodes,
            workers=tuple(sorted(workers, key=lambda worker: worker.name)),
            plain=reading.plain,
            latency=self._percentiles,
            failed=reading.failed,
            training=reading.training,
            fooled=self._stretches.add(reading.training),
        )
        self._last = now
        return replace(snapshot, rates=self._rates(snapshot))

    def _beat(self, track: _Track, info: WorkerInfo) -> tuple[int, int]:
        """Remembers a beat; the queries and failures since the one before."""
        before = track.beats[-1] if track.beats else None
        if before is not None and not _goes_on(before, info):
            track.beats.clear()
            track.latency = None
        if before is not None and track.beats and info.time <= before.time:
            track.beats[-1] = info
        else:
            track.beats.append(info)
        while len(track.beats) > 2 and track.beats[1].time <= info.time - RATE_S:
            track.beats.popleft()
        if before is not None and _goes_on(before, info):
            return info.queries - before.queries, info.failures - before.failures
        return (info.queries, info.failures) if before is not None or self._is_new(info) else (0, 0)

    def _is_new(self, info: WorkerInfo) -> bool:
        """Whether a worker began after the last look, and so has answered all of its queries since."""
        return self._last is not None and info.time - info.uptime_s > self._last - 1

    def _lost(self, now: float) -> list[Worker]:
        """Workers that fell silent and then went without a word; those that end in order are forgotten."""
        lost = []
        for name, track in list(self._tracks.items()):
            if track.seen == now:
                continue
            if track.worker is None or track.worker.state != "lost" or now - track.seen > REMEMBER_LOST_S:
                del self._tracks[name]
            else:
                silent_s = track.worker.silent_s + now - track.seen
                lost.append(replace(track.worker, taken=0, silent_s=silent_s))
        return lost

    def _measure_latency(self, reading: Reading) -> None:
        """Adds what was answered since the last time; seldom where there are many workers, for its cost."""
        now = reading.time
        if now >= self._histograms_due:
            self._histograms_due = now + len(reading.workers) / _HISTOGRAMS_PER_S - 0.5
            # Sums over the workers, of now and of the last time; their difference is what came since.
            sums, earlier = ({phase: Histogram() for phase in PHASES} for _ in range(2))
            for each in reading.workers:
                track = self._tracks.setdefault(each.name, _Track())
                if each.info is None:
                    continue
                before, last = track.latency, track.beats[-1] if track.beats else None
                if self._is_new(each.info) if last is None else not _goes_on(last, each.info):
                    before = {}
                track.latency = _decoded(each.latency)
                for phase, histogram in track.latency.items() if before is not None else ():
                    sums[phase] += histogram
                for phase, histogram in before.items() if before is not None else ():
                    earlier[phase] += histogram
            news = {phase: sums[phase] - earlier[phase] for phase in PHASES}
            self._latencies.append((now, news))
            for phase, histogram in news.items():
                self._latency[phase] += histogram
        while self._latencies and self._latencies[0][0] < now - WINDOW_S:
            for phase, histogram in self._latencies.popleft()[1].items():
                self._latency[phase] -= histogram
        self._percentiles = {phase: _percentiles(histogram) for phase, histogram in self._latency.items()}

    def _rates(self, snapshot: Snapshot) -> Rates:
        now, alive = snapshot.time, snapshot.alive
        known = [worker for worker in alive if worker.queries_per_s is not None]
        queries_per_s = sum(worker.queries_per_s or 0.0 for worker in known) if known or not alive else None
        batches_per_s = sum(worker.batches_per_s or 0.0 for worker in known) if known or not alive else None
        busy = [worker.busy for worker in known if worker.busy is not None and worker.state != "asleep"]
        jobs = sum(worker.jobs for worker in alive)
        per_job = sum(worker.queries for worker in alive) / jobs if jobs else 1.0
        self._under_way.append((now, per_job * (snapshot.queue.waiting + snapshot.queue.taken)))
        _forget(self._under_way, now - RATE_S)
        (first, were), (last, are) = self._under_way[0], self._under_way[-1]
        growth = (are - were) / (last - first) if last > first else 0.0
        return Rates(
            queries_per_s=queries_per_s,
            batches_per_s=batches_per_s,
            arriving_per_s=max(0.0, queries_per_s + growth) if queries_per_s is not None else None,
            mean_batch=queries_per_s / batches_per_s if queries_per_s and batches_per_s else None,
            busy=sum(busy) / len(busy) if busy else None,
            still_s=now - self._progress if self._progress is not None else None,
            queries_in_window=sum(queries for _, queries, _ in self._answered),
            failures_in_window=sum(failures for _, _, failures in self._answered),
        )


@dataclass
class Series:
    """What charts show: (seconds, value) of each look, the newest last."""

    waiting: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_POINTS))
    queries: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_POINTS))

    def add(self, look: Look) -> None:
        if look.snapshot is not None:
            self.waiting.append((look.at, look.snapshot.queue.waiting))
            if look.snapshot.rates.queries_per_s is not None:
                self.queries.append((look.at, look.snapshot.rates.queries_per_s))


def _worker(reading: WorkerReading, track: _Track, now: float) -> Worker:
    info = reading.info
    if info is None:
        before = track.worker or Worker(reading.name, state="lost")
        silent_s = before.silent_s + (now - track.seen if track.seen else 0.0)
        return replace(before, state="lost", taken=reading.taken, silent_s=silent_s, busy=None, queries_per_s=None)
    silent_s = max(0.0, now - info.time) if info.time else 0.0
    first, last = track.beats[0], track.beats[-1]
    elapsed_s = last.time - first.time
    rates: dict[str, Any] = {}
    if elapsed_s > 0:
        queries, batches = last.queries - first.queries, last.batches - first.batches
        rates = {
            # A batch's time counts when it ends, so a long one may exceed the time between two beats.
            "busy": min(1.0, max(0.0, (last.busy_s - first.busy_s) / elapsed_s)),
            "queries_per_s": queries / elapsed_s,
            "batches_per_s": batches / elapsed_s,
            "mean_batch": queries / batches if batches else None,
        }
    state = "lost" if silent_s > LOST_AFTER_S else info.state or "?"
    return Worker(**{**vars(info), "state": state}, taken=reading.taken, silent_s=silent_s, **rates)


def _goes_on(before: WorkerInfo, info: WorkerInfo) -> bool:
    """Whether both are of one process."""
    return before.pid == info.pid and before.queries <= info.queries and before.busy_s <= info.busy_s


def _decoded(latency: Mapping[str, bytes]) -> dict[str, Histogram]:
    """Phase -> histogram; what can't be read is left out, for anybody may have written it."""
    decoded = {}
    for phase, text in latency.items():
        try:
            decoded[phase] = Histogram.decode(text.decode())
        except ValueError:
            continue
    return decoded


def _percentiles(histogram: Histogram) -> Percentiles:
    return Percentiles(
        histogram.count, histogram.quantile(0.5), histogram.quantile(0.95), histogram.quantile(0.99)
    )


def _forget(entries: deque[Any], before: float) -> None:
    """Drops what is older than `before`."""
    while entries and entries[0][0] < before:
        entries.popleft()
