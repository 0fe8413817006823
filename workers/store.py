"""Episodes on Redis: every operation that a worker does on an episode's keys.

All errors are Redis' own here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import redis

from vlac_queue.connection import Script, checked, exchange
from vlac_queue.errors import ProtocolError
from vlac_queue.faults import passes
from vlac_queue.keys import Keys
from vlac_queue.messages import Query
from vlac_queue.store import EpisodeMeta

#: Entries of a client's stream of answers that are kept; it reads them long before.
_ANSWERS_KEPT = 1000
#: Most answers written by one script: Lua can't hand more than some 8,000 values to a command.
_MOST_ANSWERS = 1000
#: Most encoded batches read by one script, so that no reply is huge.
_MOST_BATCHES = 256
#: Most bytes of encoded batches that a worker reads in one round trip without a look at its memory.
MOST_READ_BYTES = 64 << 20

_LUA = Path(__file__).with_name("lua")
_READ, _READ_REFERENCE, _ANSWER, _CLAIM_PAIRS, _KEEP_SCORES = (
    Script.load(_LUA / f"{name}.lua")
    for name in ("read", "read_reference", "answer", "claim_pairs", "keep_scores")
)


@dataclass(frozen=True)
class Wanted:
    """What a worker wants to know of one episode: its batches `first`..`last`, and which of `queries` are open.

    Without queries it is wanted as long as it is there.
    """

    episode: str
    first: int
    last: int
    queries: tuple[str, ...]


class PairsWanted(NamedTuple):
    """Pairs of an episode to be scored; a pair is known by the index of its second frame.

    Attributes:
        episode, token: which episode.
        query: id of the value query that needs them, or "" for work ahead.
        undone: for work ahead, a frame at which the episode was not done.
        frames: the pairs.
        own: whether it is a value query that came with its own job, whose deaths are counted; it may take over
            what a dead worker had. A copy of a job, and work ahead, let go there.
    """

    episode: str
    token: str
    query: str
    undone: int
    frames: Sequence[int]
    own: bool = False


class PairsFound(NamedTuple):
    """What became of `PairsWanted`.

    Attributes:
        over: whether nobody wants them any more.
        scores: those known, by pair.
        mine: the pairs claimed; those in neither are another worker's, or too many.
    """

    over: bool
    scores: dict[int, float]
    mine: list[int]


class PairsScored(NamedTuple):
    """Scores of an episode's pairs, None where there is none; and the frame at which it was found done."""

    episode: str
    token: str
    scores: Mapping[int, float | None]
    done: int | None = None


@dataclass(frozen=True)
class EpisodeRead:
    """An episode as a worker found it.

    Attributes:
        meta: None where the episode is gone, the error where it can't be read.
        open: ids of the queries that still wait for an answer.
        batches: the encoded batches that are there, or how many bytes they have where that is more than may be
            read; empty where no query is open.
    """

    meta: EpisodeMeta | ProtocolError | None
    open: frozenset[str]
    batches: list[bytes] | int


@dataclass(frozen=True)
class ReadAhead:
    """What came along with a job for one of its queries: its episode with the one batch `index`."""

    episode: str
    index: int
    read: EpisodeRead

    def answers(self, wanted: Wanted) -> bool:
        """Whether it is what a worker wants to know."""
        only = (self.episode, self.index, self.index, 1)
        return only == (wanted.episode, wanted.first, wanted.last, len(wanted.queries))


NOTHING_AHEAD: Mapping[str, ReadAhead] = MappingProxyType({})


def episode_read(fields: Sequence[bytes], still_open: Iterable[str], batches: list[bytes] | int) -> EpisodeRead:
    """An episode from its meta hash (names and values in turn), its open queries and batches."""
    meta: EpisodeMeta | ProtocolError | None
    try:
        meta = EpisodeMeta.from_hash(dict(zip(fields[::2], fields[1::2], strict=True))) if fields else None
    except ProtocolError as error:
        meta = error
    return EpisodeRead(meta, frozenset(still_open), batches)


class WorkerStore:
    """The episodes of one queue, as a worker reads and answers them. Threads may share it.

    Args:
        connection: to Redis.
        keys: of the queue.
        ttl_s: seconds for which answers are kept where their episode's own time is not known.
    """

    def __init__(self, connection: redis.Redis, keys: Keys, *, ttl_s: int) -> None:
        self._connection = connection
        self._keys = keys
        self._ttl_s = ttl_s

    def read_episodes(self, wanted: Sequence[Wanted], most_bytes: int = MOST_READ_BYTES) -> list[EpisodeRead]:
        """Return meta, open queries and encoded batches of episodes; one round trip for some 256 batches.

        Args:
            wanted: what of each episode.
            most_bytes: of the batches of one round trip; of episodes beyond that only the size is read.
        """
        return [read for part in _parts(wanted) for read in self._read_part(part, most_bytes)]

    def still_open(self, queries: Sequence[Query]) -> set[str]:
        """Ids of those of `queries` that wait for an answer, and whose client is there; one round trip."""
        with self._connection.pipeline(transaction=False) as pipeline:
            for query in queries:
                pipeline.hget(self._keys.episode(query.episode).queries, query.id)
                pipeline.exists(self._keys.client(query.client))
            # Keys of a wrong type, which no client of ours makes, hold nothing that is open.
            replies = pipeline.execute(raise_on_error=False)
        for reply in replies:
            if passes(reply):
                raise reply
        states = zip(queries, replies[0::2], replies[1::2], strict=True)
        return {query.id for query, kind, there in states if kind in (b"done", b"value") and there}

    def read_reference(self, reference: str, most_bytes: int = MOST_READ_BYTES) -> list[bytes] | int:
        """Return the encoded batches of reference frames, or how many bytes they have where that is more.

        Empty where they are gone.
        """
        command = ("EVAL", _READ_REFERENCE, 1, self._keys.reference(reference), most_bytes)
        (batches,) = exchange(self._connection, [command])
        return checked(batches)

    def claim_pairs(
        self,
        wanted: Sequence[PairsWanted],
        most: int,
        *,
        scored_by: str,
        worker: str,
        life: str,
        claim_s: float,
    ) -> list[PairsFound]:
        """Read what is known of pairs, and claim up to `most` of the others for `worker`; one round trip.

        A claim is over after `claim_s` seconds, or with its worker's `life`.
        """
        keys: list[str] = []
        arguments: list[Any] = [worker, life, self._keys.worker(""), int(claim_s), most, scored_by]
        for each in wanted:
            episode = self._keys.episode(each.episode)
            keys += (episode.meta, episode.queries, episode.pairs)
            arguments += (each.token, each.query, each.undone, len(each.frames), int(each.own), *each.frames)
        (reply,) = exchange(self._connection, [("EVAL", _CLAIM_PAIRS, len(keys), *keys, *arguments)])
        return [_found(each, found) for each, found in zip(wanted, checked(reply), strict=True)]

    def keep_scores(self, scored: Sequence[PairsScored], *, scored_by: str) -> int:
        """Keep scores with their episodes, in one round trip; the claims of those without a score are given up.

        Returns:
            How many scores stand with episodes that were found done now, and before nowhere.
        """
        keys: list[str] = []
        arguments: list[Any] = [scored_by]
        for each in scored:
            episode = self._keys.episode(each.episode)
            keys += (episode.meta, episode.pairs)
            arguments += (each.token, "" if each.done is None else each.done, len(each.scores))
            for pair, score in each.scores.items():
                arguments += (pair, "" if score is None else repr(score))
        (reply,) = exchange(self._connection, [("EVAL", _KEEP_SCORES, len(keys), *keys, *arguments)])
        return sum(checked(reply))

    def answer(
        self, answers: Sequence[tuple[Query, str]], worker: str, *, ttl_s: int | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """Commands by which a worker answers queries (`messages.encode_answer`), those that are pending."""
        by_client: dict[str, list[tuple[Query, str]]] = {}
        for each in answers:
            by_client.setdefault(each[0].client, []).append(each)
        for client, all_of_client in by_client.items():
            for start in range(0, len(all_of_client), _MOST_ANSWERS):
                part = all_of_client[start : start + _MOST_ANSWERS]
                keys = [self._keys.client_answers(client)]
                keys += [self._keys.episode(query.episode).queries for query, _ in part]
                texts = [text for query, answer in part for text in (query.id, answer)]
                yield ("EVAL", _ANSWER, len(keys), *keys, ttl_s or self._ttl_s, _ANSWERS_KEPT, worker, *texts)

    def _read_part(self, wanted: Sequence[Wanted], most_bytes: int) -> Iterator[EpisodeRead]:
        keys: list[str] = []
        arguments: list[Any] = [most_bytes]
        for each in wanted:
            episode = self._keys.episode(each.episode)
            keys += (episode.meta, episode.frames, episode.queries)
            arguments += (each.first, each.last, len(each.queries), *each.queries)
        (read,) = exchange(self._connection, [("EVAL", _READ, len(keys), *keys, *arguments)])
        for each, reply in zip(wanted, checked(read), strict=True):
            if not reply:
                wrong = ProtocolError(f"the keys of episode {each.episode!r} on Redis are of a wrong type.")
                yield EpisodeRead(wrong, frozenset(each.queries), [])
                continue
            fields, kinds, batches = reply
            still_open = [query for query, kind in zip(each.queries, kinds, strict=True) if kind]
            yield episode_read(fields, still_open, batches)


def _found(wanted: PairsWanted, reply: Sequence[bytes]) -> PairsFound:
    state, *pairs = reply
    scores, mine = {}, []
    for pair, known in zip(wanted.frames, pairs, strict=False):
        if known == b"?":
            continue
        try:
            score = float(known)
        except ValueError:
            score = math.nan
        if math.isfinite(score):
            scores[pair] = score
        else:  # claimed, or what a stranger wrote
            mine.append(pair)
    return PairsFound(state != b"ok", scores, mine)


def _parts(wanted: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
    """`wanted` in parts of about _MOST_BATCHES batches."""
    starts, batches = [0], 0
    for index, each in enumerate(wanted):
        count = max(1, each.last - each.first + 1)
        if batches and batches + count > _MOST_BATCHES:
            starts.append(index)
            batches = 0
        batches += count
    return (wanted[start:end] for start, end in pairwise([*starts, len(wanted)]) if end > start)
