"""`CriticClient`: opens episodes, pushes their frames and asks the critic.

The file is long since it holds every public call of a client; what they share stands in the files beside it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from redis.client import Pipeline

from vlac_queue.client.answers import Answers
from vlac_queue.client.decision_log import DecisionLog
from vlac_queue.client.episode import Episode, Pending
from vlac_queue.client.opened import Opened
from vlac_queue.client.recovery import CLOCK_FRESH_S, Recovery
from vlac_queue.client.sending import ClientStats, Part, Sender, check_frames
from vlac_queue.config import VlacConfig
from vlac_queue.connection import BLOCK_S, Patience, RedisClock, connect
from vlac_queue.control import order_workers, require_workers, timeout_error
from vlac_queue.errors import (
    ConfigError,
    CriticTimeout,
    EpisodeLost,
    NoWorkers,
    RedisUnavailable,
    VlacQueueError,
)
from vlac_queue.frames import Frames, as_batch
from vlac_queue.keys import Keys
from vlac_queue.messages import DoneVerdict, ValueVerdict
from vlac_queue.metrics import publish_audit, publish_outcomes
from vlac_queue.rule import Outcome
from vlac_queue.store import EpisodeStore

_log = logging.getLogger(__name__)

#: Seconds for which "a worker listens" is taken as still true.
_WORKERS_FRESH_S = 1.0
#: Seconds that a look for answers may take longer than it should, until that counts as time in which none could
#: come: Redis was away, or this process asleep.
_STALL_S = 2.0


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
        self._log = DecisionLog(self.config) if self.config.decision_log else None
        self._begin()
        _clients.add(self)

    def begin_in_child(self) -> None:
        """Begin anew in a process that was forked; Python calls it there."""
        self._begin()
        if self._log:
            self._log.begin_in_child()

    def _begin(self) -> None:
        """Make all that two processes must not share."""
        #: Names this client's stream of answers.
        self.id = uuid.uuid4().hex
        self.stats = ClientStats()
        self._lock = threading.Lock()
        self._workers_seen = -float("inf")
        self._connection = connect(self.config.redis_url)
        self._keys = Keys(self.config.queue)
        self._clock = RedisClock(self._connection)
        self._patiently = Patience(self.config.redis_url, min(self.config.patience_s, self.config.timeout_s))
        self._at_once = Patience(self.config.redis_url, 0.0)
        store = EpisodeStore(self._connection, self._keys, ttl_s=self.config.episode_ttl_s)
        self._answers = Answers(store, self.id, self._log)
        sender = Sender(self.config, store, self.stats, self._log)
        self._opened = Opened(self, self.id, sender, self._answers, self._log)
        self._recovery = Recovery(sender, self._answers, self._opened, self._clock, self._patiently)

    def episode(
        self, task: str, reference: Frames | str | Path | None = None, *, id: str | None = None
    ) -> Episode:
        """Open an episode; use it in a `with` statement, or close it.

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
        """Open an episode for each task, all in one round trip; otherwise as `episode`."""
        nothing = [None] * len(tasks)
        given = nothing if references is None else references
        return self._opened.open(tasks, given, ids or nothing, self._patiently)

    def push_many(self, pushes: Iterable[tuple[Episode, Frames]]) -> None:
        """Push to several episodes in one round trip; store what can be, then raise as `Episode.push`."""
        _raised(self.push_each(pushes))

    def push_each(self, pushes: Iterable[tuple[Episode, Frames]]) -> list[VlacQueueError | None]:
        """Push as `push_many`, but return what went wrong for each episode instead of raising it.

        Returns:
            For each push None, or why its frames were not stored; pushing those again is safe.

        Raises:
            FrameError, ProtocolError: frames or an episode are not usable; nothing was sent.
        """
        return [part.error for part in self._send([Part(episode, as_batch(each)) for episode, each in pushes])]

    def observe_many(self, pushes: Iterable[tuple[Episode, Frames]]) -> list[Pending[DoneVerdict]]:
        """Push frames to several episodes and ask whether each task is done in the last of them.

        The quickest way: a worker decodes the first frames while the last ones are still encoded here. Stores
        what it can, then raises as `Episode.observe`; a query is asked exactly where its frames were stored.
        """
        return _raised(self.observe_each(pushes))

    def observe_each(
        self, pushes: Iterable[tuple[Episode, Frames]]
    ) -> list[Pending[DoneVerdict] | VlacQueueError]:
        """Observe as `observe_many`, but return what went wrong for each episode instead of raising it.

        Raises:
            FrameError, ProtocolError: frames or an episode are not usable; nothing was sent.
            NoWorkers: nothing listens on the queue; nothing was sent.
        """
        parts = self._send([Part(episode, as_batch(frames), "done") for episode, frames in pushes])
        return [part.error or part.pending for part in parts]  # type: ignore[misc]

    def ask_done_many(self, episodes: Sequence[Episode]) -> list[Pending[DoneVerdict]]:
        """Ask about the last frame of each episode, in one round trip. Raises as `Episode.ask_done`."""
        return self._ask([Part(episode, kind="done") for episode in episodes])

    def ask_value_many(self, episodes: Sequence[Episode]) -> list[Pending[ValueVerdict]]:
        """Ask for the value list of each episode, in one round trip. Raises as `Episode.ask_done`."""
        return self._ask([Part(episode, kind="value") for episode in episodes])

    def ask_value_up_to(self, pendings: Sequence[Pending[Any]]) -> list[Pending[ValueVerdict]]:
        """Ask for value lists that end at the frames that `pendings` are about, whatever was pushed since. Raises
        as `Episode.ask_done`."""
        return self._ask([Part(p.episode, kind="value", about=p.query) for p in pendings])

    def ask_again(self, pendings: Sequence[Pending[Any]]) -> list[Pending[Any]]:
        """Ask the queries of `pendings` anew, about the same frames; for those that failed. Raises as
        `Episode.ask_done`."""
        return self._ask([Part(p.episode, kind=p.query.kind, about=p.query) for p in pendings])

    def close_many(self, episodes: Sequence[Episode]) -> None:
        """Close several episodes in one round trip; in a forked child, those of its parent stay open."""
        self._opened.close(episodes, self._patiently)

    def leave(self, episodes: Sequence[Episode], error: BaseException | None) -> None:
        """Close episodes at the end of a `with` statement.

        Where `error` ends it (Ctrl-C, say), that is told, and not that closing failed; such episodes expire by
        themselves. After a Redis that stayed away for `patience_s`, closing doesn't wait for it once more.
        """
        hurry = isinstance(error, RedisUnavailable) or (error is not None and not isinstance(error, Exception))
        try:
            self._opened.close(episodes, self._at_once if hurry else self._patiently)
        except VlacQueueError as failure:
            if error is None:
                raise
            self._opened.forget(episodes)
            _log.warning("%d episodes are left to expire by themselves: %s", len(episodes), failure)

    def poll(self, pendings: Iterable[Pending[Any]]) -> None:
        """Take in the answers to `pendings` that have arrived, in one round trip and without waiting.

        Every other second one more finds what has become of queries that are open for as long.

        Raises:
            RedisUnavailable: Redis can't be reached.
        """
        self._opened.check(pending.episode for pending in pendings if not pending.answered)
        self._recovery.read()

    def wait(self, pendings: Sequence[Pending[Any]], timeout: float | None = None) -> None:
        """Wait until all `pendings` are answered (or failed): one blocking read for all their episodes.

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
                    raise self._at_once(partial(self._timeout_error, len(open_ones), began - started))
                looked, block_s = True, max(0.0, min(deadline - began, BLOCK_S))
                self._opened.check(pending.episode for pending in open_ones)
                self._recovery.read(block_s or None)
                stalled_s = time.monotonic() - began - block_s
                if stalled_s > _STALL_S:
                    deadline += stalled_s
        finally:
            with self._lock:
                self.stats.waited_s += time.monotonic() - started

    def ping(self) -> list[str]:
        """Return the names of the workers that listen on the queue.

        Raises:
            NoWorkers: there is none; the message holds the command that starts one.
            RedisUnavailable: Redis can't be reached.
        """
        workers = self._at_once(lambda: require_workers(self._connection, self._keys, self.config.redis_url))
        self._workers_seen = time.monotonic()
        return workers

    def sleep_workers(self, timeout_s: float = 60.0) -> None:
        """Have all critics give their accelerator memory back, e.g. for an update of the policy, and wait for it.

        Nothing is lost: the next query wakes its worker's critic. Waits for a Redis that is away and for workers
        as other calls do (`patience_s`).

        Raises:
            NoWorkers, CriticTimeout, RedisUnavailable.
        """
        order_workers(self._connection, self._keys, "sleep", timeout_s=timeout_s, patience=self._patiently)

    def wake_workers(self, timeout_s: float = 60.0) -> None:
        """Bring all critics back, ahead of the next query. Raises as `sleep_workers`."""
        order_workers(self._connection, self._keys, "wake", timeout_s=timeout_s, patience=self._patiently)

    def close(self) -> None:
        """Close all open episodes and the connections."""
        self.close_many(self._opened.all())
        if self._log:
            self._log.close()
        self._connection.close()

    def __enter__(self) -> CriticClient:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.leave(self._opened.all(), raised[1])
        self.close()

    def __reduce__(self) -> tuple[type[CriticClient], tuple[VlacConfig]]:
        return type(self), (self.config,)

    def __repr__(self) -> str:
        return f"CriticClient({self.config!r})"

    def publish_outcomes(self, outcomes: Sequence[tuple[Episode, Outcome]]) -> None:
        """Tell dashboards how training episodes ended; `RolloutGate.settle` does it. One round trip."""
        ended = [(episode.id, episode.task, outcome) for episode, outcome in outcomes]
        self._publish(lambda pipeline: publish_outcomes(self._keys, ended, pipeline))

    def publish_audit(self, figures: Mapping[str, float]) -> None:
        """Tell dashboards how the critic compares with a simulator's truth: name -> figure, NaN for none."""
        now = self._at_once(lambda: self._clock.sync(CLOCK_FRESH_S).now())
        self._publish(lambda pipeline: publish_audit(self._keys, figures, now, pipeline))

    def note_truth(self, episode: Episode, frame: int | None) -> None:
        """Tell the decision log, if there is one, what the simulator says of an open episode; for `rescore`.

        Args:
            frame: index of the first frame in which the task is done; None: in none of them.

        Raises:
            DecisionLogError: the log can't be written.
        """
        if self._log:
            self._log.truth(episode, frame)

    def _send(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Send frames and queries; return the parts with what they asked, and what went wrong.

        Raises:
            ProtocolError, FrameError: an episode is not usable.
            NoWorkers: something is asked and nothing listens.
        """
        self._opened.check(part.episode for part in parts)
        check_frames(parts)
        if any(part.kind for part in parts) and time.monotonic() - self._workers_seen > _WORKERS_FRESH_S:
            # Who never saw a worker is told at once that there is none.
            self._patiently(self.ping, at_once=() if self._workers_seen > 0 else (NoWorkers,))
        if parts:
            self._recovery.send(parts)
        return parts

    def _ask(self, parts: Sequence[Part]) -> list[Pending[Any]]:
        """Ask; that an episode is lost is the answer to its own query."""
        pendings: list[Pending[Any]] = []
        for part in self._send(parts):
            assert part.pending is not None, "each part has a kind"
            if isinstance(part.error, EpisodeLost):
                self._answers.fail(part.pending, part.error)
            elif part.error:
                raise part.error
            pendings.append(part.pending)
        return pendings

    def _timeout_error(self, queries: int, waited_s: float) -> CriticTimeout:
        return timeout_error(self._connection, self._keys, self.config.redis_url, queries, waited_s)

    def _publish(self, add: Callable[[Pipeline], None]) -> None:
        with self._connection.pipeline(transaction=False) as pipeline:
            add(pipeline)
            self._at_once(pipeline.execute)


def _raised(outcomes: list[Any]) -> list[Any]:
    """Return outcomes, unless there are errors among them: raise the first one."""
    for outcome in outcomes:
        if isinstance(outcome, VlacQueueError):
            raise outcome
    return outcomes


#: The clients of this process.
_clients: weakref.WeakSet[CriticClient] = weakref.WeakSet()


def _begin_in_child() -> None:
    for client in list(_clients):
        client.begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)
