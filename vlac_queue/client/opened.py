"""The open episodes of one client: it opens and closes them here."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlac_queue.client.episode import Client, Episode
from vlac_queue.client.reference import References
from vlac_queue.config import VlacConfig
from vlac_queue.connection import Patience
from vlac_queue.errors import ProtocolError
from vlac_queue.frames import Frames
from vlac_queue.messages import MAX_TASK_CHARS, check_id
from vlac_queue.store import EpisodeMeta, EpisodeStore


class Opened:
    """Opens and closes episodes. Threads may share it.

    Args:
        client, client_id: whose they are.
        config: what their queries shall be like.
        store: opens them on Redis.
    """

    def __init__(self, client: Client, client_id: str, config: VlacConfig, store: EpisodeStore) -> None:
        self.client_id = client_id
        self._client = client
        self._config = config
        self._store = store
        self._references = References()
        self._lock = threading.Lock()
        self._episodes: dict[str, Episode] = {}

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
                client=self.client_id,
            )
            name = check_id(id) if id is not None else uuid.uuid4().hex
            episodes.append(Episode(self._client, name, meta, reference.batches))
        if episodes:
            opening = [(episode.id, episode.meta) for episode in episodes]
            batches = {reference.id: reference.batches for reference in chosen}
            patiently(lambda: self._store.open(opening, batches, max_bytes=self._config.max_pending_bytes))
        with self._lock:
            self._episodes.update((episode.id, episode) for episode in episodes)
        return episodes

    def close(self, closing: Sequence[Episode], patiently: Patience) -> bool:
        """Delete the keys of episodes, and those of the client with its last one; return whether it was."""
        for episode in closing:
            episode.begin_closing()
        with self._lock:
            last = not self._episodes.keys() - {episode.id for episode in closing}
        # While one is open, another thread may ask about it and wait on the stream.
        keys = self._store.keys
        of_client = [keys.client(self.client_id), keys.client_answers(self.client_id)] if last else []
        patiently(lambda: self._store.close([(each.id, each.meta.reference) for each in closing], of_client))
        return last

    def forget(self, closed: Sequence[Episode]) -> None:
        """Count episodes no more among the open ones."""
        with self._lock:
            for episode in closed:
                self._episodes.pop(episode.id, None)


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
