"""From job texts to queries with frames: reads episodes from Redis and decodes them."""

from __future__ import annotations

import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from redis.exceptions import RedisError

from vlac_queue.credentials import WORKER
from vlac_queue.errors import FrameError, ProtocolError, VlacQueueError
from vlac_queue.faults import as_ours, passes
from vlac_queue.frames import MAX_QUERY_BYTES, Frames
from vlac_queue.messages import Failure, Query
from vlac_queue.store import EpisodeMeta
from workers import memory
from workers.critics import CriticQuery
from workers.decoded import History
from workers.flow import JobQuery, Prepared
from workers.kept import Kept
from workers.store import NOTHING_AHEAD, EpisodeRead, ReadAhead, Wanted, WorkerStore


class _FramesLost(Exception):
    """Redis has lost frames that a query is about, or its reference."""


class Intake:
    """Turns queries into what a critic takes. One thread calls it; its round trips do not grow with the batch.

    Args:
        store: the episodes.
        done_history: whether done queries get all frames up to theirs, instead of that one alone.
        history_bytes: most bytes of episodes and references that are kept decoded between two calls.
    """

    def __init__(self, store: WorkerStore, *, done_history: bool = False, history_bytes: int = 1 << 30) -> None:
        self._store = store
        self._done_history = done_history
        self._kept = Kept(history_bytes)

    def prepare(
        self, queries: Sequence[JobQuery], ahead: Mapping[str, ReadAhead] = NOTHING_AHEAD
    ) -> list[Prepared]:
        """Read and decode the frames of queries.

        Whatever goes wrong with one of them (its frames are damaged, or too large for this process's memory) is
        that query's own failure; errors of Redis that pass are raised. A query whose frames are missing is
        dropped: its client notices, pushes them again and asks again.

        Args:
            queries: what jobs ask.
            ahead: query id -> what came along with its job; used where that is all that is wanted.
        """
        try:
            return self._prepare(queries, ahead)
        except Exception as error:
            if passes(error):
                raise
            if len(queries) == 1:
                return [Prepared(*queries[0], _failure(error))]
            return [prepared for each in queries for prepared in self.prepare([each], ahead)]

    def _prepare(self, queries: Sequence[JobQuery], ahead: Mapping[str, ReadAhead]) -> list[Prepared]:
        started = time.monotonic()
        runs: dict[tuple[str, str], list[JobQuery]] = defaultdict(list)
        for asked_by in queries:
            runs[asked_by.query.episode, asked_by.query.token].append(asked_by)
        histories = {token: self._kept.history(token) for _, token in runs}
        wanted = [
            Wanted(
                episode,
                *self._span(histories[token], asked),
                tuple(query.id for job, query in asked if job),
            )
            for (episode, token), asked in runs.items()
        ]
        known = [self._known(want, ahead) for want in wanted]
        missing = iter(self._store.read_episodes([w for w, k in zip(wanted, known, strict=True) if k is None]))
        reads = [next(missing) if each is None else each for each in known]
        asks: dict[tuple[str, str], tuple[CriticQuery | Failure | None, int | None]] = {}
        for asked, want, read in zip(runs.values(), wanted, reads, strict=True):
            ttl_s = read.meta.ttl_s if isinstance(read.meta, EpisodeMeta) else None
            for job, query in sorted(asked, key=lambda each: each.query.batch):
                asks[job, query.id] = self._ask(query, read, want, histories), ttl_s
        for token, history in histories.items():
            if history is not None:
                self._kept.keep(token, history)
        self._kept.settle()
        decoding_s = time.monotonic() - started
        return [Prepared(job, query, *asks[job, query.id], decoding_s) for job, query in queries]

    def so_far(self, queries: Sequence[Query]) -> list[Prepared]:
        """Read and decode the frames that value queries would be about, were they asked; as `prepare`."""
        try:
            return self._prepare([JobQuery("", query) for query in queries], NOTHING_AHEAD)
        except Exception as error:
            if passes(error):
                raise
            return []

    def behind(self) -> bool:
        """Whether there are frames to decode ahead."""
        return self._kept.next_behind() is not None

    def work_ahead(self, seconds: float) -> None:
        """Decodes ahead what value queries will ask for, for about so long."""
        until = time.monotonic() + seconds
        while (token := self._kept.next_behind()) and time.monotonic() < until:
            history = self._kept.history(token)
            assert history is not None, "what is kept of it is behind"
            try:
                history.catch_up()
            except MemoryError:
                # Who asks for all frames is told, if there is too little memory then as well.
                history.forget()
            self._kept.keep(token, history)
            self._kept.settle()

    @staticmethod
    def _known(wanted: Wanted, ahead: Mapping[str, ReadAhead]) -> EpisodeRead | None:
        found = ahead.get(wanted.queries[0]) if wanted.queries else None
        return found.read if found is not None and found.answers(wanted) else None

    def _ask(
        self, query: Query, read: EpisodeRead, wanted: Wanted, histories: dict[str, History | None]
    ) -> CriticQuery | Failure | None:
        if read.meta is None or (wanted.queries and query.id not in read.open):
            return None
        if not wanted.queries and isinstance(read.meta, EpisodeMeta) and read.meta.token != query.token:
            return None  # another episode has its id by now
        try:
            if isinstance(read.meta, ProtocolError):
                raise read.meta
            try:
                return self._critic_query(query, read.meta, self._frames(query, read, wanted, histories))
            except MemoryError as error:
                # What is kept for later gives way to what is asked now, if that is enough.
                if getattr(error, "missing", 1) > self._kept.nbytes:
                    raise
            self._kept.clear()
            return self._critic_query(query, read.meta, self._frames(query, read, wanted, histories))
        except _FramesLost:
            return None
        except Exception as error:
            if passes(error):
                raise
            return _failure(error)

    def _one_frame(self, query: Query) -> bool:
        return query.kind == "done" and not self._done_history

    def _useful(self, history: History | None, query: Query) -> bool:
        """Whether what is kept of an episode spares decoding it anew for a query."""
        if history is None:
            return False
        return history.whole or (self._one_frame(query) and query.batch >= history.batches - 1)

    def _span(self, kept: History | None, asked: Sequence[JobQuery]) -> tuple[int, int]:
        """Indices of the first and last batch to read: what follows the frames kept, or all."""
        useful = all(self._useful(kept, query) for _, query in asked)
        return (kept.batches if kept and useful else 0), max(query.batch for _, query in asked)

    def _critic_query(self, query: Query, meta: EpisodeMeta, frames: Frames) -> CriticQuery:
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

    def _frames(
        self, query: Query, read: EpisodeRead, wanted: Wanted, histories: dict[str, History | None]
    ) -> Frames:
        """The frames that the critic looks at.

        Args:
            query: what it is asked.
            read: what was read for it.
            wanted: what was to be read.
            histories: token of an episode -> what is decoded of it; the one that is most advanced is left there.
        """
        count = max(0, query.batch + 1 - wanted.first)
        batches = _whole(
            read.batches,
            "the episode's encoded frames",
            lambda most: self._store.read_episodes([wanted], most)[0].batches,
        )[:count]
        if len(batches) < count:
            raise _FramesLost
        history = kept = histories[query.token]
        if history is None or not self._useful(history, query):
            history = History(MAX_QUERY_BYTES)
        # Another query of the same episode may have decoded some of them just now.
        history.extend(batches[history.batches - wanted.first :], every_frame=not self._one_frame(query))
        if kept is None or history.batches >= kept.batches:
            histories[query.token] = history
        try:
            if self._one_frame(query):
                return history.last(query.batch, query.frame)
            if not history.whole:
                raise FrameError("the episode's frames are of several sizes; push one size only.")
            return history.until(query.batch, query.frame)
        except ProtocolError as error:
            raise ProtocolError(f"episode {query.episode!r}: {error}") from None

    def _reference(self, reference: str) -> Frames:
        kept = self._kept.reference(reference)
        if kept is not None:
            return kept
        batches = _whole(
            self._store.read_reference(reference),
            "the reference's encoded frames",
            partial(self._store.read_reference, reference),
        )
        if not batches:
            raise _FramesLost
        history = History(MAX_QUERY_BYTES)
        history.extend(batches, every_frame=True)
        if not history.whole:
            raise FrameError("the reference's frames are of several sizes; give one size only.")
        frames = history.all()
        self._kept.keep_reference(reference, frames)
        return frames


def _whole(found: list[bytes] | int, what: str, read: Callable[[int], list[bytes] | int]) -> list[bytes]:
    """Return encoded batches; where `found` is how many bytes they have, after a look at the memory for them.

    Args:
        what: what they are, for the error where they don't fit.
        read: reads them, up to so many bytes.
    """
    if not isinstance(found, int):
        return found
    memory.require(2 * found, what)
    batches = read(sys.maxsize)
    assert not isinstance(batches, int)
    return batches


def _failure(error: Exception) -> Failure:
    text = "".join(traceback.format_exception(error))
    if isinstance(error, RedisError):
        error = as_ours(error, "the worker's URL", WORKER)
    if isinstance(error, VlacQueueError):
        return Failure(str(error), text)
    message = f"the worker could not prepare this query ({type(error).__name__}: {error})."
    hint = " Its main memory is used up: give it more." if isinstance(error, MemoryError) else ""
    return Failure(message[:2000] + hint, text)
