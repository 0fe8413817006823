"""One episode that is open on Redis. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from vlac_queue.commands.episodes.record import Asked, EpisodeRecord, one_of
from vlac_queue.errors import ProtocolError
from vlac_queue.keys import Keys
from vlac_queue.messages import DoneVerdict, ValueVerdict, check_id, decode_answer
from vlac_queue.store import EpisodeMeta

#: Encoded batches read in one round trip.
_BATCHES = 16


def find_episode(connection: redis.Redis, keys: Keys, start: str) -> str:
    """The id of the open episode that is called so, or, where there is none, of the only one whose id begins so.

    Raises:
        ProtocolError: there is none, or there are several, or this user of Redis may not list them.
    """
    if connection.exists(keys.episode(check_id(start)).meta):
        return start
    try:
        members: list[bytes] = connection.zrange(keys.open, 0, -1)  # type: ignore[assignment]
    except redis.exceptions.NoPermissionError:
        raise ProtocolError(
            f"no open episode is called {start!r}, and this user of Redis may not list those whose ids begin so: "
            "give the whole id."
        ) from None
    found = one_of([member.decode() for member in members if member.startswith(start.encode())], start)
    if found is None:
        raise ProtocolError(
            f"no open episode {start!r} on queue {keys.queue!r}; see `vlac-queue episodes list`. Closed ones are "
            "in the decision log, if there is one: --log DIR."
        )
    return found


def read_episode(connection: redis.Redis, keys: Keys, episode: str) -> EpisodeRecord:
    """What Redis knows of an open episode.

    Raises:
        ProtocolError: there is no open episode of that id, or its keys are not of this protocol.
    """
    names = keys.episode(check_id(episode))
    with connection.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(names.meta)
        pipeline.hgetall(names.queries)
        fields, queries = pipeline.execute()
    if not fields:
        raise ProtocolError(f"episode {episode!r} is no longer open: it was closed, or it expired.")
    meta = EpisodeMeta.from_hash(fields)
    ordered = sorted(queries.items(), key=lambda item: _number(item[0]))
    return EpisodeRecord(
        id=episode,
        token="",
        task=meta.task,
        reference=meta.reference,
        done_threshold=meta.done_threshold,
        value_stride=meta.value_stride,
        asked=tuple(_asked(text.decode(errors="replace")) for _, text in ordered),
    )


def read_batches(connection: redis.Redis, keys: Keys, episode: str) -> Iterator[bytes]:
    """The encoded frame batches of an open episode, in order."""
    start = 0
    while True:
        batches: Any = connection.lrange(keys.episode(episode).frames, start, start + _BATCHES - 1)
        yield from batches
        start += len(batches)
        if len(batches) < _BATCHES:
            return


def _number(query_id: bytes) -> int:
    """The place of a query within its episode: ids end with it."""
    number = query_id.rpartition(b"-")[2]
    return int(number) if number.isdigit() else 0


def _asked(text: str) -> Asked:
    """A query as its field in the episode's hash says: its kind, or its answer."""
    if text in ("done", "value"):
        return Asked(kind=text, answer=None, frame=None)  # type: ignore[arg-type]
    _, answer, critic = decode_answer(text)
    frame = answer.frame if isinstance(answer, DoneVerdict) else None
    return Asked("value" if isinstance(answer, ValueVerdict) else "done", answer, frame, critic)
