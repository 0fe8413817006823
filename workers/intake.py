"""From job texts to queries with frames: reads episodes from Redis and decodes them."""

from __future__ import annotations

import time
import traceback
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vlac_queue.errors import FrameError, ProtocolError
from vlac_queue.frames import Base, Frames, decode_episode, decode_many
from vlac_queue.messages import Failure, Query
from vlac_queue.store import NOTHING_AHEAD, EpisodeMeta, EpisodeRead, EpisodeStore, ReadAhead, Wanted
from workers.critics import CriticQuery

Entry = TypeVar("Entry")

#: Most pixel bytes that one query may need: 10,000 frames of 256x256, say.
MAX_QUERY_BYTES = 2 << 30
#: Bytes of last frames kept decoded, so that a new frame costs one XOR and not the whole episode.
LAST_FRAMES_BYTES = 256 << 20
#: Most episodes of which one is kept: small frames are cheap by their bytes, and dear by what surrounds them.
LAST_FRAMES = 4096
#: Bytes of reference frames kept decoded.
REFERENCES_BYTES = 512 << 20


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
        return self.ask.frames.nbytes if isinstance(self.ask, CriticQuery) else 0

    @property
    def images(self) -> int:
        """About how much work it is: one frame for a done query, all that are compared for a value query."""
        return len(self.ask.frames) if isinstance(self.ask, CriticQuery) else 0


@dataclass(frozen=True)
class _LastFrame:
    """The last frame decoded of an episode: the batch that it ends, its index, the frames up to there."""

    base: Base
    batch: int
    count: int


class _Cache(Generic[Entry]):
    """Least recently kept first; holds at most `limit` bytes and `most` entries, but always the newest entry."""

    def __init__(self, limit: int, most: int) -> None:
        self._limit = limit
        self._most = most
        self._bytes = 0
        self._entries: OrderedDict[str, tuple[Entry, int]] = OrderedDict()

    def get(self, key: str) -> Entry | None:
        entry = self._entries.get(key)
        return entry[0] if entry else None

    def keep(self, key: str, entry: Entry, nbytes: int) -> None:
        if old := self._entries.pop(key, None):
            self._bytes -= old[1]
        self._entries[key] = (entry, nbytes)
        self._bytes += nbytes
        while (self._bytes > self._limit or len(self._entries) > self._most) and len(self._entries) > 1:
            _, (_, freed) = self._entries.popitem(last=False)
            self._bytes -= freed


class _FramesLost(Exception):
    """Redis has lost frames that a query is about, or its reference."""


class Intake:
    """Turns queries into what a critic takes. One thread calls it; its round trips do not grow with the batch.

    Args:
        store: the episodes.
        done_history: whether done queries get all frames up to theirs, instead of that one alone.
    """

    def __init__(self, store: EpisodeStore, *, done_history: bool = False) -> None:
        self._store = store
        self._done_history = done_history
        self._last: _Cache[_LastFrame] = _Cache(LAST_FRAMES_BYTES, LAST_FRAMES)
        self._references: _Cache[Frames] = _Cache(REFERENCES_BYTES, LAST_FRAMES)

    def prepare(
        self, queries: Sequence[tuple[str, Query]], ahead: Mapping[str, ReadAhead] = NOTHING_AHEAD
    ) -> list[Prepared]:
        """Reads and decodes the frames of queries.

        A query whose frames are damaged becomes a failure of its own; errors of Redis are raised. One whose frames
        are missing is dropped: its client notices, pushes them again and asks again.

        Args:
            queries: (job id, query).
            ahead: query id -> what came along with its job; used where that is all that is wanted.
        """
        started = time.monotonic()
        runs: dict[tuple[str, str], list[tuple[str, Query]]] = defaultdict(list)
        for job, query in queries:
            runs[query.episode, query.token].append((job, query))
        wanted = [
            Wanted(episode, *self._span(token, asked), tuple(query.id for _, query in asked))
            for (episode, token), asked in runs.items()
        ]
        known = [self._known(want, ahead) for want in wanted]
        missing = iter(self._store.read_episodes([w for w, k in zip(wanted, known, strict=True) if k is None]))
        reads = [next(missing) if each is None else each for each in known]
        asks: dict[tuple[str, str], tuple[CriticQuery | Failure | None, int | None]] = {}
        for asked, want, read in zip(runs.values(), wanted, reads, strict=True):
            ttl_s = read.meta.ttl_s if isinstance(read.meta, EpisodeMeta) else None
            for job, query in sorted(asked, key=lambda each: each[1].batch):
                asks[job, query.id] = self._ask(query, read, want.first), ttl_s
        decoding_s = time.monotonic() - started
        return [Prepared(job, query, *asks[job, query.id], decoding_s) for job, query in queries]

    @staticmethod
    def _known(wanted: Wanted, ahead: Mapping[str, ReadAhead]) -> EpisodeRead | None:
        found = ahead.get(wanted.queries[0])
        return found.read if found is not None and found.answers(wanted) else None

    def _ask(self, query: Query, read: EpisodeRead, first: int) -> CriticQuery | Failure | None:
        if query.id not in read.open or read.meta is None:
            return None
        try:
            if isinstance(read.meta, ProtocolError):
                raise read.meta
            return self._critic_query(query, read.meta, first, read.batches)
        except _FramesLost:
            return None
        except (FrameError, ProtocolError) as error:
            return Failure(str(error), traceback.format_exc())

    def _one_frame(self, query: Query) -> bool:
        return query.kind == "done" and not self._done_history

    def _span(self, token: str, asked: Sequence[tuple[str, Query]]) -> tuple[int, int]:
        """Indices of the first and last batch to read: what follows the last frame kept, or all."""
        last = max(query.batch for _, query in asked)
        kept = self._last.get(token)
        every_frame = any(not self._one_frame(query) for _, query in asked)
        if kept is None or every_frame or any(query.batch < kept.batch for _, query in asked):
            return 0, last
        return kept.batch + 1, last

    def _critic_query(self, query: Query, meta: EpisodeMeta, first: int, batches: Sequence[bytes]) -> CriticQuery:
        wanted = batches[: query.batch + 1 - first]
        if len(wanted) != query.batch + 1 - first:
            raise _FramesLost
        frames = self._frames(query, first, wanted)
        return CriticQuery(
            kind=query.kind,
            task=meta.task,
            frames=frames,
            frame=query.frame,
            reference=self._reference(meta.reference) if meta.reference else None,
            reference_id=meta.reference,
            done_threshold=meta.done_threshold,
            value_stride=meta.value_stride,
            token=query.token,
        )

    def _frames(self, query: Query, first: int, batches: Sequence[bytes]) -> Frames:
        """The frames that the critic looks at, from `batches`, whose first has the index `first`."""
        if not self._one_frame(query):
            frames = decode_episode(batches, limit=MAX_QUERY_BYTES)
            self._keep(query, Base.after(frames, batches[-1]), len(frames))
            return frames
        kept = self._last.get(query.token)
        if kept is not None and first - 1 <= kept.batch <= query.batch:
            # Only what came after the frame kept; nothing, if that is the one asked about.
            new, base, count = batches[kept.batch + 1 - first :], kept.base, kept.count
        else:
            new, base, count = batches, None, 0
        decoded = decode_many(new, first=count, base=base, limit=MAX_QUERY_BYTES)
        if decoded:
            base = Base.after(decoded[-1], new[-1], ours=True)
        assert base is not None, "a query is about at least one batch"
        self._keep(query, base, count + sum(map(len, decoded)))
        return base.frame[None]

    def _keep(self, query: Query, base: Base, count: int) -> None:
        if count != query.frame + 1:
            raise ProtocolError(
                f"frame {query.frame} of episode {query.episode!r} is not the last of batch {query.batch}."
            )
        kept = self._last.get(query.token)
        if kept is None or query.batch > kept.batch:
            self._last.keep(query.token, _LastFrame(base, query.batch, count), base.frame.nbytes)

    def _reference(self, reference: str) -> Frames:
        kept = self._references.get(reference)
        if kept is not None:
            return kept
        batches = self._store.read_reference(reference)
        if not batches:
            raise _FramesLost
        frames = decode_episode(batches, limit=MAX_QUERY_BYTES)
        self._references.keep(reference, frames, frames.nbytes)
        return frames
