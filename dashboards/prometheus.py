"""The last look as Prometheus' text format, in a file or over HTTP."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

from dashboards.snapshot import Look, Snapshot
from dashboards.verdict import Verdict

_STATES = ("loading", "idle", "busy", "asleep", "lost")
_SEVERITIES = ("ok", "warning", "bad")
#: One sample: its labels and its value.
_Sample: TypeAlias = tuple[Mapping[str, str], float]
#: A metric: its name, kind, meaning and samples.
_Family: TypeAlias = tuple[str, str, str, list[_Sample]]


def metrics(look: Look, verdicts: Sequence[Verdict], queue: str) -> str:
    """The look as text; what is not known is left out."""
    families: list[_Family] = [
        ("up", "gauge", "Whether Redis could be read.", [({}, float(look.snapshot is not None))]),
        ("verdict", "gauge", "0 ok, 1 warning, 2 bad.",
         [({"kind": verdicts[0].kind}, float(_SEVERITIES.index(verdicts[0].severity)))]),
    ]  # fmt: skip
    if look.snapshot is not None:
        families += _families(look.snapshot)
    lines = []
    for name, kind, text, samples in families:
        lines += [f"# HELP vlac_{name} {text}", f"# TYPE vlac_{name} {kind}"]
        for labels, value in samples:
            told = ",".join(f'{key}="{_escape(each)}"' for key, each in {"queue": queue, **labels}.items())
            lines.append(f"vlac_{name}{{{told}}} {value!r}")
    return "\n".join(lines) + "\n"


def _families(snapshot: Snapshot) -> list[_Family]:
    queue, episodes, server, rates, training = (
        snapshot.queue, snapshot.episodes, snapshot.redis, snapshot.rates, snapshot.training,
    )  # fmt: skip

    def one(value: float | None) -> list[_Sample]:
        return [] if value is None else [({}, float(value))]

    def each(values: Iterable[tuple[Mapping[str, str], float | None]]) -> list[_Sample]:
        return [(labels, float(value)) for labels, value in values if value is not None]

    workers = [({"worker": worker.name, "host": worker.host}, worker) for worker in snapshot.workers]
    families: list[_Family] = [
        ("jobs_waiting", "gauge", "Jobs that no worker has taken.", one(queue.waiting)),
        ("jobs_taken", "gauge", "Jobs that workers have taken and not finished.", one(queue.taken)),
        ("jobs_failed", "gauge", "Jobs in RQ's registry of failed ones.", one(queue.failed)),
        ("oldest_job_seconds", "gauge", "Seconds for which the first job has waited.", one(queue.oldest_s or 0.0)),
        ("queries_per_second", "gauge", "Queries answered a second.", one(rates.queries_per_s)),
        ("batches_per_second", "gauge", "Calls of the critic a second.", one(rates.batches_per_s)),
        ("batch_queries", "gauge", "Queries for each call of the critic.", one(rates.mean_batch)),
        ("busy_ratio", "gauge", "Mean part of the time for which critics work.", one(rates.busy)),
        ("latency_seconds", "gauge", "Quantiles of the last minute by phase.", each(
            ({"phase": phase, "quantile": quantile}, value)
            for phase, times in snapshot.latency.items()
            for quantile, value in (("0.5", times.p50_s), ("0.95", times.p95_s), ("0.99", times.p99_s))
        )),
        ("episodes_open", "gauge", "Open episodes.", one(episodes.open)),
        ("frame_bytes", "gauge", "Encoded frames of open episodes.", one(episodes.frame_bytes)),
        ("frame_bytes_limit", "gauge", "max_pending_bytes, where known.", one(episodes.limit_bytes or None)),
        ("redis_used_bytes", "gauge", "Memory that Redis uses.", one(server.used_bytes)),
        ("redis_max_bytes", "gauge", "Redis' maxmemory, if any.", one(server.max_bytes or None)),
        ("redis_clients", "gauge", "Clients connected to Redis.", one(server.clients)),
        ("workers", "gauge", "Workers with a critic by state.", each(
            ({"state": state}, sum(worker.state == state for worker in snapshot.workers)) for state in _STATES
        )),
        ("plain_workers", "gauge", "RQ workers without a critic yet.", one(len(snapshot.plain))),
        ("worker_busy_ratio", "gauge", "Part of the time for which a worker's critic works.",
         each((labels, worker.busy) for labels, worker in workers)),
        ("worker_queries_total", "counter", "Queries that a worker has answered.",
         each((labels, worker.queries) for labels, worker in workers)),
        ("worker_failures_total", "counter", "Queries among them that failed.",
         each((labels, worker.failures) for labels, worker in workers)),
        ("worker_batches_total", "counter", "Calls of a worker's critic.",
         each((labels, worker.batches) for labels, worker in workers)),
        ("worker_resident_bytes", "gauge", "Memory of a worker's process.",
         each((labels, worker.rss_bytes) for labels, worker in workers)),
        ("worker_accelerator_bytes", "gauge", "Accelerator memory of a worker.",
         each((labels, worker.accelerator_bytes) for labels, worker in workers)),
        ("worker_silent_seconds", "gauge", "Seconds since a worker's last beat.",
         each((labels, worker.silent_s) for labels, worker in workers)),
        ("training_episodes_total", "counter", "Training episodes that ended.", one(training.episodes)),
        ("training_done_total", "counter", "Of them, found done by the critic.", one(training.done)),
        ("training_masked_total", "counter", "Of them, left without a reward.", one(training.masked)),
        ("training_reward_sum", "gauge", "Rewards of training episodes, summed.", one(training.reward_sum)),
        ("audit", "gauge", "How the critic compares with the simulator.",
         each(({"name": name}, value) for name, value in training.audit.items())),
    ]  # fmt: skip
    return [family for family in families if family[3]]


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def write_metrics(path: str, text: str) -> None:
    """Replaces a file whole, so that a reader never sees half of it."""
    beside = f"{path}.{os.getpid()}.tmp"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except BaseException:
        if os.path.exists(beside):
            os.unlink(beside)
        raise


class MetricsServer:
    """Serves the last text at /metrics until closed.

    Args:
        host, port: where to listen; port 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, host: str, port: int) -> None:
        self.text = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path.partition("?")[0] in ("/", "/metrics")
                body = outer.text.encode() if found else b"see /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Says nothing: the terminal belongs to the picture."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
