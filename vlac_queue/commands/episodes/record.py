"""What is known of an episode: from Redis while it is open, from a decision log afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlac_queue.commands.episodes.marks import Mark
from vlac_queue.errors import ProtocolError
from vlac_queue.frames import Base, Frames, follow
from vlac_queue.messages import Answer, CriticIdentity, DoneVerdict, Failure, Kind, ValueVerdict
from vlac_queue.plot import cut
from vlac_queue.texts import MAX_TEXT

#: Most ids that an error lists.
_TOLD = 10


@dataclass(frozen=True)
class Asked:
    """A query and what came of it."""

    kind: Kind
    answer: Answer | None  # None while it is on its way
    frame: int | None  # index of the one that it is about; None where that is not known (value queries on Redis)
    critic: CriticIdentity | None = None  # who answered; None where nobody did
    sha256: str = ""  # of the pixels of that frame, as the client saw them; "" where they were not logged


@dataclass(frozen=True)
class EpisodeRecord:
    """An episode and its queries, in the order in which they were asked (on Redis) or answered (in a log)."""

    id: str
    token: str  # tells it from others of the same id; "" on Redis
    task: str
    reference: str  # id (SHA-256) of its reference frames, or ""
    done_threshold: float
    value_stride: int
    asked: tuple[Asked, ...] = ()
    frames: int | None = None  # how many; None where a log does not say (its client died, or still runs)
    truth_known: bool = False  # whether the log has the simulator's word
    truth: int | None = None  # the first frame that the simulator calls done; None: none of them
    mark: Mark | None = None  # a person's word; None where there is none
    opened: float | None = None  # seconds since 1970 on the client's clock; None on Redis
    writer: Path | None = None  # folder of the client that logged it; None on Redis

    @property
    def done_verdicts(self) -> dict[int, DoneVerdict]:
        """Return the verdict about each frame asked about, by frame; the last one where it was asked again."""
        answers = [query.answer for query in self.asked if isinstance(query.answer, DoneVerdict)]
        return dict(sorted({answer.frame: answer for answer in answers}.items()))

    @property
    def first_done(self) -> int | None:
        """Return the first frame that the critic found done."""
        return next((frame for frame, verdict in self.done_verdicts.items() if verdict.done), None)

    @property
    def value(self) -> ValueVerdict | None:
        """Return the last value list."""
        lists = [query.answer for query in self.asked if isinstance(query.answer, ValueVerdict)]
        return lists[-1] if lists else None

    @property
    def failures(self) -> list[Asked]:
        """Return the queries that failed."""
        return [query for query in self.asked if isinstance(query.answer, Failure)]

    @property
    def pending(self) -> int:
        """Return how many queries have no answer, as far as is known."""
        return sum(query.answer is None for query in self.asked)

    @property
    def critics(self) -> list[CriticIdentity]:
        """Return who answered, each once."""
        return list(dict.fromkeys(query.critic for query in self.asked if query.critic is not None))


def described(critics: Iterable[CriticIdentity], most: int = MAX_TEXT) -> str:
    """Return critics in words: name, model (its first `most` characters), and the hash of the prompts."""
    said = (
        (critic.name, cut(critic.model, most), critic.prompt and f"(prompts {critic.prompt})")
        for critic in critics
    )
    return ", ".join(" ".join(filter(None, parts)) for parts in said)


def one_of(ids: Iterable[str], start: str) -> str | None:
    """Return the only one of several ids; None where there is none.

    Args:
        ids: those that begin with `start`; the same one may come more than once.

    Raises:
        ProtocolError: there are several; the message lists them.
    """
    found = sorted(set(ids))
    if len(found) > 1:
        more = f" and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
        raise ProtocolError(
            f"{len(found)} episodes have ids that begin with {start!r}: {', '.join(found[:_TOLD])}{more}; "
            "give more of it."
        )
    return found[0] if found else None


def decoded(batches: Iterable[bytes]) -> Iterator[tuple[int, Frames]]:
    """Yield the frames of an episode batch by batch, one batch in memory at a time.

    Args:
        batches: its encoded batches, from the first one on.

    Yields:
        Index of the batch's first frame, and the batch, uint8 (T,H,W,3).

    Raises:
        FrameError: a batch is damaged, missing or out of order.
    """
    first = 0
    base: Base | None = None
    for payload in batches:
        (batch,) = follow([payload], first=first)
        frames = batch.decode(base)
        yield first, frames
        first, base = first + len(frames), batch.base(frames)
