"""Checks and encodes what a critic answers, or its failures: what leaves a worker is of the protocol."""

from __future__ import annotations

import math
import reprlib
import traceback
from numbers import Real

import numpy as np

from vlac_queue.errors import ProtocolError
from vlac_queue.messages import (
    MAX_TRACEBACK_CHARS,
    UNNAMED,
    CriticIdentity,
    DoneVerdict,
    Failure,
    Query,
    ValueVerdict,
    encode_answer,
)
from vlac_queue.texts import clean

#: Most characters kept of what an error says.
_MAX_WORDS = 2000


def checked_answer(answer: object, query: Query, critic: CriticIdentity = UNNAMED) -> str:
    """Return a critic's answer encoded, with Python's own numbers in place of numpy's.

    Args:
        critic: who answers; its name travels along, and so counts for the length.

    Raises:
        ProtocolError: it is no answer to this query: of another kind, or a field of a wrong type or out of range.
    """
    verdict = _done(answer, query) if query.kind == "done" else _value(answer)
    return encode_answer(query.id, verdict, critic)


def failure_of(error: BaseException) -> Failure:
    """Return what is told of a critic's error."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    text = clean(text[-MAX_TRACEBACK_CHARS:], MAX_TRACEBACK_CHARS, keep="\n")
    return Failure(f"{type(error).__name__}: {words(error)}"[:_MAX_WORDS], text)


def words(error: BaseException) -> str:
    """Return what an error says, fit for a terminal; a critic's may fail even at that."""
    try:
        return clean(error, _MAX_WORDS, keep="\n")
    except Exception as failed:
        return f"(its text can't be made: {type(failed).__name__})"


def checked_number(number: object, what: str) -> float:
    """Return a critic's number as Python's own.

    Raises:
        ProtocolError: it is none, or not finite.
    """
    number = _item(number)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise ProtocolError(f"{what} must be a number, not {_shown(number)}")
    try:
        if math.isfinite(plain := float(number)):
            return plain
    except OverflowError:
        pass  # an integer beyond any float
    raise ProtocolError(f"{what} is not finite: {_shown(number)}")


def _done(answer: object, query: Query) -> DoneVerdict:
    if not isinstance(answer, DoneVerdict):
        raise ProtocolError(f"a DoneVerdict is wanted, not {_shown(answer)}")
    done = _item(answer.done)
    if not isinstance(done, (bool, np.bool_)):
        raise ProtocolError(f"done must be True or False, not {_shown(done)}")
    score = checked_number(answer.score, "score")
    if not 0 <= score <= 1:
        raise ProtocolError(f"score must be within 0..1, not {score}")
    if checked_number(answer.frame, "frame") != query.frame:
        raise ProtocolError(f"frame must be the query's, {query.frame}, not {_shown(answer.frame)}")
    return DoneVerdict(bool(done), score, query.frame)


def _value(answer: object) -> ValueVerdict:
    if not isinstance(answer, ValueVerdict):
        raise ProtocolError(f"a ValueVerdict is wanted, not {_shown(answer)}")
    values, critics = _numbers(answer.values, "values"), _numbers(answer.critics, "critics")
    if not values:
        raise ProtocolError("values is empty")
    if len(critics) != len(values) - 1:
        raise ProtocolError(f"{len(values)} values want {len(values) - 1} critics, not {len(critics)}")
    return ValueVerdict(values, critics)


def _numbers(numbers: object, what: str) -> tuple[float, ...]:
    if isinstance(numbers, np.ndarray):
        numbers = numbers.tolist()
    if not isinstance(numbers, (list, tuple)):
        raise ProtocolError(f"{what} must be a list of numbers, not {_shown(numbers)}")
    return tuple(checked_number(number, what) for number in numbers)


def _item(thing: object) -> object:
    return thing.item() if isinstance(thing, np.ndarray) and thing.ndim == 0 else thing


def _shown(thing: object) -> str:
    name = type(thing).__name__
    try:
        return f"{reprlib.repr(thing)} ({name})"
    except Exception:  # an integer of thousands of digits, a __repr__ that fails
        return f"one that can't be shown ({name})"
