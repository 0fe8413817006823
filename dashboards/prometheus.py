"""The last look as Prometheus' metrics, in a file or over HTTP; the text is made by prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Metric, start_http_server, write_to_textfile
from prometheus_client.registry import Collector

from dashboards.diagnosis import Diagnosis
from dashboards.snapshot import Look, Snapshot

_STATES = ("loading", "idle", "busy", "asleep", "lost")
_SEVERITIES = ("ok", "warning", "bad")
#: Metrics of each worker: name, kind, meaning and the field of `Worker`.
_OF_WORKERS = (
    ("busy_ratio", "gauge", "Part of the time for which a worker's critic works.", "busy"),
    ("queries_total", "counter", "Queries that a worker has answered.", "queries"),
    ("failures_total", "counter", "Queries among them that failed.", "failures"),
    ("batches_total", "counter", "Calls of a worker's critic.", "batches"),
    ("pairs_ahead_total", "counter", "Pairs of frames scored before a query needed them.", "pairs_ahead"),
    ("pairs_unused_total", "counter", "Pairs scored of episodes that were then found done.", "pairs_unused"),
    ("resident_bytes", "gauge", "Memory of a worker's process.", "rss_bytes"),
    ("accelerator_bytes", "gauge", "Accelerator memory of a worker.", "accelerator_bytes"),
    ("silent_seconds", "gauge", "Seconds since a worker's last beat.", "silent_s"),
)
#: One sample: its labels and its value.
_Sample: TypeAlias = tuple[Mapping[str, str], float]
#: A metric: its name, kind, meaning and samples.
_Family: TypeAlias = tuple[str, str, str, list[_Sample]]


class Exporter(Collector):
    """Gives the last look to Prometheus; what is not known is left out.

    Args:
        queue: its name, a label of every sample.
    """

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._last: tuple[Look, Sequence[Diagnosis]] | None = None
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def take(self, look: Look, diagnoses: Sequence[Diagnosis]) -> None:
        """Show this look from now on."""
        self._last = look, diagnoses

    def write(self, path: str) -> None:
        """Replace a file whole, so that a reader never sees half of it.

        Raises:
            OSError: it can't be written.
        """
        write_to_textfile(path, self.registry)

    @contextmanager
    def serve(self, host: str, port: int) -> Iterator[int]:
        """Serve the last look over HTTP until the block ends; gives the port, where `port` is 0 a free one.

        Raises:
            OSError: the port is taken, or there is no such host.
        """
        server, thread = start_http_server(port, host, self.registry)
        try:
            yield int(server.server_port)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the last look; none before the first."""
        if self._last is None:
            return
        look, diagnoses = self._last
        families: list[_Family] = [
            ("up", "gauge", "Whether Redis could be read.", _one(look.snapshot is not None)),
            ("verdict", "gauge", "0 ok, 1 warning, 2 bad.",
             [({"kind": diagnoses[0].kind}, float(_SEVERITIES.index(diagnoses[0].severity)))]),
        ]  # fmt: skip
        if look.snapshot is not None:
            families += _of_queue(look.snapshot) + _of_workers(look.snapshot) + _of_training(look.snapshot)
        for name, kind, text, samples in families:
            metric = Metric(f"vlac_{name.removesuffix('_total')}", text, kind)
            for labels, value in samples:
                metric.add_sample(f"vlac_{name}", {"queue": self._queue, **labels}, value)
            if samples:
                yield metric


def _one(value: float | None) -> list[_Sample]:
    return [] if value is None else [({}, float(value))]


def _many(values: Iterable[tuple[Mapping[str, str], float | None]]) -> list[_Sample]:
    return [(labels, float(value)) for labels, value in values if value is not None]


def _of_queue(snapshot: Snapshot) -> list[_Family]:
    queue, episodes, server, rates = snapshot.queue, snapshot.episodes, snapshot.redis, snapshot.rates
    return [
        ("jobs_waiting", "gauge", "Jobs that no worker has taken.", _one(queue.waiting)),
        ("jobs_taken", "gauge", "Jobs that workers have taken and not finished.", _one(queue.taken)),
        ("jobs_failed", "gauge", "Jobs in RQ's registry of failed ones.", _one(queue.failed)),
        ("oldest_job_seconds", "gauge", "Seconds for which the first job has waited.", _one(queue.oldest_s or 0)),
        ("queries_per_second", "gauge", "Queries answered a second.", _one(rates.queries_per_s)),
        ("batches_per_second", "gauge", "Calls of the critic a second.", _one(rates.batches_per_s)),
        ("batch_queries", "gauge", "Queries for each call of the critic.", _one(rates.mean_batch)),
        ("busy_ratio", "gauge", "Mean part of the time for which critics work.", _one(rates.busy)),
        ("latency_seconds", "gauge", "Quantiles of the last minute by phase.", _many(
            ({"phase": phase, "quantile": quantile}, value)
            for phase, times in snapshot.latency.items()
            for quantile, value in (("0.5", times.p50_s), ("0.95", times.p95_s), ("0.99", times.p99_s))
        )),
        ("episodes_open", "gauge", "Open episodes.", _one(episodes.open)),
        ("frame_bytes", "gauge", "Encoded frames of open episodes.", _one(episodes.frame_bytes)),
        ("frame_bytes_limit", "gauge", "max_pending_bytes, where known.", _one(episodes.limit_bytes or None)),
        ("redis_used_bytes", "gauge", "Memory that Redis uses.", _one(server.used_bytes)),
        ("redis_max_bytes", "gauge", "Redis' maxmemory, if any.", _one(server.max_bytes or None)),
        ("redis_clients", "gauge", "Clients connected to Redis.", _one(server.clients)),
    ]  # fmt: skip


def _of_workers(snapshot: Snapshot) -> list[_Family]:
    workers = [({"worker": worker.name, "host": worker.host}, worker) for worker in snapshot.workers]
    return [
        ("workers", "gauge", "Workers with a critic by state.", _many(
            ({"state": state}, sum(worker.state == state for worker in snapshot.workers)) for state in _STATES
        )),
        ("plain_workers", "gauge", "RQ workers without a critic yet.", _one(len(snapshot.plain))),
        *(
            (f"worker_{name}", kind, text, _many((labels, getattr(worker, field)) for labels, worker in workers))
            for name, kind, text, field in _OF_WORKERS
        ),
    ]  # fmt: skip


def _of_training(snapshot: Snapshot) -> list[_Family]:
    training = snapshot.training
    return [
        ("training_episodes_total", "counter", "Training episodes that ended.", _one(training.episodes)),
        ("training_done_total", "counter", "Of them, found done by the critic.", _one(training.done)),
        ("training_masked_total", "counter", "Of them, left without a reward.", _one(training.masked)),
        ("training_audited_total", "counter", "Dones whose value was asked too.", _one(training.audited)),
        ("training_contradicted_total", "counter", "Of these, with a low value.", _one(training.contradicted)),
        ("training_fooled", "gauge", "Whether the critic seems fooled.", _one(bool(snapshot.fooled))),
        ("training_reward_sum", "gauge", "Rewards of training episodes, summed.", _one(training.reward_sum)),
        ("audit", "gauge", "How the critic compares with the simulator.",
         _many(({"name": name}, value) for name, value in training.audit.items())),
    ]  # fmt: skip
