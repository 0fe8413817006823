"""Whatever stands on Redis, there is a picture, a document and metrics: anybody may have written it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from dashboards.diagnosis import judge
from dashboards.history import History
from dashboards.pages import View, page
from dashboards.record import document
from dashboards.snapshot import Look, Snapshot, from_json
from tests.dashboards.test_prometheus import metrics
from vlac_queue.control import WorkerInfo
from vlac_queue.metrics import PHASES
from vlac_queue.reading import failure_in, outcomes
from vlac_queue.records import Episodes, QueueState, Reading, RedisState, WorkerReading

_FIELDS = [name.encode() for name in WorkerInfo.__dataclass_fields__ if name != "name"]
_NUMBERS = st.sampled_from([b"0", b"-1", b"1e308", b"-1e308", b"nan", b"inf", b"9" * 400, b"1.5", b"", b"0x10"])
_VALUES = st.one_of(st.binary(max_size=30), _NUMBERS, st.integers(-(2**70), 2**70).map(lambda n: str(n).encode()))
_HASHES = st.dictionaries(st.sampled_from(_FIELDS), _VALUES)
_ENCODED = st.sampled_from([b"1.0 3:5", b"-5 3:9223372036854775807", b"1e308 0:1", b"1 500:1"])
_HISTOGRAMS = st.one_of(st.binary(max_size=30), _ENCODED)
_LATENCIES = st.dictionaries(st.sampled_from(PHASES), _HISTOGRAMS)
_SUMS = [b"episodes", b"done", b"masked", b"reward_sum", b"values", b"value_sum", b"audit/\x1b", b"audit_at"]
_TOTALS = st.dictionaries(st.sampled_from(_SUMS), _VALUES)
_EVENTS = st.dictionaries(
    st.sampled_from(["error", "frame", "task"]), st.one_of(st.text(), st.floats(), st.none(), st.integers())
)


def reading(time: float, hashes: list[Any], totals: dict[bytes, bytes], event: bytes) -> Reading:
    workers = tuple(
        WorkerReading(f"w{n}", WorkerInfo.from_hash(f"w{n}", said) if said else None, latency, taken=n)
        for n, (said, latency) in enumerate(hashes)
    )
    failed = failure_in(b"1767268800000-0", event)
    return Reading(
        time, RedisState("7", 1, 2, "noeviction", 1), QueueState(3, 4.0, 5), Episodes(), workers, (),
        outcomes(totals), (failed,) if failed else (),
    )  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.lists(st.tuples(_HASHES, _LATENCIES), max_size=3), min_size=1, max_size=3),
    _TOTALS,
    _EVENTS,
)
def test_whatever_stands_on_redis_there_is_a_picture(
    looks: list[list[Any]], totals: dict[bytes, bytes], event: dict[str, Any]
) -> None:
    history = History()
    for second, hashes in enumerate(looks):
        snapshot = history.add(
            reading(1000.0 + second, hashes, totals, json.dumps({"kind": "failure", **event}).encode())
        )
    look = Look(1_767_268_800.0, snapshot)
    diagnoses = judge(look)
    for shown in ("overview", "workers", "failures"):
        view = View("redis://x", "vlac", look, diagnoses, page=shown, sort="busy")  # type: ignore[arg-type]
        lines = page(view, 100, 30)
        assert {line.cell_len for line in lines} == {100}
        assert all(line.plain.isprintable() for line in lines)
    said = json.dumps(document(look, diagnoses), allow_nan=False)
    assert isinstance(from_json(Snapshot, json.loads(said)["snapshot"]), Snapshot)
    assert list(text_string_to_metric_families(metrics(look)))
