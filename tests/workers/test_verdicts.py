"""What a critic may answer, and what it is told where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlac_queue.errors import ProtocolError
from vlac_queue.messages import (
    MAX_ANSWER_BYTES,
    CriticIdentity,
    DoneVerdict,
    Query,
    ValueVerdict,
    decode_answer,
    encode_answer,
)
from workers.verdicts import checked_answer


def query(kind: Any) -> Query:
    return Query("token-1", "episode", kind, 3, 1, "client", 0.0, 0.0)


@pytest.mark.parametrize(
    ("kind", "answer", "plain"),
    [
        ("done", DoneVerdict(np.bool_(True), np.float32(1), np.int64(3)), DoneVerdict(True, 1.0, 3)),
        ("done", DoneVerdict(False, np.array(0.5), 3), DoneVerdict(False, 0.5, 3)),
        ("done", DoneVerdict(np.array(True), 1.0, 3), DoneVerdict(True, 1.0, 3)),
        ("done", DoneVerdict(False, 0, 3), DoneVerdict(False, 0.0, 3)),
        ("value", ValueVerdict(np.array([1.0, 2.0]), np.ones(1)), ValueVerdict((1.0, 2.0), (1.0,))),
        ("value", ValueVerdict([np.float16(200)], []), ValueVerdict((200.0,), ())),
    ],
)
def test_numbers_of_numpy_are_made_plain(kind: Any, answer: Any, plain: Any) -> None:
    text = checked_answer(answer, query(kind))
    assert text == encode_answer("token-1", plain)
    assert decode_answer(text)[1] == plain


@pytest.mark.parametrize(
    ("kind", "answer", "message"),
    [
        ("done", DoneVerdict(1, 0.5, 3), "done must be True or False, not 1"),
        ("done", DoneVerdict(True, "0.5", 3), "score must be a number, not '0.5'"),
        ("done", DoneVerdict(True, True, 3), "score must be a number, not True"),
        ("done", DoneVerdict(True, np.array([0.5]), 3), "score must be a number"),
        ("done", DoneVerdict(True, 7.0, 3), r"score must be within 0\.\.1, not 7\.0"),
        ("done", DoneVerdict(True, -0.1, 3), r"score must be within 0\.\.1"),
        ("done", DoneVerdict(True, float("nan"), 3), "score is not finite"),
        ("done", DoneVerdict(True, 10**400, 3), "score is not finite"),
        ("done", DoneVerdict(True, 10**5000, 3), "score is not finite"),
        ("done", DoneVerdict(10**5000, 0.5, 3), "done must be True or False"),
        ("done", DoneVerdict(True, 0.5, 10**5000), "frame is not finite"),
        ("done", DoneVerdict(True, 0.5, 2), "frame must be the query's, 3, not 2"),
        ("done", ValueVerdict((1.0,), ()), "a DoneVerdict is wanted, not ValueVerdict"),
        ("done", None, "a DoneVerdict is wanted, not None"),
        ("value", DoneVerdict(True, 0.5, 3), "a ValueVerdict is wanted"),
        ("value", ValueVerdict((), ()), "values is empty"),
        ("value", ValueVerdict(np.zeros(0), ()), "values is empty"),
        ("value", ValueVerdict((1.0, 2.0), ()), "2 values want 1 critics, not 0"),
        ("value", ValueVerdict((1.0, float("inf")), (1.0,)), "values is not finite"),
        ("value", ValueVerdict((1.0, 2.0), (float("nan"),)), "critics is not finite"),
        ("value", ValueVerdict(np.zeros((1, 2)), ()), "values must be a number"),
        ("value", ValueVerdict("12", (1.0,)), "values must be a list of numbers"),
        ("value", ValueVerdict(np.array(["1"]), ()), "values must be a number"),
        ("value", ValueVerdict((1 / 3,) * 200_000, (1 / 3,) * 199_999), "ask about fewer frames"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_reason(kind: Any, answer: Any, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        checked_answer(answer, query(kind))


def test_the_name_of_the_critic_counts_for_the_length() -> None:
    plain = ValueVerdict((0.0,) * 500_000, (0.0,) * 499_999)
    room = MAX_ANSWER_BYTES - len(encode_answer("token-1", plain))
    digits = 0.12345678901234567  # 16 characters more than 0.0
    long = ValueVerdict((digits,) * (room // 16) + (0.0,) * (500_000 - room // 16), plain.critics)
    checked_answer(long, query("value"))
    with pytest.raises(ProtocolError, match="ask about fewer frames"):
        checked_answer(long, query("value"), CriticIdentity("vlac", "/models/InternRobotics/VLAC", "0123456789ab"))
