"""The open episodes of one client: it opens and closes them here."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import redis

from vlac_queue.client.answers import Answers
from vlac_queue.client.decision_log import DecisionLog
from vlac_queue.client.episode import Client, Episode
from vlac_queue.client.reference import References
from vlac_queue.client.sending import Sender
from vlac_queue.connection import Patience
from vlac_queue.errors import ProtocolError
from vlac_queue.faults import Fault, fault_of
from vlac_queue.frames import Frames
from vlac_queue.keys import CLIENT_TTL_S
from vlac_queue.messages import MAX_TASK_CHARS, check_id
from vlac_queue.store import EpisodeMeta

#: Seconds between two signs of life to Redis.
_LIFE_S = 5.0


class Opened:
    """Opens and closes episodes, and tells Redis that their client is there. Threads may share it.

    Args:
        client, client_id: whose they are.
        sender, answers: hold what is to be let go with an episode.
        log: is told of each, if there is one.
    """

    def __init__(
        self, client: Client, client_id: str, sender: Sender, answers: Answers, log: DecisionLog | None
    ) -> None:
        self._client = client
        self._client_id = client_id
        self._sender = sender
        self._answers = answers
        self._decisions = log
        self._config = sender.config
        self._store = sender.store
        self._references = References()
        self._lock = threading.Lock()
        self._episodes: dict[str, Episode] = {}
        self._lived = -float("inf")

    def live(self) -> None:
        """Tell Redis, now and then, that the client is there."""
        if time.monotonic() - self._lived > _LIFE_S:
            try:
                self._store.connection.set(self._store.keys.client(self._client_id), 1, ex=CLIENT_TTL_S)
            except redis.RedisError as error:
                # What takes no writes may be read all the same, and answers must be.
                if fault_of(error) not in (Fault.FULL, Fault.REFUSED):
                    raise
            self._lived = time.monotonic()

    @property
    def sent_bytes(self) -> int:
        """Bytes of frames that open episodes hold on Redis."""
        return sum(episode.sent_bytes for episode in self.all())

    def all(self) -> list[Episode]:
        """Return the open episodes."""
        with self._lock:
            return list(self._episodes.values())

    def open(
        self,
        tasks: Sequence[str],
        references: Sequence[Frames | str | Path | None],
        ids: Sequence[str | None],
        patiently: Patience,
    ) -> list[Episode]:
        """Open an episode for each task, with its reference and its id, if it is given one."""
        default = self._config.reference
        chosen = self._references.find([default if each is None else each for each in references])
        episodes = []
        for task, reference, id in zip(tasks, chosen, ids, strict=True):
            _check_task(task)
            meta = EpisodeMeta(
                task=task,
                reference=reference.id,
                done_threshold=self._config.done_threshold,
                value_stride=self._config.value_stride,
                ttl_s=self._config.episode_ttl_s,
                token=uuid.uuid4().hex[:12],
                client=self._client_id,
            )
            name = check_id(id) if id is not None else uuid.uuid4().hex
            episodes.append(Episode(self._client, name, meta, reference.batches))
        if episodes:
            opening = [(episode.id, episode.meta) for episode in episodes]
            batches = {reference.id: reference.batches for reference in chosen}
            patiently(lambda: self._store.open(opening, batches, max_bytes=self._config.max_pending_bytes))
        with self._lock:
            self._episodes.update((episode.id, episode) for episode in episodes)
            self._sender.stats.episodes += len(episodes)
        for episode in episodes:
            if self._decisions:
                self._decisions.opened(episode)
        return episodes

    def check(self, episodes: Iterable[Episode]) -> None:
        """Raise ProtocolError where one can't be used (any more)."""
        for episode in episodes:
            episode.check_open(self._client, self._client_id)

    def close(self, episodes: Sequence[Episode], patiently: Patience) -> None:
        """Delete the keys of episodes, and those of the client with its last one."""
        for episode in episodes:
            episode.check_client(self._client)
        closing = self._still_open(episodes)
        if not closing:
            return
        for episode in closing:
            episode.begin_closing()
        with self._lock:
            last = not self._episodes.keys() - {episode.id for episode in closing}
        # While one is open, another thread may ask about it and wait on the stream.
        keys = self._store.keys
        of_client = [keys.client(self._client_id), keys.client_answers(self._client_id)] if last else []
        patiently(lambda: self._store.close([(each.id, each.meta.reference) for each in closing], of_client))
        if last:
            self._lived = -float("inf")
            self._answers.start_over()  # the next stream begins anew, by a clock that may have been set back
        self.forget(closing)

    def forget(self, episodes: Sequence[Episode]) -> None:
        """Count episodes as closed."""
        closed = self._still_open(episodes)
        with self._lock:
            for episode in closed:
                self._episodes.pop(episode.id, None)
        unanswered = self._answers.drop(closed)
        for episode in closed:
            self._sender.forget(episode)
            if self._decisions:
                self._decisions.closed(episode, [each.query for each in unanswered if each.episode is episode])

    def _still_open(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Return those that are open, and not the parent's from before a fork: it goes on with them."""
        return [each for each in episodes if not each.closed and each.meta.client == self._client_id]


def _check_task(task: Any) -> None:
    """Raise ProtocolError where `task` is no text that can be sent."""
    if not isinstance(task, str) or not task.strip() or len(task) > MAX_TASK_CHARS:
        raise ProtocolError(f"a task must be a text of 1 to {MAX_TASK_CHARS} characters, not {str(task)[:80]!r}.")
    try:
        task.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(
            f"a task must be text in Unicode; character {error.start} of {task[:80]!r} is half of a pair, or a "
            "byte that was no UTF-8: read the text with its right encoding."
        ) from None
