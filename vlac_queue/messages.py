"""What crosses Redis besides frames: queries in a job, answers in a stream. JSON texts, checked when read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from vlac_queue.errors import ProtocolError

PROTOCOL_VERSION = 1

#: The only function that our workers answer; its one argument is the text made by `encode_job`.
JOB_FUNCTION = "workers.job.answer"

#: Most bytes of a job's text: about 20,000 queries.
MAX_JOB_BYTES = 4 << 20
#: Most bytes of one answer: a value list of 100,000 frames.
MAX_ANSWER_BYTES = 4 << 20
#: Most characters of a task's text.
MAX_TASK_CHARS = 2_000
#: Most characters kept of a worker's traceback: the end, where the error stands.
MAX_TRACEBACK_CHARS = 4_000

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Kind = Literal["done", "value"]
_KINDS = ("done", "value")


def check_id(text: Any, what: str = "episode id") -> str:
    """`text`, if it may stand in a key.

    Raises:
        ProtocolError: it is not 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit.
    """
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise ProtocolError(f"{what} must be 1 to 128 letters, digits, '.', '_' or '-', not {str(text)[:140]!r}.")
    return text


@dataclass(frozen=True)
class Query:
    """One question about one episode.

    Attributes:
        id: unique, also among episodes that used the same id before: it begins with `token`.
        episode: the episode's id.
        token: made anew at each opening of an episode.
        kind: "done" (is the task done in frame `frame`?) or "value" (the value list over frames 0..`frame`).
        frame: index of the frame that the query is about: the last of batch `batch`.
        batch: index of the encoded batch that ends with that frame.
        deadline: seconds since 1970 on Redis' clock; a worker no longer answers afterwards.
    """

    id: str
    episode: str
    token: str
    kind: Kind
    frame: int
    batch: int
    deadline: float


@dataclass(frozen=True)
class DoneVerdict:
    """The critic's answer to "is the task done?".

    Attributes:
        done: whether the score is above the threshold.
        score: the critic's score, 0..1.
        frame: index within the episode of the frame that it is about.
    """

    done: bool
    score: float
    frame: int


@dataclass(frozen=True)
class ValueVerdict:
    """The critic's value list over an episode.

    Attributes:
        values: nominally 0..100, one for each frame looked at; the last is the episode's value. The critic
            does not bound them: the training rule clips.
        critics: the pair-wise scores they were made from, nominally -100..100, one fewer than `values`.
    """

    values: tuple[float, ...]
    critics: tuple[float, ...]


@dataclass(frozen=True)
class Failure:
    """A query that the worker could not answer.

    Attributes:
        message: what went wrong and what to do.
        traceback: the worker's, or "".
    """

    message: str
    traceback: str = ""


Answer: TypeAlias = "DoneVerdict | ValueVerdict | Failure"


def encode_job(queries: Sequence[Query]) -> str:
    """The text that is a job's one argument."""
    return json.dumps(
        {"v": PROTOCOL_VERSION, "queries": [vars(query) for query in queries]}, separators=(",", ":")
    )


def decode_job(text: str) -> list[Query]:
    """The queries of a job.

    Raises:
        ProtocolError: the text is too long, not JSON, of another version, or a field is missing or wrong.
    """
    if len(text) > MAX_JOB_BYTES:
        raise ProtocolError(f"a job of {len(text)} characters exceeds the limit of {MAX_JOB_BYTES}.")
    message = _load(text, "job")
    version = message.get("v")
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the job is of protocol version {str(version)[:20]}, this worker speaks {PROTOCOL_VERSION}; "
            "install the same vlac-queue on rollouts and workers."
        )
    queries = message.get("queries")
    if not isinstance(queries, list) or not queries:
        raise ProtocolError("the job holds no list of queries.")
    return [_query(fields) for fields in queries]


def encode_answer(query_id: str, answer: Answer) -> str:
    """The text of an answer as it stands in the episode's stream.

    Raises:
        ProtocolError: a number of the verdict is not finite; no such answer ever leaves a worker.
    """
    kind = {DoneVerdict: "done", ValueVerdict: "value", Failure: "failure"}[type(answer)]
    fields = asdict(answer)
    if isinstance(answer, Failure):
        fields["traceback"] = answer.traceback[-MAX_TRACEBACK_CHARS:]
    try:
        return json.dumps({"id": query_id, "kind": kind, **fields}, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise ProtocolError(f"the critic answered a number that is not finite: {str(answer)[:200]}") from None


def decode_answer(text: str) -> tuple[str, Answer]:
    """Query id and answer.

    Raises:
        ProtocolError: the text is no answer of this protocol.
    """
    if len(text) > MAX_ANSWER_BYTES:
        raise ProtocolError(f"an answer of {len(text)} characters exceeds the limit of {MAX_ANSWER_BYTES}.")
    message = _load(text, "answer")
    query_id = check_id(message.get("id"), "query id")
    kind = message.get("kind")
    if kind == "done" and isinstance(message.get("done"), bool):
        return query_id, DoneVerdict(message["done"], _number(message.get("score")), _index(message, "frame"))
    if kind == "value" and isinstance(message.get("values"), list) and isinstance(message.get("critics"), list):
        values, critics = (tuple(map(_number, message[name])) for name in ("values", "critics"))
        if values:
            return query_id, ValueVerdict(values, critics)
    if kind == "failure" and isinstance(message.get("message"), str) and isinstance(message.get("traceback"), str):
        return query_id, Failure(message["message"], message["traceback"])
    raise ProtocolError(f"an answer is not of this protocol: {text[:200]}")


def _query(fields: Any) -> Query:
    if not isinstance(fields, dict) or set(fields) != set(Query.__dataclass_fields__):
        raise ProtocolError(f"a query must have exactly the fields {', '.join(Query.__dataclass_fields__)}.")
    if fields["kind"] not in _KINDS:
        raise ProtocolError(
            f"a query's kind must be one of {', '.join(_KINDS)}, not {str(fields['kind'])[:40]!r}."
        )
    return Query(
        id=check_id(fields["id"], "query id"),
        episode=check_id(fields["episode"]),
        token=check_id(fields["token"], "token"),
        kind=fields["kind"],
        frame=_index(fields, "frame"),
        batch=_index(fields, "batch"),
        deadline=_number(fields["deadline"]),
    )


def _index(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is int and 0 <= value < 2**32:
        return value
    raise ProtocolError(f"{name} must be an index within 0..2**32-1, not {type(value).__name__}.")


def _number(value: Any) -> float:
    try:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass  # an integer beyond any float: refused like the rest
    raise ProtocolError(f"expected a finite number, not {type(value).__name__}.")


def _load(text: str, what: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the {what} is not JSON ({error}).") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"the {what} is not a JSON object.")
    return message
