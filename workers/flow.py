"""A query's way through a worker: taken with its job, prepared for the critic, answered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vlac_queue.errors import ProtocolError
from vlac_queue.messages import MAX_JOB_BYTES, CriticIdentity, Failure, Query, decode_job, encode_answer
from workers.critics import CriticQuery
from workers.envelope import read_envelope
from workers.store import ReadAhead


class JobQuery(NamedTuple):
    """A query with the id of the RQ job that asks it."""

    job: str
    query: Query


@dataclass(frozen=True)
class TakenJob:
    """A job as it stands on Redis.

    Attributes:
        id: the RQ job's id.
        data: its envelope, not unpacked; b"" where the job is gone, None where it exceeds MAX_JOB_BYTES.
        unfit: whether it is no job at all (an id that RQ does not make, a key of a wrong type); dropped already.
        spent: whether workers died with it more often than it may be tried again.
        deaths: the workers that died with it, and when (seconds since 1970 on Redis' clock).
        trying: id of the query that was tried alone last, or "".
        ahead: what was read along with the job, by query id.
    """

    id: str
    data: bytes | None
    unfit: bool = False
    spent: bool = False
    deaths: tuple[tuple[str, float], ...] = ()
    trying: str = ""
    ahead: Mapping[str, ReadAhead] = field(default_factory=dict, repr=False)

    def queries(self) -> list[JobQuery]:
        """Read the queries that the job carries, at least one.

        Raises:
            ProtocolError: it is too large, not for `workers.job.answer`, or of another protocol.
        """
        if self.data is None:
            raise ProtocolError(f"the job's envelope exceeds the limit of {MAX_JOB_BYTES} bytes.")
        return [JobQuery(self.id, query) for query in decode_job(read_envelope(self.data))]


@dataclass(frozen=True)
class Prepared:
    """A query on its way to the critic.

    Attributes:
        job: id of the RQ job that asked.
        query: the query.
        ask: the query with its frames, or the failure met on the way to them; None where nobody waits for
            the answer any more (answered already, closed).
        ttl_s: seconds for which the answer is kept.
        decoding_s: seconds that reading and decoding took, for all that was prepared with it.
        prepared_at: when that was, seconds on time.monotonic.
    """

    job: str
    query: Query
    ask: CriticQuery | Failure | None
    ttl_s: int | None = None
    decoding_s: float = 0.0
    prepared_at: float = field(default_factory=time.monotonic)

    @property
    def nbytes(self) -> int:
        """Bytes of its frames."""
        return self.ask.frames.nbytes if isinstance(self.ask, CriticQuery) else 0

    @property
    def images(self) -> int:
        """About how much work it is: one frame for a done query, all that are compared for a value query."""
        return len(self.ask.frames) if isinstance(self.ask, CriticQuery) else 0


@dataclass(frozen=True)
class Reply:
    """What becomes of a query.

    Attributes:
        to: the query.
        text: the encoded answer; "" where nobody waits for one.
        failure: what the answer says where it is a failure, else "".
    """

    to: Prepared
    text: str = ""
    failure: str = ""

    @classmethod
    def failed(cls, to: Prepared, failure: Failure, critic: CriticIdentity) -> Reply:
        """Return a failure as the answer of `critic`."""
        return cls(to, encode_answer(to.query.id, failure, critic), failure.message)


@dataclass(frozen=True)
class Answered:
    """Replies to queries that the critic got together.

    Attributes:
        replies: one to each query.
        began, ended: when the critic took them and had answered, seconds on Redis' clock.
    """

    replies: Sequence[Reply]
    began: float
    ended: float
