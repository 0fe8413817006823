"""Prometheus metrics: what Prometheus' own parser reads of them."""

from __future__ import annotations

import stat
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dashboards.diagnosis import judge
from dashboards.prometheus import Exporter
from dashboards.snapshot import Look
from tests.dashboards.states import AT, CRITIC_BOUND, LOOKS, TROUBLED, worker


def exporter_of(look: Look) -> Exporter:
    exporter = Exporter("vlac")
    exporter.take(look, judge(look))
    return exporter


def metrics(look: Look) -> str:
    return generate_latest(exporter_of(look).registry).decode()


def samples(look: Look) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) -> value, as Prometheus reads the text."""
    text = metrics(look)
    read = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    made = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in read}
    assert len(made) == len(read) == sum(not line.startswith("#") for line in text.splitlines())
    return made


def of(metric: str, /, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return metric, tuple(sorted({"queue": "vlac", **labels}.items()))


@pytest.mark.parametrize("name", LOOKS)
def test_all_of_it_is_read_by_prometheus(name: str) -> None:
    read = samples(LOOKS[name])
    assert read[of("vlac_up")] == (0.0 if name == "redis-away" else 1.0)
    assert all("queue" in dict(labels) for _, labels in read)


def test_the_numbers_are_those_of_the_look() -> None:
    read = samples(Look(AT, TROUBLED))
    assert read[of("vlac_jobs_waiting")] == 10_412
    assert read[of("vlac_oldest_job_seconds")] == 65.0
    assert read[of("vlac_latency_seconds", phase="critic", quantile="0.95")] == 0.38
    assert read[of("vlac_workers", state="lost")] == 1
    assert read[of("vlac_worker_queries_total", worker="gpu-0-4242-ab10", host="gpu-0")] == 123_456
    assert read[of("vlac_worker_pairs_ahead_total", worker="gpu-0-4242-ab10", host="gpu-0")] == 0
    assert read[of("vlac_audit", name="precision")] == 0.94
    assert read[of("vlac_verdict", kind="redis-full")] == 2.0
    assert of("vlac_worker_busy_ratio", worker="gpu-2-4242-ab12", host="gpu-2") not in read  # it loads: not known


def test_names_from_redis_are_escaped() -> None:
    name = 'w"} 1\\'
    read = samples(Look(AT, replace(CRITIC_BOUND, workers=(worker(1, name=name),))))
    assert read[of("vlac_worker_failures_total", worker=name, host="gpu-1")] == 0


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.prom"
    exporter = exporter_of(LOOKS["redis-away"])
    exporter.write(str(path))
    first = path.stat().st_ino
    exporter.take(Look(AT, TROUBLED), judge(Look(AT, TROUBLED)))
    exporter.write(str(path))
    assert "vlac_jobs_waiting" in path.read_text()
    assert path.stat().st_ino != first
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_a_folder_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        exporter_of(Look(AT, TROUBLED)).write(str(tmp_path / "no" / "metrics.prom"))
    assert list(tmp_path.iterdir()) == []


def test_the_port_serves_the_last_look() -> None:
    exporter = Exporter("vlac")
    with exporter.serve("127.0.0.1", 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
            assert reply.read() == b""
        exporter.take(Look(AT, TROUBLED), judge(Look(AT, TROUBLED)))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as reply:
            assert b'vlac_up{queue="vlac"} 1.0' in reply.read()
            assert reply.headers["Content-Type"].startswith("text/plain")
        with pytest.raises(OSError), exporter.serve("127.0.0.1", port):
            pass
