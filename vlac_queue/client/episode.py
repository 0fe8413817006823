"""`Episode` and `Pending`: one run of the robot and its answers to come, as `CriticClient` makes them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from msgspec import structs

from vlac_queue.errors import CriticFailed, CriticTimeout, FrameError, ProtocolError, VlacQueueError
from vlac_queue.frames import Base, Frames, encode
from vlac_queue.messages import UNNAMED, Answer, CriticIdentity, DoneVerdict, Failure, Kind, Query, ValueVerdict
from vlac_queue.store import EpisodeMeta

Verdict = TypeVar("Verdict", DoneVerdict, ValueVerdict)


class Client(Protocol):
    """What an episode and its answers call; `CriticClient` is one."""

    def push_many(self, pushes: Iterable[tuple[Episode, Frames]]) -> None: ...
    def observe_many(self, pushes: Iterable[tuple[Episode, Frames]]) -> list[Pending[DoneVerdict]]: ...
    def ask_done_many(self, episodes: Sequence[Episode]) -> list[Pending[DoneVerdict]]: ...
    def ask_value_many(self, episodes: Sequence[Episode]) -> list[Pending[ValueVerdict]]: ...
    def poll(self, pendings: Iterable[Pending[Any]]) -> None: ...
    def wait(self, pendings: Sequence[Pending[Any]], timeout: float | None = None) -> None: ...
    def close_many(self, episodes: Sequence[Episode]) -> None: ...
    def leave(self, episodes: Sequence[Episode], error: BaseException | None) -> None: ...


class Pending(Generic[Verdict]):
    """An answer that is on its way; made by the `ask_*` methods. Threads may share it.

    Attributes:
        episode, query: what was asked.
        critic: which critic answered; unnamed before.
        answer: the answer, or why there is none, as it came; None before.
        asked_at: when it was asked, seconds on time.monotonic.
        latency_s: seconds from asking until the answer was read; 0.0 before.
        answer_s: seconds from asking until the answer stood on Redis, whenever it was read; 0.0 before.
        job: id of the job that carries the query; "" until Redis has taken it.
    """

    def __init__(self, client: Client, episode: Episode, query: Query) -> None:
        self._client = client
        self.episode = episode
        self.query = query
        self.critic: CriticIdentity = UNNAMED
        self.answer: Answer | VlacQueueError | None = None
        self.asked_at = time.monotonic()
        self.latency_s = 0.0
        self.answer_s = 0.0
        self.job = ""

    def done(self) -> bool:
        """Return whether the answer (or a failure) is here; looks at Redis without waiting.

        Raises:
            RedisUnavailable: Redis can't be reached.
        """
        if self.answer is None:
            self._client.poll([self])
        return self.answered

    def result(self, timeout: float | None = None) -> Verdict:
        """Wait for the verdict and return it.

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
        """Return the verdict that is here already.

        Raises:
            CriticFailed: the critic failed on this query.
            CriticTimeout: no answer is here yet.
        """
        answer = self.answer
        if answer is None:
            raise CriticTimeout(f"no answer yet to {self}; call result() to wait for it.")
        if isinstance(answer, VlacQueueError):
            raise answer
        if isinstance(answer, Failure):
            raise CriticFailed(f"the critic failed on {self}: {answer.message}", answer.traceback)
        return answer  # type: ignore[return-value]

    @property
    def answered(self) -> bool:
        """Whether the answer (or a failure) is here, without looking at Redis."""
        return self.answer is not None

    def __str__(self) -> str:
        return f"the {self.query.kind} query about frame {self.query.frame} of episode {self.query.episode!r}"

    # For the client.

    def carried_by(self, job: str) -> None:
        """Note that Redis has taken the query, with a job."""
        self.job = job

    def renew(self, asked: float, timeout_s: float) -> None:
        """Set the times of a query that is asked again under its id; seconds since 1970 on Redis' clock."""
        self.query = structs.replace(self.query, asked=asked, deadline=asked + timeout_s)

    def resolve(
        self, answer: Answer | VlacQueueError, critic: CriticIdentity = UNNAMED, written: float | None = None
    ) -> None:
        """Take the answer, who gave it, and when it was written (seconds since 1970 on Redis' clock)."""
        if self.answer is None:
            self.latency_s = time.monotonic() - self.asked_at
            if written is not None:
                # Redis' clock is carried on by ours, which may be ahead by a little.
                self.answer_s = min(max(written - self.query.asked, 0.0), self.latency_s)
            self.critic = critic
            self.answer = answer


@dataclass(frozen=True)
class Pushed:
    """What was pushed of an episode; one value, so that Ctrl-C finds it as before a push or as after it.

    Attributes:
        batches, frames: how many.
        raw_bytes, sent_bytes: how much, as pixels and as sent.
        base: what the next batch follows.
        kept: the encoded batches, for pushing them again; None where there is no room for them.
    """

    batches: int = 0
    frames: int = 0
    raw_bytes: int = 0
    sent_bytes: int = 0
    base: Base | None = None
    kept: tuple[bytes, ...] | None = ()

    @property
    def kept_bytes(self) -> int:
        """Bytes of `kept`."""
        return 0 if self.kept is None else self.sent_bytes


class Episode:
    """One run of the robot; made by `CriticClient.episode`. Use it from one thread at a time.

    Attributes:
        id, task: its name, and what the robot should do, in words.
        meta: what Redis is told of it at its opening.
        reference: its reference's encoded batches.
        queries, answers: queries asked so far, and answers read so far.
        answer_s: seconds that these answers took until they stood on Redis, summed.
        worker: who answered last, and knows its frames; "" before.
        closing, closed: whether it is being closed (what is missing of it on Redis is not lost then), or is.
    """

    def __init__(
        self, client: Client, episode_id: str, meta: EpisodeMeta, reference: Sequence[bytes] = ()
    ) -> None:
        self._client = client
        self._pushed = Pushed()
        self.id = episode_id
        self.task = meta.task
        self.meta = meta
        self.reference = reference
        self.queries = 0
        self.answers = 0
        self.answer_s = 0.0
        self.worker = ""
        self.closing = False
        self.closed = False

    @property
    def pushed(self) -> Pushed:
        """What was pushed so far."""
        return self._pushed

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
        """Push frames to Redis, after those pushed before.

        Args:
            frames: uint8 (T,H,W,3) or (H,W,3), RGB.

        Raises:
            FrameError: the frames are not usable, or of another size than those before; nothing was sent.
            QueueFull: open episodes hold max_pending_bytes already; nothing was stored, push again later.
            RedisUnavailable: Redis can't be reached (push again later), or lost the episode.
        """
        self._client.push_many([(self, frames)])

    def observe(self, frames: Frames) -> Pending[DoneVerdict]:
        """Push frames and ask whether the task is done in the last of them, in one round trip.

        Raises as `push` and `ask_done`.
        """
        return self._client.observe_many([(self, frames)])[0]

    def ask_done(self) -> Pending[DoneVerdict]:
        """Ask whether the task is done in the last frame pushed.

        Raises:
            NoWorkers: nothing listens on the queue.
            FrameError: no frame was pushed yet.
            RedisUnavailable: Redis can't be reached, or lost the episode.
        """
        return self._client.ask_done_many([self])[0]

    def ask_value(self) -> Pending[ValueVerdict]:
        """Ask for the value list over all frames pushed so far. Raises as `ask_done`."""
        return self._client.ask_value_many([self])[0]

    def close(self) -> None:
        """Delete the episode's keys; unanswered queries stay unanswered. Closing again does nothing."""
        self._client.close_many([self])

    def __enter__(self) -> Episode:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._client.leave([self], raised[1])

    def __repr__(self) -> str:
        return f"Episode({self.id!r}, task={self.task!r}, frames={self.frames}, closed={self.closed})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "an Episode can't be pickled: its frames follow one another from one process; pickle the client."
        )

    # For the client.

    def check_client(self, client: Client) -> None:
        """Raise ProtocolError where it is not `client` that opened it."""
        if self._client is not client:
            raise ProtocolError(f"episode {self.id!r} belongs to another client.")

    def check_open(self, client: Client, client_id: str) -> None:
        """Raise ProtocolError where `client`, whose id changes in a forked process, can't use it."""
        if self.closed:
            raise ProtocolError(f"episode {self.id!r} is closed; open a new one with client.episode(...).")
        self.check_client(client)
        if self.meta.client != client_id:
            raise ProtocolError(
                f"episode {self.id!r} was opened before this process was forked, and goes on in the parent; "
                "open one here with client.episode(...)."
            )

    def check_size(self, frames: Frames) -> None:
        """Raise FrameError where frames, uint8 (T,H,W,3), are of another size than those pushed before."""
        base = self._pushed.base
        if base is not None and base.frame.shape != frames.shape[1:]:
            (height, width, _), (other_height, other_width, _) = base.frame.shape, frames.shape[1:]
            raise FrameError(
                f"episode {self.id!r} holds frames of {height}x{width} pixels and these are "
                f"{other_height}x{other_width}; resize them, or open an episode for each camera."
            )

    def encode_next(self, frames: Frames) -> bytes:
        """Return frames, uint8 (T,H,W,3), as the batch that follows what was pushed."""
        return encode(frames, first=self._pushed.frames, base=self._pushed.base)

    def count_pushed(self, frames: Frames, payload: bytes, *, keep: bool) -> None:
        """Count frames as pushed, which were encoded as `payload`; keep that, or let all that was kept go."""
        before = self._pushed
        self._pushed = Pushed(
            before.batches + 1,
            before.frames + len(frames),
            before.raw_bytes + frames.nbytes,
            before.sent_bytes + len(payload),
            Base.after(frames, payload),
            (*before.kept, payload) if keep and before.kept is not None else None,
        )

    def new_query(self, kind: Kind, frame: int, batch: int, asked: float, timeout_s: float) -> Pending[Any]:
        """Return the answer to come to a new query about a frame, the last of a batch.

        Args:
            asked: seconds since 1970 on Redis' clock.
        """
        self.queries += 1
        query = Query(
            id=f"{self.meta.token}-{self.queries}",
            episode=self.id,
            kind=kind,
            frame=frame,
            batch=batch,
            client=self.meta.client,
            asked=asked,
            deadline=asked + timeout_s,
        )
        return Pending(self._client, self, query)

    def count_answer(self, answer_s: float, worker: str) -> None:
        """Count an answer that took `answer_s` seconds, and remember who gave it."""
        self.answers += 1
        self.answer_s += answer_s
        self.worker = worker

    def begin_closing(self) -> None:
        """Have nothing restored any more that is missing on Redis."""
        self.closing = True

    def end(self) -> None:
        """Count it as closed, and let its frames go."""
        self.closed = True
        self._pushed = replace(self._pushed, base=None, kept=None)
