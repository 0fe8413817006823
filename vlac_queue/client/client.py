"""What a rollout uses: `CriticClient` opens episodes, pushes their frames and asks the critic."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
import uuid
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar
from zipfile import BadZipFile

import numpy as np
import redis

from vlac_queue.client.decision_log import DecisionLog
from vlac_queue.client.recovery import KeptFrames, Recovery
from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.connection import BLOCK_S, Patience, RedisClock, connect
from vlac_queue.control import TRY_OUT, order_workers, start_line
from vlac_queue.credentials import ROLLOUT
from vlac_queue.errors import (
    ConfigError,
    CriticFailed,
    CriticTimeout,
    EpisodeLost,
    FrameError,
    NoWorkers,
    ProtocolError,
    VlacQueueError,
)
from vlac_queue.faults import Fault, as_ours, fault_of, redis_errors
from vlac_queue.frames import MAX_BATCH_BYTES, Base, Frames, as_batch, encode
from vlac_queue.jobs import JobMaker, NewJob
from vlac_queue.keys import CLIENT_TTL_S, Keys
from vlac_queue.messages import (
    MAX_TASK_CHARS,
    UNNAMED,
    Answer,
    CriticIdentity,
    DoneVerdict,
    Failure,
    Kind,
    Query,
    ValueVerdict,
    check_id,
    decode_answer,
    is_id,
)
from vlac_queue.metrics import publish_audit, publish_outcomes
from vlac_queue.rule import Outcome
from vlac_queue.store import EpisodeMeta, EpisodeStore, Step
from vlac_queue.texts import many

_log = logging.getLogger(__name__)

Verdict = TypeVar("Verdict", DoneVerdict, ValueVerdict)

#: Seconds for which "a worker listens" is taken as still true.
_WORKERS_FRESH_S = 1.0
#: Seconds between two signs of life to Redis, and between two looks at what has become of open queries.
_LIFE_S, _LOOK_UP_S = 5.0, 2.0
#: Seconds that a look for answers may take longer than it should, until that counts as time in which none could
#: come: Redis was away, or this process asleep.
_STALL_S = 2.0
#: Seconds for which the difference to Redis' clock is taken as still true.
_CLOCK_FRESH_S = 60.0
#: Entries of its stream that a client reads before it trims them.
_ENTRIES_KEPT = 64
#: Most episodes whose frames are sent at once together with queries: small enough that a worker decodes one group
#: while the next is encoded, large enough that what each costs by itself does not show.
_GROUP = 16
#: References that are kept encoded.
_REFERENCES_KEPT = 16
#: Bytes of pixels after which a group ends all the same.
_GROUP_BYTES = 32 << 20


class Pending(Generic[Verdict]):
    """An answer that is on its way; made by the `ask_*` methods. Threads may share it."""

    def __init__(self, client: CriticClient, episode: Episode, query: Query) -> None:
        self.query = query
        #: Which critic answered; unnamed before.
        self.critic: CriticIdentity = UNNAMED
        self._client = client
        self._episode = episode
        # The job that carries the query.
        self._job = ""
        # Whether Redis has taken it.
        self._stored = False
        # Looks at which that job was nowhere.
        self._missed = 0
        self._answer: Answer | VlacQueueError | None = None
        self._asked = time.monotonic()
        self._latency_s = 0.0
        self._answer_s = 0.0

    def done(self) -> bool:
        """Whether the answer (or a failure) is here; looks at Redis without waiting.

        Raises:
            RedisUnavailable: Redis can't be reached.
        """
        if self._answer is None:
            self._client.poll([self])
        return self._answer is not None

    def result(self, timeout: float | None = None) -> Verdict:
        """The verdict; waits for it.

        Args:
            timeout: seconds to wait, 0 looks once; None is the configuration's `timeout_s`.

        Raises:
            CriticTimeout: it did not come in time. It may still come: ask this object again.
            CriticFailed: the critic failed on this query.
            RedisUnavailable: Redis can't be reached, or lost the episode.
        """
        self._client.wait([self], timeout)
        return self.verdict()

    def verdict(self) -> Verdict:
        """The verdict that is here already.

        Raises:
            CriticFailed: the critic failed on this query.
            CriticTimeout: no answer is here yet.
        """
        answer = self._answer
        if answer is None:
            raise CriticTimeout(f"no answer yet to {self._what()}; call result() to wait for it.")
        if isinstance(answer, VlacQueueError):
            raise answer
        if isinstance(answer, Failure):
            raise CriticFailed(f"the critic failed on {self._what()}: {answer.message}", answer.traceback)
        return answer  # type: ignore[return-value]

    @property
    def answered(self) -> bool:
        """Whether the answer (or a failure) is here, without looking at Redis."""
        return self._answer is not None

    @property
    def latency_s(self) -> float:
        """Seconds from asking until the answer was read; 0.0 before."""
        return self._latency_s

    @property
    def answer_s(self) -> float:
        """Seconds from asking until the answer stood on Redis, whenever it was read; 0.0 before."""
        return self._answer_s

    def _what(self) -> str:
        query = self.query
        return f"the {query.kind} query about frame {query.frame} of episode {query.episode!r}"

    def _resolve(
        self, answer: Answer | VlacQueueError, critic: CriticIdentity = UNNAMED, written: float | None = None
    ) -> None:
        """Takes the answer, who gave it, and when it was written (seconds since 1970 on Redis' clock)."""
        if self._answer is None:
            self._latency_s = time.monotonic() - self._asked
            if written is not None:
                # Redis' clock is carried on by ours, which may be ahead by a little.
                self._answer_s = min(max(written - self.query.asked, 0.0), self._latency_s)
            self.critic = critic
            self._answer = answer


@dataclass(frozen=True)
class _Pushed:
    """What was pushed of an episode; one value, so that Ctrl-C finds it as before a push or as after it.

    Attributes:
        batches, frames: how many.
        raw_bytes, sent_bytes: how much, as pixels and as sent.
        base: what the next batch follows.
    """

    batches: int = 0
    frames: int = 0
    raw_bytes: int = 0
    sent_bytes: int = 0
    base: Base | None = None

    def after(self, frames: Frames, payload: bytes) -> _Pushed:
        """Return this with one more batch, uint8 (T,H,W,3), as it was encoded."""
        return _Pushed(
            self.batches + 1,
            self.frames + len(frames),
            self.raw_bytes + frames.nbytes,
            self.sent_bytes + len(payload),
            Base.after(frames, payload),
        )


class Episode:
    """One run of the robot; made by `CriticClient.episode`. Use it from one thread at a time."""

    def __init__(
        self, client: CriticClient, episode_id: str, meta: EpisodeMeta, reference: Sequence[bytes] = ()
    ) -> None:
        self.id = episode_id
        self.task = meta.task
        self._pushed = _Pushed()
        #: Queries asked so far, answers read so far, and the seconds that these took until they stood on Redis.
        self.queries = 0
        self.answers = 0
        self.answer_s = 0.0
        self.closed = False
        self._client = client
        self._meta = meta
        self._reference = meta.reference
        self._reference_batches = reference
        # Tells this episode's queries from those of an earlier one with the same id.
        self._token = meta.token
        # Whether it is being closed: what is missing of it on Redis is not lost.
        self._closing = False
        # Who answered last, and knows its frames.
        self._worker = ""

    @property
    def frames(self) -> int:
        """Frames pushed so far."""
        return self._pushed.frames

    @property
    def raw_bytes(self) -> int:
        """Bytes pushed so far, as pixels."""
        return self._pushed.raw_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes pushed so far, as sent."""
        return self._pushed.sent_bytes

    def push(self, frames: Frames) -> None:
        """Sends frames to Redis, after those pushed before.

        Args:
            frames: uint8 (T,H,W,3) or (H,W,3), RGB.

        Raises:
            FrameError: the frames are not usable, or of another size than those before; nothing was sent.
            QueueFull: open episodes hold max_pending_bytes already; nothing was stored, push again later.
            RedisUnavailable: Redis can't be reached (push again later), or lost the episode.
        """
        self._client.push_many([(self, frames)])

    def observe(self, frames: Frames) -> Pending[DoneVerdict]:
        """Pushes frames and asks whether the task is done in the last of them, in one round trip.

        Raises as `push` and `ask_done`.
        """
        return self._client.observe_many([(self, frames)])[0]

    def ask_done(self) -> Pending[DoneVerdict]:
        """Asks whether the task is done in the last frame pushed.

        Raises:
            NoWorkers: nothing listens on the queue.
            FrameError: no frame was pushed yet.
            RedisUnavailable: Redis can't be reached, or lost the episode.
        """
        return self._client.ask_done_many([self])[0]

    def ask_value(self) -> Pending[ValueVerdict]:
        """Asks for the value list over all frames pushed so far. Raises as `ask_done`."""
        return self._client.ask_value_many([self])[0]

    def close(self) -> None:
        """Deletes the episode's keys; unanswered queries stay unanswered. Closing again does nothing."""
        self._client.close_many([self])

    def __enter__(self) -> Episode:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._client.leave([self], exc)

    def __repr__(self) -> str:
        return f"Episode({self.id!r}, task={self.task!r}, frames={self.frames}, closed={self.closed})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "an Episode can't be pickled: its frames follow one another from one process; pickle the client."
        )


@dataclass
class ClientStats:
    """Totals of a client since it was made: what went over the wire, and how long answers took."""

    episodes: int = 0
    queries: int = 0
    raw_bytes: int = 0
    sent_bytes: int = 0
    #: Seconds spent waiting for answers.
    waited_s: float = 0.0


@dataclass(frozen=True)
class _Part:
    """What goes to Redis for one episode: frames, uint8 (T,H,W,3), a query about the last of them, or both.

    `about` is the query to be asked again; None asks about the last frame.
    """

    episode: Episode
    frames: Frames | None = field(default=None, repr=False)
    kind: Kind | None = None
    about: Query | None = None


@dataclass(frozen=True)
class _Reference:
    id: str
    batches: tuple[bytes, ...] = field(repr=False)


class CriticClient:
    """A rollout's side of the queue. Threads may share it; each episode belongs to one thread at a time.

    It connects at its first command and again after Redis was away. It pickles as its configuration: in
    another process (a Ray actor) it connects anew and has no open episodes. So it does in a process that is
    forked: open episodes stay with the parent.

    Args:
        config: the settings; None reads them from the environment (`VLAC_*`).

    Raises:
        DecisionLogError: the folder `decision_log` can't be written. Later calls raise it too, once that happens.
    """

    def __init__(self, config: VlacConfig | None = None) -> None:
        if isinstance(config, str):
            raise ConfigError(
                "CriticClient takes a VlacConfig, not a text: CriticClient(VlacConfig(redis_url=...))."
            )
        self.config = config or VlacConfig.from_env()
        # By their ids, and by the files they were read from.
        self._references: dict[Any, _Reference] = {}
        self._log = DecisionLog(self.config) if self.config.decision_log else None
        self._begin()
        _clients.add(self)

    def _begin(self) -> None:
        """Makes all that two processes must not share: at first, and again in a child that was forked."""
        self.stats = ClientStats()
        self._connection = connect(self.config.redis_url)
        self._keys = Keys(self.config.queue)
        self._store = EpisodeStore(self._connection, self._keys, ttl_s=self.config.episode_ttl_s)
        self._jobs = JobMaker(self.config, self._connection)
        self._clock = RedisClock(self._connection)
        self._lock = threading.Lock()
        #: Names this client's stream of answers.
        self.id = uuid.uuid4().hex
        self._episodes: dict[str, Episode] = {}
        # Queries without an answer, and the position in the stream up to which answers were taken in.
        self._open: dict[str, Pending[Any]] = {}
        self._seen = b"0"
        # Entries of the stream that were read and stand there still.
        self._unforgotten = 0
        self._workers_seen = self._lived = self._looked_up = -float("inf")
        self._kept = KeptFrames(self.config.keep_frames_bytes)
        self._patiently = Patience(self.config.redis_url, min(self.config.patience_s, self.config.timeout_s))
        self._recovery = Recovery(self, self._patiently, self._kept)

    # Episodes.

    def episode(
        self, task: str, reference: Frames | str | Path | None = None, *, id: str | None = None
    ) -> Episode:
        """Opens an episode; use it in a `with` statement, or close it.

        Args:
            task: what the robot should do, in words; 1 to 2,000 characters.
            reference: frames of a successful run, uint8 (T,H,W,3), or a file of them (.npz with `frames`, .npy);
                stored on Redis once however many episodes use it. None uses the configuration's `reference`.
            id: the episode's id, unique among open ones; None makes one.

        Raises:
            ProtocolError: the id is taken or not usable, or the task's text is empty or too long.
            FrameError: the reference is not usable.
            RedisUnavailable: Redis can't be reached.
        """
        return self.episodes([task], [reference], ids=[id])[0]

    def episodes(
        self,
        tasks: Sequence[str],
        references: Sequence[Frames | str | Path | None] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[Episode]:
        """Opens an episode for each task, all in one round trip; otherwise as `episode`."""
        references = [None] * len(tasks) if references is None else references
        opening: list[tuple[str, EpisodeMeta]] = []
        batches: dict[str, Sequence[bytes]] = {"": ()}
        for task, chosen, id in zip(tasks, self._resolve(references), ids or [None] * len(tasks), strict=True):
            _check_task(task)
            if chosen:
                batches[chosen.id] = chosen.batches
            meta = EpisodeMeta(
                task=task,
                reference=chosen.id if chosen else "",
                done_threshold=self.config.done_threshold,
                value_stride=self.config.value_stride,
                ttl_s=self.config.episode_ttl_s,
                token=uuid.uuid4().hex[:12],
                client=self.id,
            )
            opening.append((check_id(id) if id is not None else uuid.uuid4().hex, meta))
        if not opening:
            return []
        self._patiently(lambda: self._store.open(opening, batches, max_bytes=self.config.max_pending_bytes))
        episodes = [Episode(self, episode_id, meta, batches[meta.reference]) for episode_id, meta in opening]
        with self._lock:
            self._episodes.update((episode.id, episode) for episode in episodes)
            self.stats.episodes += len(episodes)
        if self._log:
            for episode in episodes:
                self._log.opened(episode, batches.get(episode._reference, ()))
        return episodes

    def push_many(self, pushes: Iterable[tuple[Episode, Frames]]) -> None:
        """Pushes to several episodes in one round trip; stores what it can, then raises as `Episode.push`."""
        for error in self.push_each(pushes):
            if error is not None:
                raise error

    def push_each(self, pushes: Iterable[tuple[Episode, Frames]]) -> list[VlacQueueError | None]:
        """As `push_many`, but says what went wrong for each episode instead of raising it.

        Returns:
            For each push None, or why its frames were not stored; pushing those again is safe.

        Raises:
            FrameError, ProtocolError: frames or an episode are not usable; nothing was sent.
        """
        parts = [_Part(episode, as_batch(frames)) for episode, frames in pushes]
        return [error for _, error in self._send(parts)]

    def observe_many(self, pushes: Iterable[tuple[Episode, Frames]]) -> list[Pending[DoneVerdict]]:
        """Pushes frames to several episodes and asks whether each task is done in the last of them.

        The quickest way: a worker decodes the first frames while the last ones are still encoded here. Stores
        what it can, then raises as `Episode.observe`; a query is asked exactly where its frames were stored.
        """
        outcomes = self.observe_each(pushes)
        for outcome in outcomes:
            if isinstance(outcome, VlacQueueError):
                raise outcome
        return outcomes  # type: ignore[return-value]

    def observe_each(
        self, pushes: Iterable[tuple[Episode, Frames]]
    ) -> list[Pending[DoneVerdict] | VlacQueueError]:
        """As `observe_many`, but says what went wrong for each episode instead of raising it.

        Raises:
            FrameError, ProtocolError: frames or an episode are not usable; nothing was sent.
            NoWorkers: nothing listens on the queue; nothing was sent.
        """
        parts = [_Part(episode, as_batch(frames), "done") for episode, frames in pushes]
        return [error or pending for pending, error in self._send(parts)]  # type: ignore[misc]

    def ask_done_many(self, episodes: Sequence[Episode]) -> list[Pending[DoneVerdict]]:
        """Asks about the last frame of each episode, in one round trip. Raises as `Episode.ask_done`."""
        return self._ask([_Part(episode, kind="done") for episode in episodes])

    def ask_value_many(self, episodes: Sequence[Episode]) -> list[Pending[ValueVerdict]]:
        """Asks for the value list of each episode, in one round trip. Raises as `Episode.ask_done`."""
        return self._ask([_Part(episode, kind="value") for episode in episodes])

    def ask_again(self, pendings: Sequence[Pending[Any]]) -> list[Pending[Any]]:
        """Asks the queries of `pendings` anew, about the same frames; for those that failed. Raises as
        `Episode.ask_done`."""
        return self._ask([_Part(p._episode, kind=p.query.kind, about=p.query) for p in pendings])

    def close_many(self, episodes: Sequence[Episode]) -> None:
        """Closes several episodes in one round trip; in a forked child, those of its parent stay open."""
        self._close(episodes, self._patiently)

    def leave(self, episodes: Sequence[Episode], error: BaseException | None) -> None:
        """Close episodes at the end of a `with` statement.

        Where `error` ends it (Ctrl-C, say), that is told, and not that closing failed; such episodes expire by
        themselves.
        """
        interrupted = error is not None and not isinstance(error, Exception)
        try:
            self._close(episodes, Patience(self.config.redis_url, 0.0) if interrupted else self._patiently)
        except VlacQueueError as failure:
            if error is None:
                raise
            self._forget(episodes)
            _log.warning("%d episodes are left to expire by themselves: %s", len(episodes), failure)

    def _close(self, episodes: Sequence[Episode], patiently: Patience) -> None:
        for episode in episodes:
            self._check_client(episode)
        # Those of before a fork are the parent's: it goes on with them.
        closing = [each for each in episodes if not each.closed and each._meta.client == self.id]
        if not closing:
            return
        for episode in closing:
            episode._closing = True
        closed = {id(episode) for episode in closing}
        with self._lock:
            still_open = any(id(episode) not in closed for episode in self._episodes.values())
        # While one is open, another thread may ask about it and wait on the stream.
        keys = [] if still_open else [self._keys.client(self.id), self._keys.client_answers(self.id)]
        patiently(lambda: self._store.close([(each.id, each._reference) for each in closing], keys))
        if not still_open:
            self._lived = -float("inf")
            self._seen = b"0"  # the next stream begins anew, by a clock that may have been set back
        self._forget(closing)

    def _forget(self, episodes: Sequence[Episode]) -> None:
        closing = [each for each in episodes if not each.closed and each._meta.client == self.id]
        closed = {id(episode) for episode in closing}
        with self._lock:
            for episode in closing:
                self._kept.drop(episode.id)
                episode.closed = True
                episode._pushed = replace(episode._pushed, base=None)
                self._episodes.pop(episode.id, None)
            unanswered = [pending for pending in self._open.values() if id(pending._episode) in closed]
            for pending in unanswered:
                del self._open[pending.query.id]
        if self._log:
            for episode in closing:
                self._log.closed(episode, [each.query for each in unanswered if each._episode is episode])

    # Answers.

    def poll(self, pendings: Iterable[Pending[Any]]) -> None:
        """Takes in the answers to `pendings` that have arrived, in one round trip and without waiting.

        Every other second one more finds what has become of queries that are open for as long.

        Raises:
            RedisUnavailable: Redis can't be reached.
        """
        self._patiently(partial(self._read, list(pendings), block_s=None))
        self._look_up()

    def wait(self, pendings: Sequence[Pending[Any]], timeout: float | None = None) -> None:
        """Waits until all `pendings` are answered (or failed): one blocking read for all their episodes.

        Args:
            timeout: seconds to wait, 0 looks once; None is the configuration's `timeout_s`.

        Raises:
            CriticTimeout: some were not answered in time.
            RedisUnavailable: Redis can't be reached, or lost an episode.
        """
        started = time.monotonic()
        looked = False
        deadline = started + (self.config.timeout_s if timeout is None else timeout)
        try:
            while open_ones := [pending for pending in pendings if not pending.answered]:
                began = time.monotonic()
                if looked and began >= deadline:
                    raise self._timeout_error(open_ones, began - started)
                looked, block_s = True, max(0.0, min(deadline - began, BLOCK_S))
                self._patiently(partial(self._read, open_ones, block_s=block_s or None))
                self._look_up()
                stalled_s = time.monotonic() - began - block_s
                if stalled_s > _STALL_S:
                    deadline += stalled_s
        finally:
            with self._lock:
                self.stats.waited_s += time.monotonic() - started

    def ping(self) -> list[str]:
        """Names of the workers that listen on the queue.

        Raises:
            NoWorkers: there is none; the message holds the command that starts one.
            RedisUnavailable: Redis can't be reached.
        """
        with redis_errors(self.config.redis_url, ROLLOUT):
            workers = live_workers(self._connection, self._keys)
        if not workers:
            raise NoWorkers(
                f"no worker listens on queue {self.config.queue!r} at {redact_url(self.config.redis_url)}; "
                f"start one on a GPU host: {self._start_line()}  ({TRY_OUT})"
            )
        self._workers_seen = time.monotonic()
        return workers

    def _start_line(self) -> str:
        return start_line(self.config.redis_url, self.config.queue)

    def sleep_workers(self, timeout_s: float = 60.0) -> None:
        """Has all critics give their accelerator memory back, e.g. for an update of the policy, and waits for it.

        Nothing is lost: the next query wakes its worker's critic. Waits for a Redis that is away and for workers
        as other calls do (`patience_s`).

        Raises:
            NoWorkers, CriticTimeout, RedisUnavailable.
        """
        self._order("sleep", timeout_s)

    def wake_workers(self, timeout_s: float = 60.0) -> None:
        """Brings all critics back, ahead of the next query. Raises as `sleep_workers`."""
        self._order("wake", timeout_s)

    def _order(self, order: Literal["sleep", "wake"], timeout_s: float) -> None:
        order_workers(self._connection, self._keys, order, timeout_s=timeout_s, patience=self._patiently)

    def close(self) -> None:
        """Closes all open episodes and the connections."""
        self.close_many(list(self._episodes.values()))
        if self._log:
            self._log.close()
        self._connection.close()

    def __enter__(self) -> CriticClient:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.leave(list(self._episodes.values()), exc)
        self.close()

    def __reduce__(self) -> tuple[type[CriticClient], tuple[VlacConfig]]:
        return type(self), (self.config,)

    def __repr__(self) -> str:
        return f"CriticClient({self.config!r})"

    def publish_outcomes(self, outcomes: Sequence[tuple[Episode, Outcome]]) -> None:
        """Tells dashboards how training episodes ended; `RolloutGate.settle` does it. One round trip."""
        with (
            redis_errors(self.config.redis_url, ROLLOUT),
            self._connection.pipeline(transaction=False) as pipeline,
        ):
            publish_outcomes(self._keys, [(e.id, e.task, outcome) for e, outcome in outcomes], pipeline)
            pipeline.execute()

    def publish_audit(self, figures: Mapping[str, float]) -> None:
        """Tells dashboards how the critic compares with a simulator's truth: name -> figure, NaN for none."""
        with (
            redis_errors(self.config.redis_url, ROLLOUT),
            self._connection.pipeline(transaction=False) as pipeline,
        ):
            publish_audit(self._keys, figures, self._clock.sync(_CLOCK_FRESH_S).now(), pipeline)
            pipeline.execute()

    def note_truth(self, episode: Episode, frame: int | None) -> None:
        """Tells the decision log, if there is one, what the simulator says of an open episode; for `rescore`.

        Args:
            frame: index of the first frame in which the task is done; None: in none of them.

        Raises:
            DecisionLogError: the log can't be written.
        """
        if self._log:
            self._log.truth(episode, frame)

    # Inside.

    def _ask(self, parts: Sequence[_Part]) -> list[Pending[Any]]:
        """Asks; that an episode is lost is the answer to its own query."""
        pendings: list[Pending[Any]] = []
        for pending, error in self._send(parts):
            assert pending is not None, "each part has a kind"
            if isinstance(error, EpisodeLost):
                self._fail(pending, error)
            elif error:
                raise error
            pendings.append(pending)
        return pendings

    def _send(self, parts: Sequence[_Part]) -> list[tuple[Pending[Any] | None, VlacQueueError | None]]:
        """Sends frames and queries; for each part what it asked, and why nothing of it was stored."""
        self._check(parts)
        if not parts:
            return []
        self._patiently(self._live)
        asked = self._patiently(lambda: self._clock.sync(_CLOCK_FRESH_S).now())
        pendings = [Pending(self, part.episode, self._query(part, asked)) if part.kind else None for part in parts]
        # Before they go: another thread may read the answers.
        with self._lock:
            self._open.update((pending.query.id, pending) for pending in pendings if pending)
        steps: list[Step] = []

        def groups() -> Iterator[tuple[Sequence[Step], Sequence[NewJob]]]:
            for start, end in _groups(parts, min(_GROUP, self.config.max_batch)):
                for part, pending in zip(parts[start:end], pendings[start:end], strict=True):
                    episode, payload = part.episode, b""
                    if part.frames is not None:
                        payload = encode(part.frames, first=episode.frames, base=episode._pushed.base)
                        if self._log:
                            self._log.pushing(episode, part.frames)
                    query = pending.query if pending else None
                    steps.append(Step(episode.id, episode._reference, episode._pushed.batches, payload, query))
                yield steps[start:end], self._carry([pending for pending in pendings[start:end] if pending])

        outcomes: list[tuple[Pending[Any] | None, VlacQueueError | None]] = []
        try:
            errors = self._ours(self._store.step(groups(), max_bytes=self.config.max_pending_bytes))
            if any(errors):
                errors = self._recovery.send_again([part.episode for part in parts], steps, pendings, errors)
            for part, step, pending, error in zip(parts, steps, pendings, errors, strict=True):
                if error is None:
                    self._sent(part, step)
                    if pending:
                        pending._stored = True
                outcomes.append((pending, error))
        except BaseException:
            # Broken off (Ctrl-C): whether frames were stored is open. They count as pushed; where they are
            # missing, the next push restores them as it does what Redis has lost.
            for part, step in zip(parts[len(outcomes) :], steps[len(outcomes) :], strict=False):
                self._sent(part, step)
            raise
        finally:
            refused = pendings[len(outcomes) :] + [pending for pending, error in outcomes if error]
            with self._lock:
                for pending in refused:
                    if pending:
                        self._open.pop(pending.query.id, None)
        if self._log:
            for step, part, (_, refusal) in zip(steps, parts, outcomes, strict=True):
                if step.payload and not refusal:
                    self._log.pushed(part.episode, step.payload)
        return outcomes

    def _carry(self, pendings: Sequence[Pending[Any]]) -> list[NewJob]:
        """New jobs for open queries."""
        jobs = self._jobs.make([(pending.query, pending._episode._worker) for pending in pendings])
        for index, pending in enumerate(pendings):
            pending._job = jobs[index // self.config.max_batch].id
        return jobs

    def _live(self) -> None:
        """Says that this client is there, now and then."""
        if time.monotonic() - self._lived > _LIFE_S:
            try:
                self._connection.set(self._keys.client(self.id), 1, ex=CLIENT_TTL_S)
            except redis.RedisError as error:
                # What takes no writes may be read all the same, and answers must be.
                if fault_of(error) not in (Fault.FULL, Fault.REFUSED):
                    raise
            self._lived = time.monotonic()

    def _ours(self, failures: Iterable[VlacQueueError | redis.RedisError | None]) -> list[VlacQueueError | None]:
        """Failures, those of Redis as ours."""
        url = self.config.redis_url
        return [as_ours(each, url, ROLLOUT) if isinstance(each, redis.RedisError) else each for each in failures]

    def _check(self, parts: Sequence[_Part]) -> None:
        """Whether `parts` can be sent.

        Raises:
            ProtocolError, FrameError: an episode is not usable.
            NoWorkers: something is asked and nothing listens.
        """
        pushed_to: set[str] = set()
        for part in parts:
            self._check_open(part.episode)
            if part.frames is None and part.episode.frames == 0:
                raise FrameError(f"episode {part.episode.id!r} has no frames yet; push some before asking.")
            if part.frames is not None:
                if part.episode.id in pushed_to:
                    raise ProtocolError(f"episode {part.episode.id!r} stands twice in one call; join its frames.")
                pushed_to.add(part.episode.id)
                _check_size(part.episode, part.frames)
        if any(part.kind for part in parts) and time.monotonic() - self._workers_seen > _WORKERS_FRESH_S:
            # Who never saw a worker is told at once that there is none.
            self._patiently(self.ping, at_once=() if self._workers_seen > 0 else (NoWorkers,))

    def _sent(self, part: _Part, step: Step) -> None:
        """Takes into account what Redis has stored now, unless that was done."""
        episode, frames = part.episode, part.frames
        with self._lock:
            self.stats.queries += part.kind is not None
            if frames is None or episode._pushed.batches != step.index:
                return
            pushed = episode._pushed.after(frames, step.payload)
            self._kept.add(episode.id, step.index, step.payload)
            episode._pushed = pushed
            self.stats.raw_bytes += frames.nbytes
            self.stats.sent_bytes += len(step.payload)

    def _query(self, part: _Part, asked: float) -> Query:
        """A new query about the last frame of a part, or about the frame of an earlier query."""
        episode, new = part.episode, part.frames
        assert part.kind is not None
        frame, batch = episode.frames - 1, episode._pushed.batches - 1
        if new is not None:
            frame, batch = frame + len(new), batch + 1
        episode.queries += 1
        return Query(
            id=f"{episode._token}-{episode.queries}",
            episode=episode.id,
            kind=part.kind,
            frame=part.about.frame if part.about else frame,
            batch=part.about.batch if part.about else batch,
            client=self.id,
            asked=asked,
            deadline=asked + self.config.timeout_s,
        )

    def _read(self, pendings: Iterable[Pending[Any]], *, block_s: float | None) -> None:
        """Takes in the answers that stand in this client's stream, waiting for the first of them."""
        for pending in pendings:
            if not pending.answered:
                self._check_open(pending._episode)
        self._live()
        for entry_id, answers, worker in self._store.read_answers(self.id, self._seen, block_s=block_s):
            self._take_in(answers, _stream_position(entry_id)[0] / 1000, worker)
            with self._lock:
                # Another thread that waits on the stream may have read further.
                self._seen = max(self._seen, entry_id, key=_stream_position)
                self._unforgotten += 1
        if self._unforgotten >= _ENTRIES_KEPT:
            self._unforgotten = 0
            self._store.forget_answers(self.id, self._seen)

    def _look_up(self) -> None:
        """Finds, now and then, what has become of queries that are open for long, whoever waits for them.

        Takes in answers whose news was missed, and asks again what Redis or a worker has lost.
        """
        with self._lock:
            now = time.monotonic()
            stored = (each for each in self._open.values() if each._stored and not each._episode._closing)
            late = [each for each in stored if now - each._asked >= _LOOK_UP_S]
            if not late or now - self._looked_up < _LOOK_UP_S:
                return
            self._looked_up = now
        if missed := self._recovery.look_up(late):
            # Trimmed unread, or in a stream that began anew, perhaps before the position that was seen last.
            self._seen = b"0"
            self._take_in(missed, None)

    def _fail(self, pending: Pending[Any], error: VlacQueueError) -> None:
        with self._lock:
            self._open.pop(pending.query.id, None)
            if pending.answered:
                return  # by another thread meanwhile
            pending._resolve(error)
            if self._log:
                self._log.answered(pending._episode, pending)

    def _take_in(self, answers: Mapping[str, str], written: float | None, worker: str = "") -> None:
        """Takes in answers, by the ids of their queries. One that can't be read fails its own query."""
        for query_id, text in answers.items():
            if (pending := self._open.get(query_id)) is None:
                # Of an episode that was closed, or taken in already; or none of ours at all.
                if not is_id(query_id):
                    _log.warning("what names no query is passed over in the answers: %r", query_id[:80])
                continue
            try:
                answer, critic = _answer_to(pending.query, text)
            except ProtocolError as error:
                self._fail(pending, ProtocolError(f"the answer to {pending._what()} is unusable: {error}"))
                continue
            with self._lock:
                # Another thread that waits on the same stream may have taken it in already. It leaves the open
                # ones last: Ctrl-C before that has it taken in again.
                if query_id in self._open:
                    pending._resolve(answer, critic, written)
                    del self._open[query_id]
                    pending._episode.answers += 1
                    pending._episode.answer_s += pending.answer_s
                    pending._episode._worker = worker
                    if self._log:
                        self._log.answered(pending._episode, pending)

    def _timeout_error(self, pendings: Sequence[Pending[Any]], waited: float) -> CriticTimeout:
        with redis_errors(self.config.redis_url, ROLLOUT):
            workers = live_workers(self._connection, self._keys)
            waiting = self._connection.llen(self._keys.rq_queue)
        hint = (
            f"{many(len(workers), 'worker')} for {many(waiting, 'waiting job')}: raise timeout_s or add workers"
            if workers
            else f"no worker listens any more: start one with {self._start_line()}"
        )
        return CriticTimeout(f"no answer to {many(len(pendings), 'query')} within {waited:.1f} s; {hint}.")

    def _check_open(self, episode: Episode) -> None:
        if episode.closed:
            raise ProtocolError(f"episode {episode.id!r} is closed; open a new one with client.episode(...).")
        self._check_client(episode)
        if episode._meta.client != self.id:
            raise ProtocolError(
                f"episode {episode.id!r} was opened before this process was forked, and goes on in the parent; "
                "open one here with client.episode(...)."
            )

    def _check_client(self, episode: Episode) -> None:
        if episode._client is not self:
            raise ProtocolError(f"episode {episode.id!r} belongs to another client.")

    def _resolve(self, sources: Sequence[Frames | str | Path | None]) -> list[_Reference | None]:
        """The reference of each episode; what is given many times is hashed once."""
        # With the source itself: the id of one that is gone may be another's.
        known: dict[int, tuple[Any, _Reference | None]] = {}
        resolved = []
        for source in sources:
            if id(source) not in known:
                known[id(source)] = source, self._reference(self.config.reference if source is None else source)
            resolved.append(known[id(source)][1])
        return resolved

    def _reference(self, source: Frames | str | Path | None) -> _Reference | None:
        if source is None:
            return None
        if not isinstance(source, str | Path):
            return self._remember(as_batch(source))
        path = Path(source).absolute()
        version: tuple[Any, ...] | None = None
        with contextlib.suppress(OSError):  # named by load_frames
            status = path.stat()
            version = (path, status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            known = self._references.get(version)
        return known or self._remember(load_frames(path), version)

    def _remember(self, batch: Frames, file: tuple[Any, ...] | None = None) -> _Reference:
        """The reference of frames, uint8 (T,H,W,3), kept encoded; `file`: the version of the file they are of."""
        digest = hashlib.sha256(repr(batch.shape).encode())
        digest.update(batch.data)
        reference_id = digest.hexdigest()
        with self._lock:
            known = self._references.get(reference_id)
        if known is None:
            known = _Reference(reference_id, tuple(_encode_reference(batch)))
        with self._lock:
            # A rollout has one reference, or one a task: a few are kept, the oldest go first.
            self._references.update({reference_id: known} if file is None else {reference_id: known, file: known})
            while len(self._references) > 2 * _REFERENCES_KEPT:
                self._references.pop(next(iter(self._references)))
        return known


#: The clients of this process.
_clients: weakref.WeakSet[CriticClient] = weakref.WeakSet()


def _begin_in_child() -> None:
    for client in list(_clients):
        client._begin()
        if client._log:
            client._log.begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)


def live_workers(connection: redis.Redis, keys: Keys) -> list[str]:
    """Names of the RQ workers that listen on the queue, without changing anything on Redis."""
    registered = [key.decode() for key in connection.smembers(keys.rq_workers)]  # type: ignore[union-attr]
    with connection.pipeline(transaction=False) as pipeline:
        for key in registered:
            pipeline.hmget(key, "birth", "death")
        alive = [birth is not None and death is None for birth, death in pipeline.execute()]
    return sorted(key.removeprefix("rq:worker:") for key, lives in zip(registered, alive, strict=True) if lives)


def load_frames(path: Path) -> Frames:
    """Frames from a file: .npz with an array `frames`, or .npy.

    Returns:
        uint8 (T,H,W,3).

    Raises:
        FrameError: the file is missing, of another kind, or its array is not usable.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        frames = loaded["frames"] if path.suffix == ".npz" else loaded
    except FileNotFoundError:
        raise FrameError(f"no such file: {path}; give an .npz with an array 'frames', or a .npy.") from None
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile, zlib.error) as error:
        raise FrameError(
            f"{path} holds no frames ({error}); give an .npz with an array 'frames', or a .npy."
        ) from None
    return as_batch(frames)


def _answer_to(query: Query, text: str) -> tuple[Answer, CriticIdentity]:
    """The answer to a query, and who gave it.

    Raises:
        ProtocolError: the text is no answer, or that to another question.
    """
    query_id, answer, critic = decode_answer(text)
    wanted = DoneVerdict if query.kind == "done" else ValueVerdict
    if query_id != query.id or not isinstance(answer, wanted | Failure):
        raise ProtocolError(
            f"it is a {type(answer).__name__} for query {query_id!r}, and {query.id!r} asked for {query.kind!r}."
        )
    return answer, critic


def _check_task(task: Any) -> None:
    """Raises ProtocolError where `task` is no text that can be sent."""
    if not isinstance(task, str) or not task.strip() or len(task) > MAX_TASK_CHARS:
        raise ProtocolError(f"a task must be a text of 1 to {MAX_TASK_CHARS} characters, not {str(task)[:80]!r}.")
    try:
        task.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(
            f"a task must be text in Unicode; character {error.start} of {task[:80]!r} is half of a pair, or a "
            "byte that was no UTF-8: read the text with its right encoding."
        ) from None


def _check_size(episode: Episode, frames: Frames) -> None:
    """Raises FrameError where frames, uint8 (T,H,W,3), are of another size than those pushed before."""
    base = episode._pushed.base
    if base is not None and base.frame.shape != frames.shape[1:]:
        (height, width, _), (other_height, other_width, _) = base.frame.shape, frames.shape[1:]
        raise FrameError(
            f"episode {episode.id!r} holds frames of {height}x{width} pixels and these are "
            f"{other_height}x{other_width}; resize them, or open an episode for each camera."
        )


def _encode_reference(batch: Frames) -> Iterable[bytes]:
    size = max(1, MAX_BATCH_BYTES // max(1, batch[0].nbytes))
    base: Base | None = None
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        payload = encode(part, first=start, base=base)
        base = Base.after(part, payload)
        yield payload


def _groups(parts: Sequence[_Part], most: int) -> Iterator[tuple[int, int]]:
    """Where groups of parts begin and end: of up to `most` where parts push and ask, else all in one.

    So a push without a query, or a query alone, is one command: done as a whole or not at all.
    """
    start, count = 0, 0
    if all(part.kind and part.frames is not None for part in parts):
        for index, part in enumerate(parts):
            count += part.frames.nbytes if part.frames is not None else 0
            if index + 1 - start == most or count >= _GROUP_BYTES:
                yield start, index + 1
                start, count = index + 1, 0
    if start < len(parts):
        yield start, len(parts)


def _stream_position(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence or 0)


__all__ = ["ClientStats", "CriticClient", "Episode", "Pending", "live_workers", "load_frames"]
