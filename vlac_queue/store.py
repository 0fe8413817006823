"""Episodes on Redis: every operation that a rollout or a worker does on an episode's keys.

What has to be atomic is a short Lua script; scripts are sent whole (EVAL), so a restarted server needs
nothing loaded. All errors are Redis' own here; the client and the worker turn them into ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.client import Pipeline

from vlac_queue.errors import ProtocolError, QueueFull, RedisUnavailable, VlacQueueError
from vlac_queue.keys import TOTAL_FIELD, Keys
from vlac_queue.messages import Answer, Query, encode_answer

# Forgets the bytes of episodes whose time is over, so that a crashed rollout does not hold the budget.
_PURGE = f"""
local function now() return tonumber(redis.call('TIME')[1]) end
local function forget(open, sizes, id)
  redis.call('ZREM', open, id)
  local size = redis.call('HGET', sizes, id)
  if size then
    redis.call('HDEL', sizes, id)
    local total = redis.call('HINCRBY', sizes, '{TOTAL_FIELD}', -size)
    if total <= 0 then redis.call('HDEL', sizes, '{TOTAL_FIELD}') end
  end
end
local function purge(open, sizes)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', open, '-inf', now(), 'LIMIT', 0, 100)) do
    forget(open, sizes, id)
  end
end
"""

# KEYS meta open sizes reference users; ARGV id ttl uses_reference field value ...
_OPEN = (
    _PURGE
    + """
purge(KEYS[2], KEYS[3])
if redis.call('EXISTS', KEYS[1]) == 1 then return 'taken' end
if ARGV[3] == '1' then
  if redis.call('EXISTS', KEYS[4]) == 0 then return 'no reference' end
  redis.call('SADD', KEYS[5], ARGV[1])
  redis.call('EXPIRE', KEYS[4], ARGV[2])
  redis.call('EXPIRE', KEYS[5], ARGV[2])
end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], now() + ARGV[2], ARGV[1])
return 'ok'
"""
)

# KEYS reference; ARGV ttl payload ...
_STORE_REFERENCE = """
if redis.call('EXISTS', KEYS[1]) == 0 then
  for i = 2, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'ok'
"""

# Keeps an episode and its reference for another ttl. KEYS 1..7: meta frames pending answers open reference users.
_TOUCH = """
local function touch(id, ttl)
  for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ttl) end
  redis.call('ZADD', KEYS[5], now() + ttl, id)
  redis.call('EXPIRE', KEYS[6], ttl)
  redis.call('EXPIRE', KEYS[7], ttl)
end
"""

# KEYS as _TOUCH, sizes; ARGV id ttl batch_index payload max_bytes. Sending a push again, after a connection
# broke before the reply, changes nothing.
_PUSH = (
    _PURGE
    + _TOUCH
    + f"""
if redis.call('EXISTS', KEYS[1]) == 0 then return {{'gone'}} end
local count, index = redis.call('LLEN', KEYS[2]), tonumber(ARGV[3])
if count == index + 1 and redis.call('LINDEX', KEYS[2], index) == ARGV[4] then return {{'ok'}} end
if count ~= index then return {{'order', count}} end
purge(KEYS[5], KEYS[8])
local total = tonumber(redis.call('HGET', KEYS[8], '{TOTAL_FIELD}') or 0)
if total + #ARGV[4] > tonumber(ARGV[5]) then return {{'full', total}} end
redis.call('RPUSH', KEYS[2], ARGV[4])
redis.call('HINCRBY', KEYS[8], ARGV[1], #ARGV[4])
redis.call('HINCRBY', KEYS[8], '{TOTAL_FIELD}', #ARGV[4])
touch(ARGV[1], ARGV[2])
return {{'ok'}}
"""
)

# KEYS as _TOUCH; ARGV id ttl query_id kind
_ASK = (
    _PURGE
    + _TOUCH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
touch(ARGV[1], ARGV[2])
return 'ok'
"""
)

# KEYS pending answers; ARGV query_id answer ttl. Only who takes the query off the pending ones answers it.
_ANSWER = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', 'a', ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
"""

# KEYS as _TOUCH, sizes; ARGV id
_CLOSE = (
    _PURGE
    + """
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
forget(KEYS[5], KEYS[8], ARGV[1])
if redis.call('SREM', KEYS[7], ARGV[1]) == 1 and redis.call('SCARD', KEYS[7]) == 0 then
  redis.call('DEL', KEYS[6], KEYS[7])
end
return 'ok'
"""
)


@dataclass(frozen=True)
class EpisodeMeta:
    """What a worker needs to know of an episode besides its frames.

    Attributes:
        task: the task's text.
        reference: id (SHA-256) of its reference frames, or "".
        done_threshold: a score above this (strictly) means done, 0..1.
        value_stride: distance in frames between the images of a pair in value lists.
        ttl_s: seconds until the episode's keys expire when nobody touches them.
    """

    task: str
    reference: str
    done_threshold: float
    value_stride: int
    ttl_s: int

    @classmethod
    def from_hash(cls, fields: Mapping[bytes, bytes]) -> EpisodeMeta:
        """From the hash as Redis gives it.

        Raises:
            ProtocolError: a field is missing or not of its type.
        """
        try:
            return cls(
                task=fields[b"task"].decode(),
                reference=fields[b"reference"].decode(),
                done_threshold=float(fields[b"done_threshold"]),
                value_stride=int(fields[b"value_stride"]),
                ttl_s=int(fields[b"ttl_s"]),
            )
        except (KeyError, ValueError) as error:
            raise ProtocolError(f"an episode's meta hash is not of this protocol ({error!r}).") from None


@dataclass(frozen=True)
class Push:
    """One encoded batch on its way: the episode, its reference id or "", the batch's index, the bytes."""

    episode: str
    reference: str
    index: int
    payload: bytes


class EpisodeStore:
    """The episodes of one queue. Threads may share it."""

    def __init__(self, connection: redis.Redis, keys: Keys, *, ttl_s: int) -> None:
        self.connection = connection
        self.keys = keys
        self.ttl_s = ttl_s

    # What a rollout does.

    def open(self, episode: str, meta: EpisodeMeta, reference: Sequence[bytes] = ()) -> None:
        """Opens an episode; stores the encoded `reference` batches unless Redis has them already.

        Raises:
            ProtocolError: the id belongs to an open episode.
        """
        keys, reference_key = self.keys.episode(episode), self.keys.reference(meta.reference)
        script_keys = (keys.meta, self.keys.open, self.keys.sizes, reference_key, self._users(meta.reference))
        fields = [text for name, value in vars(meta).items() for text in (name, str(value))]
        arguments = (episode, self.ttl_s, int(bool(meta.reference)), *fields)
        while True:
            status = self._eval(self.connection, _OPEN, script_keys, arguments)
            if status == b"ok":
                return
            if status == b"taken":
                raise ProtocolError(
                    f"episode {episode!r} is open already; close it, or let the client make the id."
                )
            # Not there yet, or its last user closed between two of these calls.
            self._eval(self.connection, _STORE_REFERENCE, (reference_key,), (self.ttl_s, *reference))

    def push(self, pushes: Sequence[Push], *, max_bytes: int) -> list[VlacQueueError | None]:
        """Appends encoded batches, one round trip for all. Sending a push again changes nothing.

        Returns:
            For each push None, or why it was not stored: QueueFull, RedisUnavailable (the episode's keys are
            gone) or ProtocolError (another writer, or a push lost).
        """
        with self.connection.pipeline(transaction=False) as pipeline:
            for push in pushes:
                keys = (*self._touched(push.episode, push.reference), self.keys.sizes)
                self._eval(pipeline, _PUSH, keys, (push.episode, self.ttl_s, push.index, push.payload, max_bytes))
            replies = pipeline.execute()
        return [self._push_error(push, reply, max_bytes) for push, reply in zip(pushes, replies, strict=True)]

    def ask(self, queries: Sequence[tuple[Query, str]], pipeline: Pipeline) -> None:
        """Adds to `pipeline` what registers queries, each given with its episode's reference id.

        The pipeline's replies begin with one b"ok" or b"gone" for each query.
        """
        for query, reference in queries:
            keys = self._touched(query.episode, reference)
            self._eval(pipeline, _ASK, keys, (query.episode, self.ttl_s, query.id, query.kind))

    def read_answers(
        self, after: Mapping[str, bytes], *, block_s: float | None
    ) -> dict[str, list[tuple[bytes, str]]]:
        """Answers that came after the given stream position of each episode.

        Args:
            after: episode -> id of the last stream entry seen, b"0" at first.
            block_s: seconds to wait for the first one; None does not wait.

        Returns:
            episode -> [(stream entry id, answer text)]; episodes without news are left out.
        """
        streams: dict[Any, Any] = {self.keys.episode(episode).answers: seen for episode, seen in after.items()}
        block_ms = None if block_s is None else max(1, int(block_s * 1000))
        reply: Any = self.connection.xread(streams, block=block_ms)
        by_key = {self.keys.episode(episode).answers.encode(): episode for episode in after}
        news = reply.items() if isinstance(reply, dict) else reply or ()
        answers: dict[str, list[tuple[bytes, str]]] = {}
        for key, entries in news:
            # RESP3 wraps the entries of a stream once more than RESP2.
            if entries and isinstance(entries[0], list):
                entries = entries[0]
            answers[by_key[key]] = [(entry_id, fields[b"a"].decode()) for entry_id, fields in entries]
        return answers

    def missing(self, episodes: Sequence[str]) -> list[str]:
        """Those of `episodes` whose keys are gone: closed, expired, or lost with a restarted server."""
        with self.connection.pipeline(transaction=False) as pipeline:
            for episode in episodes:
                pipeline.exists(self.keys.episode(episode).meta)
            return [episode for episode, there in zip(episodes, pipeline.execute(), strict=True) if not there]

    def close(self, episodes: Sequence[tuple[str, str]]) -> None:
        """Deletes the keys of episodes, each given with its reference id or ""; one round trip for all."""
        with self.connection.pipeline(transaction=False) as pipeline:
            for episode, reference in episodes:
                self._eval(pipeline, _CLOSE, (*self._touched(episode, reference), self.keys.sizes), (episode,))
            pipeline.execute()

    # What a worker does.

    def read_episodes(
        self, wanted: Sequence[tuple[str, int, int]]
    ) -> list[tuple[EpisodeMeta | ProtocolError | None, dict[bytes, bytes], list[bytes]]]:
        """Meta, pending queries and encoded batches of episodes, one round trip for all.

        Args:
            wanted: (episode, index of the first batch, index of the last batch).

        Returns:
            For each: its meta (None where the episode is gone, the error where it can't be read), its
            pending queries (id -> kind), the batches.
        """
        with self.connection.pipeline(transaction=False) as pipeline:
            for episode, first, last in wanted:
                keys = self.keys.episode(episode)
                pipeline.hgetall(keys.meta)
                pipeline.hgetall(keys.pending)
                pipeline.lrange(keys.frames, first, last)
            replies = pipeline.execute()
        episodes = []
        for fields, pending, batches in zip(replies[0::3], replies[1::3], replies[2::3], strict=True):
            meta: EpisodeMeta | ProtocolError | None
            try:
                meta = EpisodeMeta.from_hash(fields) if fields else None
            except ProtocolError as error:
                meta = error
            episodes.append((meta, pending, batches))
        return episodes

    def read_reference(self, reference: str) -> list[bytes]:
        """The encoded batches of reference frames; empty where they are gone."""
        batches: Any = self.connection.lrange(self.keys.reference(reference), 0, -1)
        return batches

    def answer(self, query: Query, answer: Answer, pipeline: Pipeline, *, ttl_s: int | None = None) -> None:
        """Adds to `pipeline` the answer to a query; its reply is 1, or 0 where the query is no longer pending."""
        keys = self.keys.episode(query.episode)
        arguments = (query.id, encode_answer(query.id, answer), ttl_s or self.ttl_s)
        self._eval(pipeline, _ANSWER, (keys.pending, keys.answers), arguments)

    def _users(self, reference: str) -> str:
        return self.keys.reference_users(reference)

    def _touched(self, episode: str, reference: str) -> tuple[str, ...]:
        keys = self.keys.episode(episode)
        return (
            keys.meta,
            keys.frames,
            keys.pending,
            keys.answers,
            self.keys.open,
            self.keys.reference(reference),
            self._users(reference),
        )

    @staticmethod
    def _eval(target: redis.Redis | Pipeline, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return target.eval(script, len(keys), *keys, *arguments)

    @staticmethod
    def _push_error(push: Push, reply: list[Any], max_bytes: int) -> VlacQueueError | None:
        status = reply[0]
        if status == b"ok":
            return None
        if status == b"full":
            return QueueFull(
                f"open episodes hold {reply[1]} bytes of frames and max_pending_bytes is {max_bytes}; nothing was "
                "stored. Close finished episodes, start more workers, or raise max_pending_bytes."
            )
        if status == b"gone":
            return episode_gone(push.episode)
        return ProtocolError(
            f"episode {push.episode!r} has {reply[1]} batches on Redis where {push.index} were pushed from here; "
            "only one client may push to an episode."
        )


def episode_gone(episode: str) -> RedisUnavailable:
    """The error for an episode whose keys vanished while it was open."""
    return RedisUnavailable(
        f"the keys of episode {episode!r} are gone: Redis restarted without persistence, evicted them (set "
        "maxmemory-policy noeviction), or nobody touched the episode for episode_ttl_s. Start a new episode."
    )
