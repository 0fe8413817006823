"""Sending: frames and queries go to Redis, group by group, one record for what each episode sends."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from vlac_queue.client.decision_log import DecisionLog
from vlac_queue.client.episode import Episode, Pending
from vlac_queue.config import VlacConfig
from vlac_queue.credentials import ROLLOUT
from vlac_queue.errors import FrameError, ProtocolError, VlacQueueError
from vlac_queue.faults import as_ours
from vlac_queue.frames import Frames
from vlac_queue.jobs import JobMaker, NewJob
from vlac_queue.messages import Kind, Query
from vlac_queue.store import EpisodeStore, Step

#: Most episodes whose frames are sent at once together with queries: small enough that a worker decodes one group
#: while the next is encoded, large enough that what each costs by itself does not show.
_GROUP = 16
#: Bytes of pixels after which a group ends all the same.
_GROUP_BYTES = 32 << 20


@dataclass
class ClientStats:
    """Totals of a client since it was made: what went over the wire, and how long answers took."""

    episodes: int = 0
    queries: int = 0
    raw_bytes: int = 0
    sent_bytes: int = 0
    #: Seconds spent waiting for answers.
    waited_s: float = 0.0


class Part(Step):
    """What is sent for one episode, frames, a query or both; and what became of it.

    Attributes:
        episode: whose it is.
        frames: uint8 (T,H,W,3); None sends none. They are encoded as `payload` when their turn comes.
        kind, about: what is asked, and the query whose frame it is about; None asks nothing, or about the last
            frame.
        pending: the answer to come to that.
        error: why nothing of it was stored; None where it was.
    """

    def __init__(
        self,
        episode: Episode,
        frames: Frames | None = None,
        kind: Kind | None = None,
        about: Query | None = None,
        *,
        pending: Pending[Any] | None = None,
        index: int = 0,
        payload: bytes = b"",
    ) -> None:
        super().__init__(episode.id, episode.meta.reference, index, payload)
        if pending:
            self.query, self.job = pending.query, pending.job
        self.episode = episode
        self.frames = frames
        self.kind = kind
        self.about = about
        self.pending = pending
        self.error: VlacQueueError | None = None

    def ask(self, asked: float, timeout_s: float) -> None:
        """Make the query, if there is to be one; `asked` is in seconds since 1970 on Redis' clock."""
        if not self.kind:
            return
        frame, batch = self.episode.frames - 1, self.episode.pushed.batches - 1
        if self.about:
            frame, batch = self.about.frame, self.about.batch
        elif self.frames is not None:
            frame, batch = frame + len(self.frames), batch + 1
        self.pending = self.episode.new_query(self.kind, frame, batch, asked, timeout_s)
        self.query = self.pending.query


class Sender:
    """Encodes parts, makes the jobs that carry their queries, and sends them.

    Args:
        config: the settings.
        store: takes what is sent.
        stats: counts what was stored.
        log: is told of it, if there is one.
    """

    def __init__(
        self, config: VlacConfig, store: EpisodeStore, stats: ClientStats, log: DecisionLog | None
    ) -> None:
        self.config = config
        self.store = store
        self.stats = stats
        self._decisions = log
        self._jobs = JobMaker(config, store.connection)
        self._lock = threading.Lock()
        self._kept_bytes = 0

    def send(self, parts: Sequence[Part]) -> None:
        """Send parts, and note in each what went wrong. Sending one again changes nothing but its job."""
        errors = self.store.step(self._groups(parts), max_bytes=self.config.max_pending_bytes)
        for part, error in zip(parts, errors, strict=True):
            if isinstance(error, redis.RedisError):
                error = as_ours(error, self.config.redis_url, ROLLOUT)
            part.error = error

    def count(self, part: Part) -> None:
        """Take into account that Redis has stored a part, unless that was done."""
        episode, frames = part.episode, part.frames
        with self._lock:
            if frames is not None:
                if episode.pushed.batches != part.index:
                    return
                keep = self._kept_bytes + len(part.payload) <= self.config.keep_frames_bytes
                before = episode.pushed.kept_bytes
                episode.count_pushed(frames, part.payload, keep=keep)
                self._kept_bytes += episode.pushed.kept_bytes - before
                self.stats.raw_bytes += frames.nbytes
                self.stats.sent_bytes += len(part.payload)
            self.stats.queries += part.pending is not None

    def note(self, parts: Iterable[Part]) -> None:
        """Tell the log of the frames that were stored."""
        for part in parts:
            if self._decisions and part.payload and not part.error:
                self._decisions.pushed(part.episode, part.payload)

    def forget(self, episode: Episode) -> None:
        """Count an episode as closed, and let its frames go."""
        with self._lock:
            self._kept_bytes -= episode.pushed.kept_bytes
            episode.end()

    def _groups(self, parts: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Sequence[NewJob]]]:
        for group in _grouped(parts, min(_GROUP, self.config.max_batch)):
            for part in group:
                if part.frames is not None and not part.payload:
                    # The payload comes last: with it, the part counts as begun.
                    part.index, payload = part.episode.pushed.batches, part.episode.encode_next(part.frames)
                    if self._decisions:
                        self._decisions.pushing(part.episode, part.frames)
                    part.payload = payload
            yield group, self._new_jobs(group)

    def _new_jobs(self, parts: Iterable[Part]) -> Sequence[NewJob]:
        asking = [(part, part.query) for part in parts if part.query]
        jobs = self._jobs.make([(query, part.episode.worker) for part, query in asking])
        for index, (part, _) in enumerate(asking):
            part.job = jobs[index // self.config.max_batch].id
        return jobs


def check_frames(parts: Sequence[Part]) -> None:
    """Raise where frames are missing or of another size, or where those of one episode stand in two parts.

    Raises:
        ProtocolError, FrameError: an episode is not usable.
    """
    pushed_to: set[Episode] = set()
    for part in parts:
        if part.frames is None:
            if part.episode.frames == 0:
                raise FrameError(f"episode {part.episode.id!r} has no frames yet; push some before asking.")
            continue
        if part.episode in pushed_to:
            raise ProtocolError(f"episode {part.episode.id!r} stands twice in one call; join its frames.")
        pushed_to.add(part.episode)
        part.episode.check_size(part.frames)


def _grouped(parts: Sequence[Part], most: int) -> Iterator[Sequence[Part]]:
    """Yield parts in groups: of up to `most` where each pushes and asks, else all in one.

    So a push without a query, or a query alone, is one command: done as a whole or not at all.
    """
    start, size = 0, 0
    if all(part.query and part.frames is not None for part in parts):
        for index, part in enumerate(parts):
            size += part.frames.nbytes if part.frames is not None else 0
            if index + 1 - start == most or size >= _GROUP_BYTES:
                yield parts[start : index + 1]
                start, size = index + 1, 0
    if start < len(parts):
        yield parts[start:]
