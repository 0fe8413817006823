"""Queries and answers: what is written is read back, and anything else is a ProtocolError."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlac_queue.errors import ProtocolError
from vlac_queue.messages import (
    MAX_JOB_BYTES,
    MAX_JOB_QUERIES,
    MAX_TRACEBACK_CHARS,
    Answer,
    CriticIdentity,
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
times = st.floats(0, 1e11)
query_ids = st.builds("{}-{}".format, st.from_regex(r"[0-9a-f]{12}", fullmatch=True), st.integers(1, 10**6))
kinds = st.sampled_from(["done", "value"])
jobs = st.builds(
    lambda fields, client, asked, deadline: [Query(*each, client, asked, deadline) for each in fields],
    st.lists(
        st.tuples(query_ids, ids, st.sampled_from(["done", "value"]), indices, indices), min_size=1, max_size=5
    ),
    ids,
    times,
    times,
)
identities = st.builds(CriticIdentity, name=st.text(), model=st.text(), prompt=st.text())
answers = st.one_of(
    st.builds(DoneVerdict, done=st.booleans(), score=st.floats(0, 1), frame=indices),
    st.builds(
        ValueVerdict,
        values=st.lists(numbers, min_size=1, max_size=20).map(tuple),
        critics=st.lists(numbers, max_size=20).map(tuple),
    ),
    st.builds(Failure, message=st.text(), traceback=st.text(max_size=MAX_TRACEBACK_CHARS)),
)

_QUERY = Query("tok-1", "ep-1", "done", 3, 2, client="c1", asked=1.4e9, deadline=1.5e9)
_FIELDS = ("id", "episode", "kind", "frame", "batch")


def job_with(**changes: Any) -> str:
    """A job of one query, in which these fields of the query or the job are others."""
    job = {"v": 2, "client": "c1", "asked": 1.4e9, "deadline": 1.5e9}
    query = [changes.pop(name, getattr(_QUERY, name)) for name in _FIELDS]
    return json.dumps({**job, "queries": [query], **changes})


# What is written is read back.


@given(jobs)
def test_queries_come_back(asked: list[Query]) -> None:
    text = encode_job(asked)
    assert decode_job(text) == asked
    assert json.loads(text)["v"] == 2


@given(ids, answers, identities)
def test_answers_come_back(query_id: str, answer: Answer, critic: CriticIdentity) -> None:
    assert decode_answer(encode_answer(query_id, answer, critic)) == (query_id, answer, critic)


def test_the_job_that_the_tests_below_change_is_right() -> None:
    assert decode_job(job_with()) == [_QUERY]
    assert _QUERY.token == "tok"


def test_a_job_holds_no_frames() -> None:
    assert len(encode_job([_QUERY] * 16)) < 16 * 50 + 100


def test_a_long_traceback_keeps_its_end() -> None:
    failure = Failure("it broke", "x" * 100_000 + "ValueError: the reason")
    _, read, _ = decode_answer(encode_answer("q", failure))
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
        '{"v": 2}',
        job_with(queries=[]),
        job_with(queries={}),
        job_with(queries=[None]),
        job_with(queries=[[]]),
        job_with(queries=[{}]),
        job_with(queries=[["tok-1", "ep-1", "done", 3]]),
        job_with(queries=[["tok-1", "ep-1", "done", 3, 2, 1]]),
        job_with(queries=[["tok-1", "ep-1", "done", 3, 2], None]),
        job_with(queries=[["tok-1", "ep-1", "done", 3, 2]] * (MAX_JOB_QUERIES + 1)),
        "\x00",
        "[" * 100_000,
        '{"v":' * 100_000,
    ],
    ids=lambda text: text[:20] or "empty",
)
def test_a_text_that_is_no_job_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode_job(text)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, [2], 2.5])
def test_another_version_says_what_to_do(version: Any) -> None:
    with pytest.raises(ProtocolError, match="install the same vlac-queue"):
        decode_job(job_with(v=version))


@pytest.mark.parametrize("name", ["client", "asked", "deadline", "queries"])
def test_every_field_of_a_job_is_needed(name: str) -> None:
    job = json.loads(job_with())
    del job[name]
    with pytest.raises(ProtocolError):
        decode_job(json.dumps(job))


@pytest.mark.parametrize("query_id", ["tok", "1"])
def test_a_query_id_begins_with_its_token(query_id: str) -> None:
    with pytest.raises(ProtocolError, match="a token"):
        decode_job(job_with(id=query_id))


_BAD_IDS = ["", "a:b", "a\n", "\na", "a b", ".a", "-a", "a/b", "a*", "ü", "x" * 129, 7, None, ["a"], {"a": 1}]


@pytest.mark.parametrize("name", ["id", "episode", "client"])
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
@pytest.mark.parametrize("name", ["asked", "deadline"])
def test_times_are_finite_numbers(name: str, literal: str) -> None:
    text = job_with(**{name: "HERE"}).replace('"HERE"', literal)
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
    for text in (json.dumps(value), job_with(queries=[value]), json.dumps({**_DONE, "done": value, "frame": "x"})):
        with pytest.raises(ProtocolError):
            decode(text)


# Answers that are none.

_WHO = ["vlac", "/models/VLAC", "ab12"]
_DONE = {"id": "q", "kind": "done", "done": True, "score": 0.5, "frame": 3, "critic": _WHO}
_VALUE = {"id": "q", "kind": "value", "values": [1.0, 2.0], "critics": [0.5], "critic": _WHO}
_FAILURE = {"id": "q", "kind": "failure", "message": "it broke", "traceback": "", "critic": _WHO}


def test_the_answers_below_are_wrong_in_one_thing_only() -> None:
    who = CriticIdentity(*_WHO)
    assert decode_answer(json.dumps(_DONE)) == ("q", DoneVerdict(True, 0.5, 3), who)
    assert decode_answer(json.dumps(_VALUE)) == ("q", ValueVerdict((1.0, 2.0), (0.5,)), who)
    assert decode_answer(json.dumps(_FAILURE)) == ("q", Failure("it broke"), who)


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
        {**_DONE, "critic": None},
        {**_DONE, "critic": "vlac"},
        {**_DONE, "critic": ["vlac", ""]},
        {**_DONE, "critic": ["vlac", "", 7]},
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
        {**_FAILURE, "message": None},
        {**_FAILURE, "traceback": 5},
    ],
    ids=str,
)
def test_a_malformed_answer_is_refused_too(message: Any) -> None:
    with pytest.raises(ProtocolError):
        decode_answer(json.dumps(message))


def test_half_a_pair_of_surrogates_is_read_as_its_escape() -> None:
    half = {
        **_FAILURE,
        "message": "caf\udce9 \\udce9 \U0001f600",
        "traceback": "\ud800",
        "critic": ["\udc80", "", ""],
    }
    failure = Failure("caf\\udce9 \\udce9 \U0001f600", "\\ud800")
    assert decode_answer(json.dumps(half)) == ("q", failure, CriticIdentity("\\udc80"))
    text = encode_answer("q", Failure(half["message"], half["traceback"]), CriticIdentity("\udc80"))
    assert decode_answer(text) == ("q", failure, CriticIdentity("\\udc80"))
    with pytest.raises(ProtocolError, match="not UTF-8"):
        decode_answer(json.dumps(half, ensure_ascii=False))
