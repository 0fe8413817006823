"""What crosses Redis besides frames: queries in a job, answers. JSON texts, checked when read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from vlac_queue.errors import ProtocolError

PROTOCOL_VERSION = 2

#: The only function that our workers answer; its one argument is the text made by `encode_job`.
JOB_FUNCTION = "workers.job.answer"

#: Most bytes of a job's text: about 20,000 queries.
MAX_JOB_BYTES = 4 << 20
#: Most bytes of one answer: a value list of 100,000 frames.
MAX_ANSWER_BYTES = 4 << 20
#: Most characters of a task's text.
MAX_TASK_CHARS = 2_000
#: Most queries of one job, and most answers written at once.
MAX_JOB_QUERIES = 4096
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
    if not is_id(text):
        raise ProtocolError(f"{what} must be 1 to 128 letters, digits, '.', '_' or '-', not {str(text)[:140]!r}.")
    return str(text)


def is_id(text: Any) -> bool:
    """Whether `text` may stand in a key."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Query:
    """One question about one episode.

    Attributes:
        id: `token`, "-" and a number: unique, also among episodes that used the same id before.
        episode: the episode's id.
        kind: "done" (is the task done in frame `frame`?) or "value" (the value list over frames 0..`frame`).
        frame: index of the frame that the query is about: the last of batch `batch`.
        batch: index of the encoded batch that ends with that frame.
        client: id of the client that asks; its answers go there.
        asked: seconds since 1970 on Redis' clock.
        deadline: likewise; a worker no longer answers afterwards.
    """

    id: str
    episode: str
    kind: Kind
    frame: int
    batch: int
    client: str
    asked: float
    deadline: float

    @property
    def token(self) -> str:
        """Made anew at each opening of an episode."""
        return self.id.rpartition("-")[0]


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
_ANSWER_KINDS = {DoneVerdict: "done", ValueVerdict: "value", Failure: "failure"}


@dataclass(frozen=True)
class CriticIdentity:
    """Which critic answered.

    Attributes:
        name: such as "vlac" or "reference".
        model: folder or hub name of its weights, or "".
        prompt: a short hash of its prompts, or "".
    """

    name: str = ""
    model: str = ""
    prompt: str = ""


UNNAMED = CriticIdentity()


def encode_job(queries: Sequence[Query]) -> str:
    """The text that is a job's one argument; `queries` are of one client, asked at once."""
    first = queries[0]
    return json.dumps(
        {
            "v": PROTOCOL_VERSION,
            "client": first.client,
            "asked": first.asked,
            "deadline": first.deadline,
            "queries": [[query.id, query.episode, query.kind, query.frame, query.batch] for query in queries],
        },
        separators=(",", ":"),
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
    if not isinstance(queries, list) or not 1 <= len(queries) <= MAX_JOB_QUERIES:
        raise ProtocolError(f"a job must hold a list of 1 to {MAX_JOB_QUERIES} queries.")
    client = check_id(message.get("client"), "client id")
    asked, deadline = _time(message.get("asked")), _time(message.get("deadline"))
    return [_query(fields, client, asked, deadline) for fields in queries]


def encode_answer(query_id: str, answer: Answer, critic: CriticIdentity = UNNAMED) -> str:
    """The text of an answer, as it stands in the client's stream and with the episode.

    Raises:
        ProtocolError: a number of the verdict is not finite, or there are too many; no such answer ever leaves
            a worker.
    """
    fields: dict[str, Any] = {"id": query_id, "kind": _ANSWER_KINDS[type(answer)], **vars(answer)}
    if isinstance(answer, Failure):
        fields["traceback"] = answer.traceback[-MAX_TRACEBACK_CHARS:]
    fields["critic"] = [critic.name, critic.model, critic.prompt]
    try:
        text = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise ProtocolError(f"the critic answered a number that is not finite: {str(answer)[:200]}") from None
    if len(text) > MAX_ANSWER_BYTES:
        raise ProtocolError(
            f"the answer takes {len(text)} characters, over {MAX_ANSWER_BYTES}; ask about fewer frames."
        )
    return text


def decode_answer(text: str) -> tuple[str, Answer, CriticIdentity]:
    """Query id, answer, and who gave it.

    Raises:
        ProtocolError: the text is no answer of this protocol, or holds bytes that are no UTF-8 (as surrogates).
    """
    if len(text) > MAX_ANSWER_BYTES:
        raise ProtocolError(f"an answer of {len(text)} characters exceeds the limit of {MAX_ANSWER_BYTES}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ProtocolError(f"an answer is not UTF-8: {text[:200]!r}") from None
    message = _load(text, "answer")
    query_id = check_id(message.get("id"), "query id")
    kind, critic = message.get("kind"), message.get("critic")
    if isinstance(critic, list) and len(critic) == 3 and all(isinstance(each, str) for each in critic):
        identity = CriticIdentity(*map(_printable, critic))
        if kind == "done" and isinstance(message.get("done"), bool):
            verdict = DoneVerdict(message["done"], _number(message.get("score")), _index(message, "frame"))
            return query_id, verdict, identity
        if kind == "value" and all(isinstance(message.get(name), list) for name in ("values", "critics")):
            values, critics = (tuple(map(_number, message[name])) for name in ("values", "critics"))
            if values:
                return query_id, ValueVerdict(values, critics), identity
        if kind == "failure" and all(isinstance(message.get(name), str) for name in ("message", "traceback")):
            texts = (_printable(message[name]) for name in ("message", "traceback"))
            return query_id, Failure(*texts), identity
    raise ProtocolError(f"an answer is not of this protocol: {text[:200]!r}")


def _printable(text: str) -> str:
    """The text with lone surrogates escaped, such as stand in names of files: no terminal or log takes them."""
    return text.encode(errors="backslashreplace").decode()


def _query(fields: Any, client: str, asked: float, deadline: float) -> Query:
    if not isinstance(fields, list) or len(fields) != 5:
        raise ProtocolError("a query must be a list of id, episode, kind, frame and batch.")
    query_id, episode, kind, frame, batch = fields
    if kind not in _KINDS:
        raise ProtocolError(f"a query's kind must be one of {', '.join(_KINDS)}, not {str(kind)[:40]!r}.")
    query = Query(
        id=check_id(query_id, "query id"),
        episode=check_id(episode),
        kind=kind,
        frame=_checked_index(frame, "frame"),
        batch=_checked_index(batch, "batch"),
        client=client,
        asked=asked,
        deadline=deadline,
    )
    if not query.token:
        raise ProtocolError(f"a query id must be a token, '-' and a number, not {query_id!r}.")
    return query


def _index(fields: dict[str, Any], name: str) -> int:
    return _checked_index(fields.get(name), name)


def _checked_index(value: Any, name: str) -> int:
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


def _time(value: Any) -> float:
    seconds = _number(value)
    if not 0 <= seconds <= 1e11:
        raise ProtocolError("a time must be in seconds since 1970.")
    return seconds


def _load(text: str, what: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the {what} is not JSON ({error}).") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"the {what} is not a JSON object.")
    return message
