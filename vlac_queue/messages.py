"""What crosses Redis besides frames: queries in a job, answers. JSON texts, checked when read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct, structs

from vlac_queue.errors import ProtocolError

PROTOCOL_VERSION: Final = 2

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

_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_IS_ID = re.compile(_ID)
ID_WORDS = "1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
INDEX_WORDS = "an index within 0..2**32-1"

Kind = Literal["done", "value"]
#: May stand in a key; "" may stand for no id in `OptionalId`.
Id = Annotated[str, Meta(pattern=rf"\A{_ID}\Z")]
OptionalId = Annotated[str, Meta(pattern=rf"\A({_ID})?\Z")]
Index = Annotated[int, Meta(ge=0, lt=2**32)]
Values = Annotated[tuple[float, ...], Meta(min_length=1)]
_QueryId = Annotated[str, Meta(pattern=rf"\A(?=.+-){_ID}\Z")]
_Time = Annotated[float, Meta(ge=0, le=1e11)]

T = TypeVar("T")


def check_id(text: Any, what: str = "episode id") -> str:
    """Return `text`, if it may stand in a key.

    Raises:
        ProtocolError: it is not 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit.
    """
    if not is_id(text):
        raise ProtocolError(f"{what} must be {ID_WORDS}, not {str(text)[:140]!r}.")
    return str(text)


def is_id(text: Any) -> bool:
    """Return whether `text` may stand in a key."""
    return isinstance(text, str) and _IS_ID.fullmatch(text) is not None


class Query(Struct, frozen=True):
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
        """Return what is made anew at each opening of an episode."""
        return self.id.rpartition("-")[0]


class DoneVerdict(Struct, frozen=True, tag_field="kind", tag="done"):
    """The critic's answer to "is the task done?".

    Attributes:
        done: whether the score is above the threshold.
        score: the critic's score, 0..1.
        frame: index within the episode of the frame that it is about.
    """

    done: bool
    score: float
    frame: Index


class ValueVerdict(Struct, frozen=True, tag_field="kind", tag="value"):
    """The critic's value list over an episode.

    Attributes:
        values: nominally 0..100, one for each frame looked at; the last is the episode's value. The critic
            does not bound them: the training rule clips.
        critics: the pair-wise scores they were made from, nominally -100..100, one fewer than `values`.
    """

    values: Values
    critics: tuple[float, ...]


class Failure(Struct, frozen=True, tag_field="kind", tag="failure"):
    """A query that the worker could not answer.

    Attributes:
        message: what went wrong and what to do.
        traceback: the worker's, or "".
    """

    message: str
    traceback: str = ""


Answer: TypeAlias = DoneVerdict | ValueVerdict | Failure


class CriticIdentity(Struct, frozen=True):
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


class _Job(Struct, frozen=True):
    """A job's text. `queries` hold what differs between them: id, episode, kind, frame and batch."""

    v: Literal[2]
    client: Id
    asked: _Time
    deadline: _Time
    queries: Annotated[
        list[tuple[_QueryId, Id, Kind, Index, Index]], Meta(min_length=1, max_length=MAX_JOB_QUERIES)
    ]


class _About(Struct, frozen=True):
    """What an answer's text says besides the answer."""

    id: Id
    critic: tuple[str, str, str]


#: What must stand where in a job; where nothing is said here, msgspec's own words do.
_JOB_WORDS = {
    "": 'the job is not JSON of the form {"v": 2, ...}',
    "v": f"this worker speaks protocol version {PROTOCOL_VERSION}; install the same vlac-queue on both sides",
    "client": f"client id must be {ID_WORDS}",
    "asked": "asked must be in seconds since 1970",
    "deadline": "deadline must be in seconds since 1970",
    "queries": f"a job must hold a list of 1 to {MAX_JOB_QUERIES} queries",
    "queries[][0]": f"query id must be a token, '-' and a number, in {ID_WORDS}",
    "queries[][1]": f"episode id must be {ID_WORDS}",
    "queries[][2]": "kind must be one of done, value",
    "queries[][3]": f"frame must be {INDEX_WORDS}",
    "queries[][4]": f"batch must be {INDEX_WORDS}",
}
_ANSWER_WORDS = dict.fromkeys(("score", "values[]", "critics[]"), "expected a finite number")

_JOB = msgspec.json.Decoder(_Job)
_ABOUT = msgspec.json.Decoder(_About)
_ANSWER: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


#: The place that an error of msgspec's names: a missing field, or the path of a wrong one.
_PLACE = re.compile(r"field `(\w+)`|at `\$\.?(.*)`\Z")
#: Escapes in JSON: pairs of surrogates, half a pair, others.
_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u[dD][89a-fA-F]..|\\.", re.DOTALL)


def encode_job(queries: Sequence[Query]) -> str:
    """Return the text that is a job's one argument; `queries` are of one client, asked at once."""
    first = queries[0]
    job = {
        "v": PROTOCOL_VERSION,
        "client": first.client,
        "asked": first.asked,
        "deadline": first.deadline,
        "queries": [(query.id, query.episode, query.kind, query.frame, query.batch) for query in queries],
    }
    return msgspec.json.encode(job).decode()


def decode_job(text: str) -> list[Query]:
    """Return the queries of a job.

    Raises:
        ProtocolError: the text is too long, not JSON, of another version, or a field is missing or wrong.
    """
    if len(text) > MAX_JOB_BYTES:
        raise ProtocolError(f"a job of {len(text)} characters exceeds the limit of {MAX_JOB_BYTES}.")
    job = read_json(_JOB, text, "job", _JOB_WORDS)
    return [Query(*fields, job.client, job.asked, job.deadline) for fields in job.queries]


def encode_answer(query_id: str, answer: Answer, critic: CriticIdentity = UNNAMED) -> str:
    """Return the text of an answer, as it stands in the client's stream and with the episode.

    Raises:
        ProtocolError: a number of the verdict is not finite, or there are too many; no such answer ever leaves
            a worker.
    """
    fields = {"id": query_id, "kind": answer.__struct_config__.tag, **structs.asdict(answer)}
    if isinstance(answer, Failure):
        fields["message"] = _printable(answer.message)
        fields["traceback"] = _printable(answer.traceback[-MAX_TRACEBACK_CHARS:])
    else:
        numbers = (answer.score,) if isinstance(answer, DoneVerdict) else (*answer.values, *answer.critics)
        if not all(map(math.isfinite, numbers)):  # msgspec would write null
            raise ProtocolError(f"the critic answered a number that is not finite: {str(answer)[:200]}")
    fields["critic"] = [_printable(name) for name in structs.astuple(critic)]
    text = msgspec.json.encode(fields).decode()
    if len(text) > MAX_ANSWER_BYTES:
        raise ProtocolError(
            f"the answer takes {len(text)} characters, over {MAX_ANSWER_BYTES}; ask about fewer frames."
        )
    return text


def decode_answer(text: str) -> tuple[str, Answer, CriticIdentity]:
    """Return query id, answer, and who gave it.

    Raises:
        ProtocolError: the text is no answer of this protocol, or holds bytes that are no UTF-8 (as surrogates).
    """
    if len(text) > MAX_ANSWER_BYTES:
        raise ProtocolError(f"an answer of {len(text)} characters exceeds the limit of {MAX_ANSWER_BYTES}.")
    about = read_json(_ABOUT, text, "answer", {})
    return about.id, read_json(_ANSWER, text, "answer", _ANSWER_WORDS), CriticIdentity(*about.critic)


def read_json(decoder: msgspec.json.Decoder[T], text: str, what: str, words: Mapping[str, str]) -> T:
    """Return what a JSON text from outside holds, of the decoder's type.

    Args:
        what: name of the text, for errors.
        words: what must stand in a field, by its path ("" the whole, "[]" a list's item), for errors.

    Raises:
        ProtocolError: the text is not UTF-8, not JSON, or not of that type.
    """
    try:
        return _decoded(decoder, text)
    except UnicodeEncodeError:
        raise ProtocolError(f"the {what} is not UTF-8: {text[:200]!r}") from None
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        path = re.sub(r"\[\d+\]", "[]", place[1] or place[2], count=1) if place else ""
        wrong = words.get(path, f"the {what} is not of this protocol")
        raise ProtocolError(f"{wrong} ({str(error)[:200]}): {text[:200]!r}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"the {what} is not JSON with finite numbers ({error}).") from None


def _decoded(decoder: msgspec.json.Decoder[T], text: str) -> T:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # JSON may escape half a pair of surrogates, such as stands in names of files; msgspec takes none. It is
        # read as the text of its escape.
        return decoder.decode(_ESCAPE.sub(lambda each: "\\" * (len(each[0]) == 6) + each[0], text))


def _printable(text: str) -> str:
    """Return the text with lone surrogates escaped, such as stand in names of files: no terminal takes them."""
    return text.encode(errors="backslashreplace").decode()
