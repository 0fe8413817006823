"""Latencies and outcomes for people: they add up, subtract and survive the way over Redis."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from vlac_queue.keys import Keys
from vlac_queue.metrics import Histogram, first_line, publish_audit, publish_outcomes
from vlac_queue.rule import Outcome

KEYS = Keys("vlac")
# The first bucket begins at 0.
durations = st.lists(st.floats(1.3e-5, 3600), min_size=1, max_size=50)


def histogram(seconds: list[float]) -> Histogram:
    made = Histogram()
    for each in seconds:
        made.observe(each)
    return made


@given(durations, st.floats(0, 1))
def test_a_quantile_is_off_by_less_than_a_bucket(seconds: list[float], q: float) -> None:
    exact = sorted(seconds)[max(0, math.ceil(q * len(seconds)) - 1)]
    found = histogram(seconds).quantile(q)
    assert found is not None and exact / 1.2001 <= found <= exact * 1.2001 + 1e-9


@given(durations, durations)
def test_histograms_add_up_and_subtract(first: list[float], second: list[float]) -> None:
    both = histogram(first) + histogram(second)
    assert both.encode() == histogram(first + second).encode() or both.sum == pytest.approx(sum(first + second))
    assert both.count == len(first) + len(second)
    assert (both - histogram(first)).quantile(0.5) == histogram(second).quantile(0.5)


@given(durations)
def test_a_histogram_comes_back_from_its_text(seconds: list[float]) -> None:
    made = histogram(seconds)
    read = Histogram.decode(made.encode())
    assert read == made and read.sum == pytest.approx(sum(seconds), abs=1e-6)


def test_an_empty_histogram_has_no_quantile() -> None:
    assert Histogram().quantile(0.5) is None
    assert Histogram.decode("").count == 0


def test_durations_outside_the_buckets_count_at_the_ends() -> None:
    made = histogram([-1.0, 0.0, 1e9])
    assert made.count == 3 and Histogram.decode(made.encode()).count == 3


@pytest.mark.parametrize(
    "text", ["x", "1.0 5", "1.0 999:1", "1.0 -1:1", "1.0 3:-4", "nan 1:1", "1.0 1:" + "9" * 30]
)
def test_a_text_that_is_no_histogram_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Histogram.decode(text)


def test_the_first_line_of_an_error_is_fit_for_a_terminal() -> None:
    assert first_line("ValueError: \x1b[31mred\x07\nTraceback ...") == "ValueError: ?[31mred?"
    assert len(first_line("x" * 5000)) == 200


def test_outcomes_are_told_one_by_one_and_summed_up(connection: redis.Redis) -> None:
    outcomes = [
        ("e1", "open", Outcome(7, done=True, reward=1.0, contradicted=True)),
        ("e2", "open", Outcome(9, done=False, reward=0.25, values=(0.0, 25.0))),
        ("e3", "open", Outcome(3, done=False, reward=None, masked=True, error="lost\nmore")),
    ]
    with connection.pipeline() as pipeline:
        publish_outcomes(KEYS, outcomes, pipeline)
        publish_outcomes(KEYS, outcomes[:1], pipeline)
        publish_audit(KEYS, {"precision": 0.5, "recall": float("nan")}, 12.0, pipeline)
        pipeline.execute()
    totals: Any = connection.hgetall(KEYS.totals)
    assert {
        name: float(totals[name.encode()])
        for name in ("episodes", "done", "masked", "values", "audited", "contradicted")
    } == {
        "episodes": 4,
        "done": 2,
        "audited": 2,
        "contradicted": 2,
        "masked": 1,
        "values": 1,
    }
    assert float(totals[b"value_sum"]) == 0.25 and float(totals[b"reward_sum"]) == 2.25
    assert float(totals[b"audit/precision"]) == 0.5 and math.isnan(float(totals[b"audit/recall"]))
    events: Any = connection.xrange(KEYS.events)
    told = [json.loads(fields[b"e"]) for _, fields in events]
    assert [each["episode"] for each in told] == ["e1", "e2", "e3", "e1"]
    assert told[2] == {
        "kind": "outcome",
        "episode": "e3",
        "task": "open",
        "done": False,
        "reward": None,
        "masked": True,
        "finish_step": 3,
        "error": "lost",
        "contradicted": None,
    }
    assert connection.ttl(KEYS.events) > 0 and connection.ttl(KEYS.totals) > 0
