"""Queries and answers: what is written is read back, and anything else is a ProtocolError."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlac_queue.errors import ProtocolError
from vlac_queue.messages import (
    MAX_JOB_BYTES,
    MAX_TRACEBACK_CHARS,
    Answer,
    DoneVerdict,
    Failure,
    Query,
    ValueVerdict,
    check_id,
    decode_answer,
    decode_job,
    encode_answer,
    encode_job,
)

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
indices = st.integers(0, 2**32 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
queries = st.builds(
    Query,
    id=ids,
    episode=ids,
    token=ids,
    kind=st.sampled_from(["done", "value"]),
    frame=indices,
    batch=indices,
    deadline=numbers,
)
answers = st.one_of(
    st.builds(DoneVerdict, done=st.booleans(), score=st.floats(0, 1), frame=indices),
    st.builds(
        ValueVerdict,
        values=st.lists(numbers, min_size=1, max_size=20).map(tuple),
        critics=st.lists(numbers, max_size=20).map(tuple),
    ),
    st.builds(Failure, message=st.text(), traceback=st.text(max_size=MAX_TRACEBACK_CHARS)),
)

_QUERY = Query(id="tok.1", episode="ep-1", token="tok", kind="done", frame=3, batch=2, deadline=1.5e9)


def job_with(**changes: Any) -> str:
    """A job whose one query has these fields instead of its own."""
    return json.dumps({"v": 1, "queries": [{**asdict(_QUERY), **changes}]})


# What is written is read back.


@given(st.lists(queries, min_size=1, max_size=5))
def test_queries_come_back(asked: list[Query]) -> None:
    text = encode_job(asked)
    assert decode_job(text) == asked
    assert json.loads(text)["v"] == 1


@given(ids, answers)
def test_answers_come_back(query_id: str, answer: Answer) -> None:
    assert decode_answer(encode_answer(query_id, answer)) == (query_id, answer)


def test_a_job_holds_no_frames() -> None:
    assert len(encode_job([_QUERY] * 16)) < 16 * 200


def test_a_long_traceback_keeps_its_end() -> None:
    failure = Failure("it broke", "x" * 100_000 + "ValueError: the reason")
    _, read = decode_answer(encode_answer("q", failure))
    assert isinstance(read, Failure)
    assert len(read.traceback) == MAX_TRACEBACK_CHARS
    assert read.traceback.endswith("ValueError: the reason")


@pytest.mark.parametrize(
    "answer",
    [
        DoneVerdict(True, math.nan, 1),
        DoneVerdict(False, math.inf, 1),
        ValueVerdict((1.0, math.nan), (2.0,)),
        ValueVerdict((1.0,), (-math.inf,)),
    ],
    ids=str,
)
def test_a_number_that_is_not_finite_never_leaves(answer: Answer) -> None:
    with pytest.raises(ProtocolError, match="not finite"):
        encode_answer("q", answer)


# Jobs that are not ours.


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"text"',
        "{",
        "{}",
        '{"v": 1}',
        '{"v": 1, "queries": []}',
        '{"v": 1, "queries": {}}',
        '{"v": 1, "queries": [null]}',
        '{"v": 1, "queries": [[]]}',
        '{"v": 1, "queries": [{}]}',
        "\x00",
        "[" * 100_000,
        '{"v":' * 100_000,
        json.dumps({"v": 1, "queries": [asdict(_QUERY), None]}),
    ],
    ids=lambda text: text[:20] or "empty",
)
def test_a_text_that_is_no_job_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode_job(text)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], 1.5])
def test_another_version_says_what_to_do(version: Any) -> None:
    with pytest.raises(ProtocolError, match="install the same vlac-queue"):
        decode_job(json.dumps({"v": version, "queries": [asdict(_QUERY)]}))


@pytest.mark.parametrize("name", list(asdict(_QUERY)))
def test_every_field_of_a_query_is_needed(name: str) -> None:
    fields = asdict(_QUERY)
    del fields[name]
    with pytest.raises(ProtocolError, match="exactly the fields"):
        decode_job(json.dumps({"v": 1, "queries": [fields]}))


def test_a_field_too_many_is_refused() -> None:
    with pytest.raises(ProtocolError, match="exactly the fields"):
        decode_job(job_with(extra=1))


_BAD_IDS = ["", "a:b", "a\n", "\na", "a b", ".a", "-a", "a/b", "a*", "ü", "x" * 129, 7, None, ["a"], {"a": 1}]


@pytest.mark.parametrize("name", ["id", "episode", "token"])
@pytest.mark.parametrize("value", _BAD_IDS, ids=lambda value: repr(value)[:12])
def test_an_id_that_may_not_stand_in_a_key_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ProtocolError, match="letters, digits"):
        decode_job(job_with(**{name: value}))


@pytest.mark.parametrize("value", _BAD_IDS, ids=lambda value: repr(value)[:12])
def test_check_id_names_what_it_checked(value: Any) -> None:
    with pytest.raises(ProtocolError, match=r"^episode id must be"):
        check_id(value)


@given(ids)
def test_check_id_gives_a_good_id_back(text: str) -> None:
    assert check_id(text) == text


@pytest.mark.parametrize("kind", ["", "Done", "reward", None, 1, [], {}, "done\n"])
def test_an_unknown_kind_is_refused(kind: Any) -> None:
    with pytest.raises(ProtocolError, match="kind must be one of done, value"):
        decode_job(job_with(kind=kind))


@pytest.mark.parametrize("name", ["frame", "batch"])
@pytest.mark.parametrize("value", [-1, 2**32, 10**4000, 1.0, True, "1", None, [1]], ids=lambda v: repr(v)[:12])
def test_an_index_is_a_whole_number_of_32_bits(name: str, value: Any) -> None:
    with pytest.raises(ProtocolError, match=f"{name} must be an index"):
        decode_job(job_with(**{name: value}))


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5000, "true", '"1"',
                                     "null", "[]"], ids=lambda text: text[:12])  # fmt: skip
def test_a_deadline_is_a_finite_number(literal: str) -> None:
    text = job_with(deadline="HERE").replace('"HERE"', literal)
    with pytest.raises(ProtocolError):
        decode_job(text)


def test_a_job_above_the_limit_is_refused_before_it_is_read() -> None:
    # Not even JSON: were it read first, the message would be another.
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        decode_job("x" * (MAX_JOB_BYTES + 1))


def test_error_messages_do_not_repeat_a_whole_hostile_text() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_job(job_with(episode="x" * 1_000_000))
    assert len(str(caught.value)) < 1000


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)),
       st.sampled_from([decode_job, decode_answer]))  # fmt: skip
def test_any_json_is_read_or_refused(value: Any, decode: Any) -> None:
    for message in (value, {"v": 1, "queries": [value]}, {"id": "q", "kind": "done", "score": value}):
        with pytest.raises(ProtocolError):
            decode(json.dumps(message))


# Answers that are none.

_DONE = {"id": "q", "kind": "done", "done": True, "score": 0.5, "frame": 3}
_VALUE = {"id": "q", "kind": "value", "values": [1.0, 2.0], "critics": [0.5]}


def test_the_answers_below_are_wrong_in_one_thing_only() -> None:
    assert decode_answer(json.dumps(_DONE)) == ("q", DoneVerdict(True, 0.5, 3))
    assert decode_answer(json.dumps(_VALUE)) == ("q", ValueVerdict((1.0, 2.0), (0.5,)))


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {},
        {**_DONE, "id": None},
        {**_DONE, "id": 5},
        {**_DONE, "kind": None},
        {**_DONE, "kind": "reward"},
        {**_DONE, "kind": ["done"]},
        {**_DONE, "done": 1},
        {**_DONE, "done": "true"},
        {**_DONE, "done": None},
        {**_DONE, "score": None},
        {**_DONE, "score": "0.5"},
        {**_DONE, "score": True},
        {**_DONE, "score": math.nan},
        {**_DONE, "score": math.inf},
        {**_DONE, "score": 10**400},
        {**_DONE, "frame": None},
        {**_DONE, "frame": 1.5},
        {**_DONE, "frame": "3"},
        {key: value for key, value in _DONE.items() if key != "score"},
        {key: value for key, value in _DONE.items() if key != "frame"},
        {**_VALUE, "values": []},
        {**_VALUE, "values": None},
        {**_VALUE, "values": "12"},
        {**_VALUE, "values": [1.0, None]},
        {**_VALUE, "values": [1.0, math.nan]},
        {**_VALUE, "values": [1.0, math.inf]},
        {**_VALUE, "values": [True]},
        {**_VALUE, "critics": None},
        {**_VALUE, "critics": ["1"]},
        {**_VALUE, "critics": [math.nan]},
    ],
    ids=str,
)
def test_a_malformed_answer_is_refused(message: Any) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(json.dumps(message))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"id":' + "9" * 5000 + "}"], ids=lambda text: text[:8])
def test_a_text_that_is_no_answer_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(text)


@pytest.mark.parametrize(
    "message",
    [
        {**_DONE, "frame": -1},
        {**_DONE, "frame": True},
        {"id": "q", "kind": "failure"},
        {"id": "q", "kind": "failure", "message": None, "traceback": 5},
    ],
    ids=str,
)
def test_a_malformed_answer_is_refused_too(message: Any) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(json.dumps(message))
