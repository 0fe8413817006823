"""What a rollout uses: `CriticClient` opens episodes, pushes their frames and asks the critic."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar
from zipfile import BadZipFile

import numpy as np
import redis
from rq import Queue, Retry

from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.connection import BLOCK_S, RedisClock, connect, redis_errors
from vlac_queue.control import order_workers
from vlac_queue.errors import CriticFailed, CriticTimeout, FrameError, NoWorkers, ProtocolError, VlacQueueError
from vlac_queue.frames import MAX_BATCH_BYTES, Base, Frames, as_batch, encode
from vlac_queue.keys import Keys
from vlac_queue.messages import (
    JOB_FUNCTION,
    MAX_TASK_CHARS,
    Answer,
    DoneVerdict,
    Failure,
    Kind,
    Query,
    ValueVerdict,
    check_id,
    decode_answer,
    encode_job,
)
from vlac_queue.store import EpisodeMeta, EpisodeStore, Push, episode_gone

Verdict = TypeVar("Verdict", DoneVerdict, ValueVerdict)

#: Seconds for which "a worker listens" is taken as still true.
_WORKERS_FRESH_S = 1.0
#: Seconds for which the difference to Redis' clock is taken as still true.
_CLOCK_FRESH_S = 60.0
#: Seconds that a failed job stays for `rq info` to show.
_FAILURE_TTL_S = 3600


class Pending(Generic[Verdict]):
    """An answer that is on its way; made by the `ask_*` methods. Threads may share it."""

    def __init__(self, client: CriticClient, query: Query) -> None:
        self.query = query
        self._client = client
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
            timeout: seconds to wait; None is the configuration's `timeout_s`.

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

    def _resolve(self, answer: Answer | VlacQueueError, written: float | None = None) -> None:
        """Takes the answer, and when it was written (seconds since 1970 on Redis' clock), where it was."""
        if self._answer is None:
            self._latency_s = time.monotonic() - self._asked
            if written is not None:
                asked = self.query.deadline - self._client.config.timeout_s
                # Redis' clock is carried on by ours, which may be ahead by a little.
                self._answer_s = min(max(written - asked, 0.0), self._latency_s)
            self._answer = answer


class Episode:
    """One run of the robot; made by `CriticClient.episode`. Use it from one thread at a time."""

    def __init__(self, client: CriticClient, episode_id: str, task: str, reference: str) -> None:
        self.id = episode_id
        self.task = task
        #: Frames pushed so far.
        self.frames = 0
        #: Bytes pushed so far, as pixels and as sent.
        self.raw_bytes = 0
        self.sent_bytes = 0
        #: Queries asked so far, answers read so far, and the seconds that these took until they stood on Redis.
        self.queries = 0
        self.answers = 0
        self.answer_s = 0.0
        self.closed = False
        self._client = client
        self._reference = reference
        # Tells this episode's queries from those of an earlier one with the same id.
        self._token = uuid.uuid4().hex[:12]
        self._batches = 0
        self._base: Base | None = None
        self._pending: dict[str, Pending[Any]] = {}
        self._seen = b"0"

    def push(self, frames: Frames) -> None:
        """Sends frames to Redis, after those pushed before.

        Args:
            frames: uint8 (T,H,W,3) or (H,W,3), RGB.

        Raises:
            FrameError: the frames are not usable; nothing was sent.
            QueueFull: open episodes hold max_pending_bytes already; nothing was stored, push again later.
            RedisUnavailable: Redis can't be reached (push again later), or lost the episode.
        """
        self._client.push_many([(self, frames)])

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
        self.close()

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
class _Reference:
    id: str
    batches: tuple[bytes, ...] = field(repr=False)


class CriticClient:
    """A rollout's side of the queue. Threads may share it; each episode belongs to one thread at a time.

    It connects at its first command and again after Redis was away. It pickles as its configuration: in
    another process (a Ray actor) it connects anew and has no open episodes.

    Args:
        config: the settings; None reads them from the environment (`VLAC_*`).
    """

    def __init__(self, config: VlacConfig | None = None) -> None:
        self.config = config or VlacConfig.from_env()
        self.stats = ClientStats()
        self._connection = connect(self.config.redis_url)
        self._keys = Keys(self.config.queue)
        self._store = EpisodeStore(self._connection, self._keys, ttl_s=self.config.episode_ttl_s)
        self._queue = Queue(self.config.queue, connection=self._connection)
        self._clock = RedisClock(self._connection)
        self._lock = threading.Lock()
        self._episodes: dict[str, Episode] = {}
        self._references: dict[str, _Reference] = {}
        self._workers_seen = -float("inf")

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
        if not isinstance(task, str) or not len(task.strip()) >= 1 or len(task) > MAX_TASK_CHARS:
            raise ProtocolError(
                f"a task must be a text of 1 to {MAX_TASK_CHARS} characters, not {str(task)[:80]!r}."
            )
        episode_id = check_id(id) if id is not None else uuid.uuid4().hex
        chosen = self._reference(reference if reference is not None else self.config.reference)
        meta = EpisodeMeta(
            task=task,
            reference=chosen.id if chosen else "",
            done_threshold=self.config.done_threshold,
            value_stride=self.config.value_stride,
            ttl_s=self.config.episode_ttl_s,
        )
        with redis_errors(self.config.redis_url):
            self._store.open(episode_id, meta, chosen.batches if chosen else ())
        episode = Episode(self, episode_id, task, meta.reference)
        with self._lock:
            self._episodes[episode_id] = episode
            self.stats.episodes += 1
        return episode

    def push_many(self, pushes: Iterable[tuple[Episode, Frames]]) -> None:
        """Pushes to several episodes in one round trip; stores what it can, then raises as `Episode.push`."""
        for error in self.push_each(pushes):
            if error is not None:
                raise error

    def push_each(self, pushes: Iterable[tuple[Episode, Frames]]) -> list[VlacQueueError | None]:
        """As `push_many`, but says what went wrong for each episode instead of raising it.

        Returns:
            For each push None, or why its frames were not stored.

        Raises:
            FrameError, ProtocolError: frames or an episode are not usable; nothing was sent.
            RedisUnavailable: Redis can't be reached; pushing the same again is safe.
        """
        batches: list[tuple[Episode, Frames, Push]] = []
        seen: set[str] = set()
        for episode, frames in pushes:
            self._check_open(episode)
            batch = as_batch(frames)
            if episode.id in seen:
                raise ProtocolError(f"episode {episode.id!r} stands twice in one push_many; join its frames.")
            seen.add(episode.id)
            payload = encode(batch, first=episode.frames, base=episode._base)
            batches.append((episode, batch, Push(episode.id, episode._reference, episode._batches, payload)))
        if not batches:
            return []
        with redis_errors(self.config.redis_url):
            errors = self._store.push([push for _, _, push in batches], max_bytes=self.config.max_pending_bytes)
        for (episode, batch, push), error in zip(batches, errors, strict=True):
            if error is not None:
                continue
            episode._batches += 1
            episode.frames += len(batch)
            episode._base = Base.after(batch, push.payload)
            episode.raw_bytes += batch.nbytes
            episode.sent_bytes += len(push.payload)
            with self._lock:
                self.stats.raw_bytes += batch.nbytes
                self.stats.sent_bytes += len(push.payload)
        return errors

    def ask_done_many(self, episodes: Sequence[Episode]) -> list[Pending[DoneVerdict]]:
        """Asks about the last frame of each episode: one job for all (of up to max_batch queries). Raises as
        `Episode.ask_done`."""
        return self._ask([self._query("done", episode) for episode in episodes])

    def ask_value_many(self, episodes: Sequence[Episode]) -> list[Pending[ValueVerdict]]:
        """Asks for the value list of each episode: one job for all (of up to max_batch queries). Raises as
        `Episode.ask_done`."""
        return self._ask([self._query("value", episode) for episode in episodes])

    def ask_again(self, pendings: Sequence[Pending[Any]]) -> list[Pending[Any]]:
        """Asks the queries of `pendings` anew, about the same frames; for those that failed. Raises as
        `Episode.ask_done`."""
        return self._ask([self._query(p.query.kind, self._episode(p.query), p.query) for p in pendings])

    def close_many(self, episodes: Sequence[Episode]) -> None:
        """Closes several episodes in one round trip."""
        closing = [episode for episode in episodes if not episode.closed]
        if not closing:
            return
        with redis_errors(self.config.redis_url):
            self._store.close([(episode.id, episode._reference) for episode in closing])
        with self._lock:
            for episode in closing:
                episode.closed = True
                episode._base = None
                episode._pending.clear()
                self._episodes.pop(episode.id, None)

    # Answers.

    def poll(self, pendings: Iterable[Pending[Any]]) -> None:
        """Takes in the answers to `pendings` that have arrived, in one round trip and without waiting.

        Raises:
            RedisUnavailable: Redis can't be reached.
        """
        with redis_errors(self.config.redis_url):
            self._read(pendings, block_s=None)

    def wait(self, pendings: Sequence[Pending[Any]], timeout: float | None = None) -> None:
        """Waits until all `pendings` are answered (or failed): one blocking read for all their episodes.

        Args:
            timeout: seconds to wait; None is the configuration's `timeout_s`.

        Raises:
            CriticTimeout: some were not answered in time.
            RedisUnavailable: Redis can't be reached, or lost an episode.
        """
        started = time.monotonic()
        deadline = started + (self.config.timeout_s if timeout is None else timeout)
        try:
            while open_ones := [pending for pending in pendings if not pending.answered]:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._timeout_error(open_ones, time.monotonic() - started)
                with redis_errors(self.config.redis_url):
                    if not self._read(open_ones, block_s=min(left, BLOCK_S)):
                        self._check_there(open_ones)
        finally:
            with self._lock:
                self.stats.waited_s += time.monotonic() - started

    def ping(self) -> list[str]:
        """Names of the workers that listen on the queue.

        Raises:
            NoWorkers: there is none; the message holds the command that starts one.
            RedisUnavailable: Redis can't be reached.
        """
        with redis_errors(self.config.redis_url):
            workers = live_workers(self._connection, self._keys)
        if not workers:
            raise NoWorkers(
                f"no worker listens on queue {self.config.queue!r} at {redact_url(self.config.redis_url)}; "
                f"start one on a GPU host: RQ_REDIS_URL=<that URL> RQ_WORKER_CLASS=workers.CriticWorker "
                f"rq worker {self.config.queue} --with-scheduler"
            )
        self._workers_seen = time.monotonic()
        return workers

    def sleep_workers(self, timeout_s: float = 60.0) -> None:
        """Has all critics give their accelerator memory back, e.g. for an update of the policy, and waits for it.

        Nothing is lost: the next query wakes its worker's critic.

        Raises:
            NoWorkers, CriticTimeout, RedisUnavailable.
        """
        with redis_errors(self.config.redis_url):
            order_workers(self._connection, self._keys, "sleep", timeout_s=timeout_s)

    def wake_workers(self, timeout_s: float = 60.0) -> None:
        """Brings all critics back, ahead of the next query. Raises as `sleep_workers`."""
        with redis_errors(self.config.redis_url):
            order_workers(self._connection, self._keys, "wake", timeout_s=timeout_s)

    def close(self) -> None:
        """Closes all open episodes and the connections."""
        self.close_many(list(self._episodes.values()))
        self._connection.close()

    def __enter__(self) -> CriticClient:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[CriticClient], tuple[VlacConfig]]:
        return type(self), (self.config,)

    def __repr__(self) -> str:
        return f"CriticClient({self.config!r})"

    # Inside.

    def _query(self, kind: Kind, episode: Episode, about: Query | None = None) -> Query:
        """A new query about the last frame pushed, or about the frame of an earlier query."""
        self._check_open(episode)
        if episode.frames == 0:
            raise FrameError(f"episode {episode.id!r} has no frames yet; push some before asking.")
        episode.queries += 1
        return Query(
            id=f"{episode._token}-{episode.queries}",
            episode=episode.id,
            token=episode._token,
            kind=kind,
            frame=about.frame if about else episode.frames - 1,
            batch=about.batch if about else episode._batches - 1,
            deadline=0.0,
        )

    def _ask(self, queries: Sequence[Query]) -> list[Pending[Any]]:
        if not queries:
            return []
        if time.monotonic() - self._workers_seen > _WORKERS_FRESH_S:
            self.ping()
        with redis_errors(self.config.redis_url):
            deadline = self._clock.sync(_CLOCK_FRESH_S).now() + self.config.timeout_s
            queries = [replace(query, deadline=deadline) for query in queries]
            pendings: list[Pending[Any]] = [Pending(self, query) for query in queries]
            episodes = [self._episode(query) for query in queries]
            with self._lock:
                for episode, pending in zip(episodes, pendings, strict=True):
                    episode._pending[pending.query.id] = pending
                self.stats.queries += len(pendings)
            with self._connection.pipeline() as pipeline:
                self._store.ask([(q, e._reference) for q, e in zip(queries, episodes, strict=True)], pipeline)
                self._enqueue(queries, pipeline)
                statuses = pipeline.execute()[: len(pendings)]
        for pending, status in zip(pendings, statuses, strict=True):
            if status != b"ok":
                pending._resolve(episode_gone(pending.query.episode))
        return pendings

    def _episode(self, query: Query) -> Episode:
        with self._lock:
            episode = self._episodes.get(query.episode)
        if episode is None or episode._token != query.token:
            raise ProtocolError(
                f"episode {query.episode!r} was closed while its query was open; read answers first."
            )
        return episode

    def _enqueue(self, queries: Sequence[Query], pipeline: redis.client.Pipeline) -> None:
        size = self.config.max_batch
        self._queue.enqueue_many(
            [
                Queue.prepare_data(
                    JOB_FUNCTION,
                    args=(encode_job(part),),
                    # RQ's alarm and its parent process would kill a work-horse that stays; the queries have
                    # a deadline of their own.
                    timeout=-1,
                    ttl=self.config.episode_ttl_s,
                    result_ttl=0,
                    failure_ttl=_FAILURE_TTL_S,
                    description=f"{len(part)} queries",
                    retry=Retry(max=self.config.retries) if self.config.retries else None,
                )
                for part in (queries[start : start + size] for start in range(0, len(queries), size))
            ],
            pipeline=pipeline,
        )

    def _read(self, pendings: Iterable[Pending[Any]], *, block_s: float | None) -> bool:
        """Reads the streams of the episodes of unanswered `pendings`; whether anything came."""
        after = {p.query.episode: self._episode(p.query)._seen for p in pendings if not p.answered}
        if not after:
            return False
        news = self._store.read_answers(after, block_s=block_s)
        with self._lock:
            for name, entries in news.items():
                episode = self._episodes.get(name)
                if episode is None:
                    continue
                for entry_id, text in entries:
                    query_id, answer = decode_answer(text)
                    episode._seen = max(episode._seen, entry_id, key=_stream_position)
                    # Another thread that waits on the same stream may have taken it in already.
                    if pending := episode._pending.pop(query_id, None):
                        pending._resolve(answer, _stream_position(entry_id)[0] / 1000)
                        episode.answers += 1
                        episode.answer_s += pending.answer_s
        return bool(news)

    def _check_there(self, pendings: Sequence[Pending[Any]]) -> None:
        gone = self._store.missing(sorted({pending.query.episode for pending in pendings}))
        still_open = [pending for pending in pendings if pending.query.episode in gone and not pending.answered]
        if still_open:
            raise episode_gone(still_open[0].query.episode)

    def _timeout_error(self, pendings: Sequence[Pending[Any]], waited: float) -> CriticTimeout:
        with redis_errors(self.config.redis_url):
            workers = live_workers(self._connection, self._keys)
            waiting = self._queue.count
        hint = (
            f"{len(workers)} workers listen and {waiting} jobs wait: raise timeout_s, or start more workers"
            if workers
            else f"no worker listens any more: start one with `rq worker {self.config.queue} --with-scheduler`"
        )
        return CriticTimeout(f"{len(pendings)} queries were not answered within {waited:.1f} s; {hint}.")

    def _check_open(self, episode: Episode) -> None:
        if episode.closed:
            raise ProtocolError(f"episode {episode.id!r} is closed; open a new one with client.episode(...).")
        if episode._client is not self:
            raise ProtocolError(f"episode {episode.id!r} belongs to another client.")

    def _reference(self, source: Frames | str | Path | None) -> _Reference | None:
        if source is None:
            return None
        if isinstance(source, str | Path):
            source = load_frames(Path(source))
        batch = as_batch(source)
        digest = hashlib.sha256(repr(batch.shape).encode())
        digest.update(batch.data)
        reference_id = digest.hexdigest()
        with self._lock:
            known = self._references.get(reference_id)
        if known is None:
            known = _Reference(reference_id, tuple(_encode_reference(batch)))
            with self._lock:
                # A rollout has one reference, or one a task: a few are kept encoded, the oldest goes first.
                self._references[reference_id] = known
                while len(self._references) > 16:
                    self._references.pop(next(iter(self._references)))
        return known


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
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile, zlib.error) as error:
        raise FrameError(
            f"{path} holds no frames ({error}); give an .npz with an array 'frames', or a .npy."
        ) from None
    return as_batch(frames)


def _encode_reference(batch: Frames) -> Iterable[bytes]:
    size = max(1, MAX_BATCH_BYTES // max(1, batch[0].nbytes))
    base: Base | None = None
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        payload = encode(part, first=start, base=base)
        base = Base.after(part, payload)
        yield payload


def _stream_position(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence or 0)


__all__ = ["ClientStats", "CriticClient", "Episode", "Pending", "live_workers", "load_frames"]
