"""What a client does about a Redis that goes away, fills up or forgets: it waits, pushes again and asks again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import redis

from vlac_queue.client.answers import Answers
from vlac_queue.client.episode import Episode, Pending
from vlac_queue.client.opened import Opened
from vlac_queue.client.sending import Part, Sender
from vlac_queue.connection import Patience, RedisClock
from vlac_queue.errors import EpisodeLost, QueueFull, RedisUnavailable, VlacQueueError
from vlac_queue.faults import as_ours
from vlac_queue.store import episode_lost

_log = logging.getLogger(__name__)

#: Seconds between two looks at what has become of open queries, and until a query is looked for.
_LOOK_UP_S = 2.0
#: Looks at which a job is nowhere until it counts as lost: longer than a dead worker goes unnoticed.
_LOOKS_MISSED = 5
#: Times that what Redis lost is restored for one call.
_RESTORES = 5
#: Seconds for which the difference to Redis' clock is taken as still true.
CLOCK_FRESH_S = 60.0


class Recovery:
    """Sends parts, again if they did not get through, and restores what Redis lost. Threads may share it.

    Args:
        sender: sends them once.
        answers: to the client's queries.
        opened: the client's open episodes.
        clock: Redis' clock.
        patiently: waits for a Redis that is away or full.
    """

    def __init__(
        self,
        sender: Sender,
        answers: Answers,
        opened: Opened,
        clock: RedisClock,
        patiently: Patience,
    ) -> None:
        self._sender = sender
        self._answers = answers
        self._opened = opened
        self._clock = clock
        self._patiently = patiently
        self._config = sender.config
        self._restoring = threading.RLock()
        self._lock = threading.Lock()
        self._looked_up = -float("inf")
        # Query id -> looks at which its job was nowhere, one after another.
        self._missed: dict[str, int] = {}

    def send(self, parts: Sequence[Part]) -> None:
        """Send parts, and note in each what it asked, or why nothing of it was stored."""
        self._patiently(self._opened.live)
        asked = self._patiently(lambda: self._clock.sync(CLOCK_FRESH_S).now())
        for part in parts:
            part.ask(asked, self._config.timeout_s)
        pendings = [part.pending for part in parts if part.pending]
        # Before they go: another thread may read the answers.
        self._answers.expect(pendings)
        try:
            self._sender.send(parts)
            self._send_again(parts)
            for part in parts:
                if not part.error:
                    self._sender.count(part)
                    if part.pending:
                        part.pending.carried_by(part.job)
        except BaseException:
            # Broken off (Ctrl-C): whether frames were stored is open. They count as pushed; where they are
            # missing, the next push restores them as it does what Redis has lost.
            for part in parts:
                if part.payload:
                    self._sender.count(part)
            raise
        finally:
            self._answers.give_up(pending for pending in pendings if not pending.job)
        self._sender.note(parts)

    def read(self, block_s: float | None = None) -> None:
        """Take in the answers that are here; wait up to `block_s` seconds for the first of them."""
        self._patiently(partial(self._read, block_s))
        self._look_up()

    def _read(self, block_s: float | None) -> None:
        self._opened.live()
        self._answers.read(block_s)

    def _look_up(self) -> None:
        """Find, now and then, what has become of queries that are open for long, whoever waits for them.

        Takes in answers whose news was missed, and asks again what Redis or a worker has lost.
        """
        now = time.monotonic()
        with self._lock:
            if now - self._looked_up < _LOOK_UP_S:
                return
            late = [pending for pending in self._answers.carried() if now - pending.asked_at >= _LOOK_UP_S]
            if not late:
                return
            self._looked_up = now
        asked = [Part(pending.episode, pending=pending) for pending in late]
        standings = self._patiently(lambda: self._sender.store.look_up(asked))
        found: dict[str, str] = {}
        lost: list[Pending[Any]] = []
        nowhere: list[Pending[Any]] = []
        for pending, standing in zip(late, standings, strict=True):
            if standing.answer is not None:
                found[pending.query.id] = standing.answer
            elif pending.answered or pending.episode.closing:
                continue
            elif not standing.kept:
                lost.append(pending)
            elif isinstance(standing.error, redis.RedisError):
                self._answers.fail(pending, as_ours(standing.error, self._config.redis_url))
            elif standing.error:
                self._answers.fail(pending, standing.error)
            elif not standing.carried:
                nowhere.append(pending)
        self._restore_lost(lost)
        self._ask_dropped(nowhere)
        if found:
            # Trimmed unread, or in a stream that began anew, perhaps before the position that was seen last.
            self._answers.start_over()
            self._answers.take_in(found, None)

    def _restore_lost(self, pendings: Sequence[Pending[Any]]) -> None:
        """Restore the episodes of queries that Redis has lost; fail those where that can't be done."""
        restored = self._patiently(lambda: self._restore([pending.episode for pending in pendings]))
        for pending in pendings:
            if pending.episode.id not in restored:
                self._answers.fail(pending, episode_lost(pending.episode.id))

    def _ask_dropped(self, nowhere: Sequence[Pending[Any]]) -> None:
        """Ask queries again whose jobs were nowhere for long.

        Before, they may be with a worker that was killed just now, whose jobs go back once it is known to be dead.
        """
        self._missed = {p.query.id: self._missed.get(p.query.id, 0) + 1 for p in nowhere}
        dropped = [pending for pending in nowhere if self._missed[pending.query.id] >= _LOOKS_MISSED]
        self._patiently(lambda: self._ask_again(dropped))

    def _send_again(self, parts: Sequence[Part]) -> None:
        """Send parts again that failed for a reason that may pass or be mended."""
        for _ in range(_RESTORES):
            if not any(isinstance(part.error, EpisodeLost) or self._may_pass(part) for part in parts):
                return
            try:
                self._patiently(partial(self._mend, parts))
            except VlacQueueError as error:
                # Where it was not the sending that failed, it stays undone for the same reason.
                for part in parts:
                    if self._may_pass(part):
                        part.error = error
                return

    def _mend(self, parts: Sequence[Part]) -> None:
        lost = [part for part in parts if isinstance(part.error, EpisodeLost)]
        restored = self._restore([part.episode for part in lost])
        tried = [part for part in lost if part.episode.id in restored]
        tried += [part for part in parts if self._may_pass(part)]
        self._send(tried)
        for part in tried:
            if part.error and self._may_pass(part):
                raise part.error

    def _may_pass(self, part: Part) -> bool:
        """Return whether trying again may help: Redis is away or full, or others hold the room for a batch."""
        error = part.error
        if not isinstance(error, QueueFull):
            return isinstance(error, RedisUnavailable) and not isinstance(error, EpisodeLost)
        own = self._opened.sent_bytes
        return error.__cause__ is not None or own + len(part.payload) <= self._config.max_pending_bytes

    def _send(self, parts: Sequence[Part]) -> None:
        self._sender.send(parts)
        if any(isinstance(part.error, QueueFull) for part in parts):
            self._sender.store.drop_abandoned()

    def _restore(self, episodes: Sequence[Episode]) -> set[str]:
        """Open episodes again that Redis lost, push their frames and ask their open queries again.

        It may be done again after an error, wherever that came.

        Returns:
            Ids of those that could be.
        """
        if not episodes:
            return set()
        with self._restoring:
            able = {episode: episode.pushed.kept for episode in episodes if episode.pushed.kept is not None}
            if not able:
                return set()
            _log.warning("Redis has lost %d open episodes; their frames are pushed again", len(able))
            references = {episode.meta.reference: episode.reference for episode in able}
            opening = [(episode.id, episode.meta) for episode in able]
            counts = self._sender.store.open(opening, references, max_bytes=self._config.max_pending_bytes)
            for (episode, kept), count in zip(able.items(), counts, strict=True):
                for index in range(count, len(kept)):
                    part = Part(episode, index=index, payload=kept[index])
                    self._send([part])
                    if part.error:
                        raise part.error
            # Its clock may have jumped, and the position in the stream be one of a past server.
            self._answers.start_over()
        self._ask_again([pending for pending in self._answers.carried() if pending.episode in able])
        return {episode.id for episode in able}

    def _ask_again(self, pendings: Sequence[Pending[Any]]) -> None:
        """Ask open queries again under their ids: one that was answered meanwhile stays so."""
        if not pendings:
            return
        now = self._clock.sync().now()
        for pending in pendings:
            pending.renew(now, self._config.timeout_s)
        parts = [Part(pending.episode, pending=pending) for pending in pendings]
        # What is lost once more is found at the next look.
        self._send(parts)
        for pending, part in zip(pendings, parts, strict=True):
            pending.carried_by(part.job)
