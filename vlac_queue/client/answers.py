"""The answers of one client: queries that have none yet, and the stream that brings them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from vlac_queue.client.decision_log import DecisionLog
from vlac_queue.client.episode import Episode, Pending
from vlac_queue.errors import ProtocolError, VlacQueueError
from vlac_queue.messages import (
    Answer,
    CriticIdentity,
    DoneVerdict,
    Failure,
    Query,
    ValueVerdict,
    decode_answer,
    is_id,
)
from vlac_queue.store import EpisodeStore

_log = logging.getLogger(__name__)

#: Entries of its stream that a client reads before it trims them.
_ENTRIES_KEPT = 64


class Answers:
    """Takes in the answers to open queries. Threads may share it.

    Args:
        store: reads the stream.
        client: id of the client.
        log: is told of each answer, if there is one.
    """

    def __init__(self, store: EpisodeStore, client: str, log: DecisionLog | None) -> None:
        self._store = store
        self._client = client
        self._decisions = log
        self._lock = threading.Lock()
        # By the ids of their queries; the position in the stream up to which answers were taken in; and how many
        # of its entries were read and stand there still.
        self._open: dict[str, Pending[Any]] = {}
        self._seen = b"0"
        self._unforgotten = 0

    def expect(self, pendings: Iterable[Pending[Any]]) -> None:
        """Take in answers to these from now on."""
        with self._lock:
            self._open.update((pending.query.id, pending) for pending in pendings)

    def give_up(self, pendings: Iterable[Pending[Any]]) -> None:
        """Expect no answers to these, which did not get through to Redis."""
        with self._lock:
            for pending in pendings:
                self._open.pop(pending.query.id, None)

    def drop(self, episodes: Iterable[Episode]) -> list[Pending[Any]]:
        """Expect no more answers for episodes; return those that were still open."""
        dropped = set(episodes)
        with self._lock:
            unanswered = [pending for pending in self._open.values() if pending.episode in dropped]
            for pending in unanswered:
                del self._open[pending.query.id]
        return unanswered

    def carried(self) -> list[Pending[Any]]:
        """Return the open queries that Redis has taken, of episodes that are not being closed."""
        with self._lock:
            return [pending for pending in self._open.values() if pending.job and not pending.episode.closing]

    def start_over(self) -> None:
        """Read the stream from its beginning: it is another one, or answers in it may have been missed."""
        self._seen = b"0"

    def read(self, block_s: float | None) -> None:
        """Take in the answers that stand in the stream; wait up to `block_s` seconds for the first of them."""
        for entry_id, answers, worker in self._store.read_answers(self._client, self._seen, block_s=block_s):
            self.take_in(answers, _position(entry_id)[0] / 1000, worker)
            with self._lock:
                # Another thread that waits on the stream may have read further.
                self._seen = max(self._seen, entry_id, key=_position)
                self._unforgotten += 1
        if self._unforgotten >= _ENTRIES_KEPT:
            self._unforgotten = 0
            self._store.forget_answers(self._client, self._seen)

    def take_in(self, answers: Mapping[str, str], written: float | None, worker: str = "") -> None:
        """Take in answers, by the ids of their queries. One that can't be read fails its own query.

        Args:
            written: when, in seconds since 1970 on Redis' clock; None where that is not known.
            worker: who answered, if that is known.
        """
        for query_id, text in answers.items():
            if (pending := self._open.get(query_id)) is None:
                # Of an episode that was closed, or taken in already; or none of ours at all.
                if not is_id(query_id):
                    _log.warning("what names no query is passed over in the answers: %r", query_id[:80])
                continue
            try:
                answer, critic = _answer_to(pending.query, text)
            except ProtocolError as error:
                self.fail(pending, ProtocolError(f"the answer to {pending} is unusable: {error}"))
                continue
            with self._lock:
                # Another thread that waits on the same stream may have taken it in already. It leaves the open
                # ones last: Ctrl-C before that has it taken in again.
                if query_id in self._open:
                    pending.resolve(answer, critic, written)
                    del self._open[query_id]
                    pending.episode.count_answer(pending.answer_s, worker)
                    if self._decisions:
                        self._decisions.answered(pending)

    def fail(self, pending: Pending[Any], error: VlacQueueError) -> None:
        """Have an error be the answer."""
        with self._lock:
            self._open.pop(pending.query.id, None)
            if pending.answered:
                return  # by another thread meanwhile
            pending.resolve(error)
            if self._decisions:
                self._decisions.answered(pending)


def _answer_to(query: Query, text: str) -> tuple[Answer, CriticIdentity]:
    """Return the answer to a query, and who gave it.

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


def _position(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence or 0)
