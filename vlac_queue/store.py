"""Episodes on Redis: every operation that a rollout or a worker does on an episode's keys.

What has to be atomic is a short Lua script, which takes many episodes at once: what a step costs does not grow
by a round trip an episode. All errors are Redis' own here; the client and the worker turn them into ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import redis
from redis.client import Pipeline

from vlac_queue.connection import Script, checked, exchange
from vlac_queue.errors import EpisodeLost, ProtocolError, QueueFull, VlacQueueError
from vlac_queue.faults import passes
from vlac_queue.jobs import NewJob
from vlac_queue.keys import LIMIT_FIELD, TOTAL_FIELD, Keys
from vlac_queue.messages import MAX_TASK_CHARS, Query

#: Entries of a client's stream of answers that are kept; it reads them long before.
_ANSWERS_KEPT = 1000
#: Most answers written by one script: Lua can't hand more than some 8,000 values to a command.
_MOST_ANSWERS = 1000
#: Most encoded batches read by one script, so that no reply is huge.
_MOST_BATCHES = 256
#: Most bytes of encoded batches that a worker reads in one round trip without a look at its memory.
MOST_READ_BYTES = 64 << 20

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
  if redis.call('EXISTS', open) == 0 then redis.call('DEL', sizes) end
end
local function purge(open, sizes)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', open, '-inf', now(), 'LIMIT', 0, 100)) do
    forget(open, sizes, id)
  end
end
"""

# Opening again under the same token restores what Redis has lost and changes nothing else, so it may be repeated.
# KEYS meta frames open sizes reference users; ARGV id ttl max_bytes uses_reference token field value ...
# Reply: 'taken', 'no reference', or the number of batches there.
_OPEN = (
    _PURGE
    + f"""
purge(KEYS[3], KEYS[4])
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('HGET', KEYS[1], 'token') ~= ARGV[5] then return 'taken' end
if ARGV[4] == '1' then
  if redis.call('EXISTS', KEYS[5]) == 0 then return 'no reference' end
  redis.call('SADD', KEYS[6], ARGV[1])
  redis.call('EXPIRE', KEYS[5], ARGV[2])
  redis.call('EXPIRE', KEYS[6], ARGV[2])
end
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
redis.call('EXPIRE', KEYS[1], ARGV[2])
local batches = redis.call('LLEN', KEYS[2])
if batches == 0 then forget(KEYS[3], KEYS[4], ARGV[1]) end
redis.call('ZADD', KEYS[3], now() + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[4], '{LIMIT_FIELD}', ARGV[3])
return batches
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

# Pushes batches and registers queries, for each episode the one, the other or both; and enqueues the jobs that
# carry the queries, if any was registered. Sending it again, after a connection broke, changes nothing.
# KEYS open sizes rq_queue rq_queues, each job's key, and for each episode: meta frames queries reference users;
# ARGV ttl max_bytes number_of_jobs pushes, for each job: id, number_of_fields, field value ..., and for each
# episode: id, batch_index, payload (or ""), query_id (or ""), kind. Reply for each: {status}, {status, number} or
# {'error', what Redis said}: keys of a wrong type spoil their episode alone.
# Where nothing is pushed (pushes is 0), it goes on when Redis is full (see _ANSWER).
_STEP = Script(
    _PURGE
    + f"""
if ARGV[4] == '0' then redis.call('HDEL', KEYS[2], '') end
-- Keys of a wrong type are found before anything is written.
redis.call('HGET', KEYS[2], '')
redis.call('LLEN', KEYS[3])
purge(KEYS[1], KEYS[2])
local ttl, limit, jobs, expires = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), now() + ARGV[1]
local function push(frames, id, index, payload)
  local count = redis.call('LLEN', frames)
  if count == index + 1 and redis.call('LINDEX', frames, index) == payload then return end
  if count ~= index then return {{'order', count}} end
  local total = tonumber(redis.call('HGET', KEYS[2], '{TOTAL_FIELD}') or 0)
  if total + #payload > limit then return {{'full', total}} end
  redis.call('RPUSH', frames, payload)
  redis.call('HINCRBY', KEYS[2], id, #payload)
  redis.call('HINCRBY', KEYS[2], '{TOTAL_FIELD}', #payload)
end
local a, first_job = 5, 5
for j = 1, jobs do a = a + 2 + ARGV[a + 1] end
local replies, asked = {{}}, false
local function step(k, id, index, payload, query, kind)
  if redis.call('EXISTS', KEYS[k]) == 0 then return {{'gone'}} end
  if query ~= '' then redis.call('HGET', KEYS[k + 2], query) end
  local failed = payload ~= '' and push(KEYS[k + 1], id, tonumber(index), payload)
  if failed then return failed end
  if query ~= '' then
    redis.call('HSETNX', KEYS[k + 2], query, kind)
    asked = true
  end
  for key = k, k + 4 do redis.call('EXPIRE', KEYS[key], ttl) end
  redis.call('ZADD', KEYS[1], expires, id)
  return {{'ok'}}
end
for i = 1, (#KEYS - 4 - jobs) / 5 do
  local ok, reply = pcall(step, 5 * i + jobs, unpack(ARGV, a, a + 4))
  replies[i] = ok and reply or {{'error', type(reply) == 'table' and reply.err or reply}}
  a = a + 5
end
if asked then
  a = first_job
  redis.pcall('SADD', KEYS[4], KEYS[3]) -- for `rq info`
  for j = 1, jobs do
    local count = tonumber(ARGV[a + 1])
    if redis.call('EXISTS', KEYS[4 + j]) == 0 then
      redis.call('HSET', KEYS[4 + j], unpack(ARGV, a + 2, a + 1 + count))
      redis.call('EXPIRE', KEYS[4 + j], ttl)
      redis.call('RPUSH', KEYS[3], ARGV[a])
    end
    a = a + 2 + count
  end
end
return replies
"""
)

# Closes episodes whose client has not been heard of for a while. KEYS open sizes; ARGV prefixes of the keys of
# episodes, clients and references. Reply: how many.
_DROP_ABANDONED = (
    _PURGE
    + """
local count = 0
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local meta = ARGV[1] .. id
  local client, reference = unpack(redis.call('HMGET', meta, 'client', 'reference'))
  if client and redis.call('EXISTS', ARGV[2] .. client) == 0 then
    redis.call('DEL', meta, meta .. ':frames', meta .. ':queries')
    forget(KEYS[1], KEYS[2], id)
    local users = ARGV[3] .. reference .. ':users'
    if redis.call('SREM', users, id) == 1 and redis.call('SCARD', users) == 0 then
      redis.call('DEL', ARGV[3] .. reference, users)
    end
    count = count + 1
  end
end
return count
"""
)

# The batches of a list, or how many bytes they have where that is more than `most`: who reads them wants to know
# before whether they fit into its memory.
_BATCHES = """
local function batches(key, first, last, most)
  local found, bytes = redis.call('LRANGE', key, first, last), 0
  for _, batch in ipairs(found) do bytes = bytes + #batch end
  if bytes > most then return bytes, 0 end
  return found, bytes
end
"""

# Meta, batches and what is still pending. KEYS for each episode: meta frames queries; ARGV most_bytes, and for
# each: first batch, last batch, number of query ids, the ids. Reply for each: {meta, {kind or "" of each id},
# {batch ...} or their bytes}; no batches where nothing is pending. Keys of a wrong type, which no client of ours
# makes, spoil their episode alone: the reply is {} then.
_READ = Script(
    _BATCHES
    + """
local left = tonumber(ARGV[1])
local function read(i, a)
  local meta = redis.call('HGETALL', KEYS[3 * i - 2])
  local kinds, open = {}, false
  for j = 1, tonumber(ARGV[a + 2]) do
    local kind = redis.call('HGET', KEYS[3 * i], ARGV[a + 2 + j])
    if kind == 'done' or kind == 'value' then open = true else kind = '' end
    kinds[j] = kind
  end
  local found, bytes = {}, 0
  if open then found, bytes = batches(KEYS[3 * i - 1], ARGV[a], ARGV[a + 1], left) end
  left = left - bytes
  return {meta, kinds, found}
end
local replies, a = {}, 2
for i = 1, #KEYS / 3 do
  local ok, reply = pcall(read, i, a)
  replies[i] = ok and reply or {}
  a = a + 3 + tonumber(ARGV[a + 2])
end
return replies
"""
)

# KEYS reference; ARGV most_bytes. Reply: {batch ...} or their bytes.
_READ_REFERENCE = Script(_BATCHES + "return (batches(KEYS[1], 0, -1, tonumber(ARGV[1])))")

# Writes answers of one client. Only what is pending is answered. KEYS client_stream, and for each answer its
# episode's queries; ARGV ttl kept worker, and for each: query_id answer. Reply: 1 or 0 for each. A script that has
# written may go on when Redis is full: answers must get through, since closing episodes is what frees memory.
_ANSWER = Script("""
redis.call('EXPIRE', KEYS[1], ARGV[1])
local written, news = {}, {'@', ARGV[3]}
for i = 1, #KEYS - 1 do
  local id, answer = ARGV[2 * i + 2], ARGV[2 * i + 3]
  local kind = redis.pcall('HGET', KEYS[i + 1], id)
  written[i] = 0
  if kind == 'done' or kind == 'value' then
    redis.call('HSET', KEYS[i + 1], id, answer)
    news[#news + 1], news[#news + 2] = id, answer
    written[i] = 1
  end
end
if #news > 2 then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(news))
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return written
""")

# KEYS open sizes, and for each episode: meta frames queries reference users; ARGV id ...
_CLOSE = (
    _PURGE
    + """
for i = 1, #ARGV do
  local k = 5 * i - 2
  redis.call('DEL', KEYS[k], KEYS[k + 1], KEYS[k + 2])
  forget(KEYS[1], KEYS[2], ARGV[i])
  if redis.call('SREM', KEYS[k + 4], ARGV[i]) == 1 and redis.call('SCARD', KEYS[k + 4]) == 0 then
    redis.call('DEL', KEYS[k + 3], KEYS[k + 4])
  end
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
        token: made anew at each opening, so that an episode's id used again mixes nothing up.
        client: id of the client that it belongs to.
    """

    task: str
    reference: str
    done_threshold: float
    value_stride: int
    ttl_s: int
    token: str
    client: str

    @classmethod
    def from_hash(cls, fields: Mapping[bytes, bytes]) -> EpisodeMeta:
        """From the hash as Redis gives it.

        Raises:
            ProtocolError: a field is missing, not of its type or out of range.
        """
        try:
            meta = cls(
                task=fields[b"task"].decode(),
                reference=fields[b"reference"].decode(),
                done_threshold=float(fields[b"done_threshold"]),
                value_stride=int(fields[b"value_stride"]),
                ttl_s=int(fields[b"ttl_s"]),
                token=fields[b"token"].decode(),
                client=fields[b"client"].decode(),
            )
        except (KeyError, ValueError) as error:
            raise ProtocolError(f"an episode's meta hash is not of this protocol ({error!r}).") from None
        if not (0 <= meta.done_threshold <= 1 and 1 <= meta.value_stride < 2**31 and 1 <= meta.ttl_s < 2**31):
            raise ProtocolError("an episode's done_threshold, value_stride or ttl_s is out of range.")
        if len(meta.task) > MAX_TASK_CHARS or (
            meta.reference and not re.fullmatch(r"[0-9a-f]{64}", meta.reference)
        ):
            raise ProtocolError("an episode's task is too long, or its reference is no SHA-256.")
        return meta


@dataclass(frozen=True)
class Step:
    """What a rollout sends for one episode: an encoded batch, a query about it, or both.

    Attributes:
        episode: the episode's id.
        reference: id of its reference, or "".
        index: index of the batch.
        payload: the encoded batch; b"" sends none.
        query: the query; None asks nothing.
    """

    episode: str
    reference: str
    index: int = 0
    payload: bytes = b""
    query: Query | None = None


@dataclass(frozen=True)
class Wanted:
    """What a worker wants to know of one episode: its batches `first`..`last`, and which of `queries` are open."""

    episode: str
    first: int
    last: int
    queries: tuple[str, ...]


@dataclass(frozen=True)
class EpisodeRead:
    """An episode as a worker found it.

    Attributes:
        meta: None where the episode is gone, the error where it can't be read.
        open: ids of the queries that still wait for an answer.
        batches: the encoded batches that are there, or how many bytes they have where that is more than may be
            read; empty where no query is open.
    """

    meta: EpisodeMeta | ProtocolError | None
    open: frozenset[str]
    batches: list[bytes] | int


@dataclass(frozen=True)
class ReadAhead:
    """What came along with a job for one of its queries: its episode with the one batch `index`."""

    episode: str
    index: int
    read: EpisodeRead

    def answers(self, wanted: Wanted) -> bool:
        """Whether it is what a worker wants to know."""
        only = (self.episode, self.index, self.index, 1)
        return only == (wanted.episode, wanted.first, wanted.last, len(wanted.queries))


NOTHING_AHEAD: Mapping[str, ReadAhead] = MappingProxyType({})


def episode_read(fields: Sequence[bytes], still_open: Iterable[str], batches: list[bytes] | int) -> EpisodeRead:
    """An episode from its meta hash (names and values in turn), its open queries and batches."""
    meta: EpisodeMeta | ProtocolError | None
    try:
        meta = EpisodeMeta.from_hash(dict(zip(fields[::2], fields[1::2], strict=True))) if fields else None
    except ProtocolError as error:
        meta = error
    return EpisodeRead(meta, frozenset(still_open), batches)


class EpisodeStore:
    """The episodes of one queue. Threads may share it."""

    def __init__(self, connection: redis.Redis, keys: Keys, *, ttl_s: int) -> None:
        self.connection = connection
        self.keys = keys
        self.ttl_s = ttl_s

    # What a rollout does.

    def open(
        self,
        episodes: Sequence[tuple[str, EpisodeMeta]],
        references: Mapping[str, Sequence[bytes]],
        *,
        max_bytes: int,
    ) -> list[int]:
        """Opens episodes, given by id and meta, in one round trip (and one more for a new reference).

        Opening one again under the same token restores it, if Redis lost it, and changes nothing else.

        Args:
            references: reference id -> its encoded batches, for what Redis does not have yet.
            max_bytes: the caller's max_pending_bytes, for dashboards.

        Returns:
            For each how many of its batches Redis has.

        Raises:
            ProtocolError: an id belongs to an open episode; none of `episodes` stays open then.
        """
        batches: dict[str, int] = {}
        left = list(episodes)
        while left:
            with self.connection.pipeline(transaction=False) as pipeline:
                for episode, meta in left:
                    meta_key, frames_key, _, *reference_keys = self._keys(episode, meta.reference)
                    keys = (meta_key, frames_key, self.keys.open, self.keys.sizes, *reference_keys)
                    fields = [text for name, value in vars(meta).items() for text in (name, str(value))]
                    arguments = (episode, self.ttl_s, max_bytes, int(bool(meta.reference)), meta.token, *fields)
                    self._eval(pipeline, _OPEN, keys, arguments)
                replies = dict(zip(left, pipeline.execute(), strict=True))
            batches.update((episode, reply) for (episode, _), reply in replies.items() if isinstance(reply, int))
            if taken := [episode for (episode, _), reply in replies.items() if reply == b"taken"]:
                self.close([(episode, meta.reference) for episode, meta in episodes if episode in batches])
                raise ProtocolError(
                    f"episode {taken[0]!r} is open already; close it, or let the client make the id."
                )
            left = [each for each, reply in replies.items() if reply == b"no reference"]
            # Not there yet, or its last user closed between two of these calls.
            for reference in {meta.reference for _, meta in left}:
                key = self.keys.reference(reference)
                self._eval(self.connection, _STORE_REFERENCE, (key,), (self.ttl_s, *references[reference]))
        return [batches[episode] for episode, _ in episodes]

    def step(
        self, groups: Iterable[tuple[Sequence[Step], Sequence[NewJob]]], *, max_bytes: int
    ) -> list[VlacQueueError | redis.RedisError | None]:
        """Pushes batches, registers queries and enqueues their jobs, group after group.

        A group goes out before the next is asked for, and replies are read at the end: the server (and workers)
        are at work on one group while the next is made. Sending the same again changes nothing. A query is not
        registered where its batch was refused.

        Args:
            groups: (steps, the jobs that carry their queries) of each group.
            max_bytes: bytes of encoded frames of all open episodes that are not exceeded.

        Returns:
            For each step None, or why nothing of it was stored: QueueFull, EpisodeLost, ProtocolError (another
            writer, or a push lost), or the error of Redis with which its whole group failed.
        """
        sent: list[Sequence[Step]] = []

        def commands() -> Iterator[tuple[Any, ...]]:
            for steps, jobs in groups:
                sent.append(steps)
                yield self._step_command(steps, jobs, max_bytes)

        outcomes: list[VlacQueueError | redis.RedisError | None] = []
        replies = exchange(self.connection, commands())
        for steps, reply in zip(sent, replies, strict=True):
            if isinstance(reply, redis.RedisError):
                outcomes += [reply] * len(steps)
            else:
                outcomes += [_step_error(step, each, max_bytes) for step, each in zip(steps, reply, strict=True)]
        return outcomes

    def _step_command(self, steps: Sequence[Step], jobs: Sequence[NewJob], max_bytes: int) -> tuple[Any, ...]:
        keys = [self.keys.open, self.keys.sizes, self.keys.rq_queue, self.keys.rq_queues]
        keys += [self.keys.rq_job(job.id) for job in jobs]
        arguments: list[Any] = [self.ttl_s, max_bytes, len(jobs), int(any(step.payload for step in steps))]
        for job in jobs:
            arguments += (job.id, len(job.fields), *job.fields)
        for step in steps:
            keys += self._keys(step.episode, step.reference)
            query = step.query
            arguments += (step.episode, step.index, step.payload)
            arguments += (query.id, query.kind) if query else ("", "")
        return ("EVAL", _STEP, len(keys), *keys, *arguments)

    def read_answers(
        self, client: str, after: bytes, *, block_s: float | None
    ) -> list[tuple[bytes, dict[str, str], str]]:
        """Answers for a client that came after a position of its stream.

        Args:
            after: id of the last stream entry seen, b"0" at first.
            block_s: seconds to wait for the first one; None does not wait.

        Returns:
            (stream entry id, {query id: answer text}, the worker that answered) for each batch of answers. Bytes
            that are no UTF-8 stand in the texts as surrogates.
        """
        block_ms = None if block_s is None else max(1, int(block_s * 1000))
        reply: Any = self.connection.xread({self.keys.client_answers(client): after}, block=block_ms)
        news = list(reply.values()) if isinstance(reply, dict) else [entries for _, entries in reply or ()]
        # RESP3 wraps the entries of a stream once more than RESP2.
        entries = news[0][0] if news and news[0] and isinstance(news[0][0], list) else news[0] if news else []
        answers = []
        for entry_id, fields in entries:
            worker = fields.pop(b"@", b"").decode(errors="replace")
            texts = {as_text(query): as_text(text) for query, text in fields.items()}
            answers.append((entry_id, texts, worker))
        return answers

    def drop_abandoned(self) -> int:
        """Closes the episodes of clients that have not been heard of for CLIENT_TTL_S seconds; how many."""
        prefixes = (self.keys.episode("").meta, self.keys.client(""), self.keys.reference(""))
        return int(self._eval(self.connection, _DROP_ABANDONED, (self.keys.open, self.keys.sizes), prefixes))

    def forget_answers(self, client: str, before: bytes) -> None:
        """Trims a client's stream up to a position that it has seen."""
        self.connection.xtrim(self.keys.client_answers(client), minid=before.decode(), approximate=False)

    def close(self, episodes: Sequence[tuple[str, str]], client_keys: Sequence[str] = ()) -> None:
        """Deletes the keys of episodes, each given with its reference id or "", and keys of their client.

        One round trip for all.
        """
        keys = [self.keys.open, self.keys.sizes]
        for episode, reference in episodes:
            keys += self._keys(episode, reference)
        with self.connection.pipeline(transaction=False) as pipeline:
            self._eval(pipeline, _CLOSE, keys, [episode for episode, _ in episodes])
            if client_keys:
                pipeline.delete(*client_keys)
            pipeline.execute()

    # What a worker does.

    def read_episodes(self, wanted: Sequence[Wanted], most_bytes: int = MOST_READ_BYTES) -> list[EpisodeRead]:
        """Return meta, open queries and encoded batches of episodes; one round trip for some 256 batches.

        Args:
            wanted: what of each episode.
            most_bytes: of the batches of one round trip; of episodes beyond that only the size is read.
        """
        return [read for part in _parts(wanted) for read in self._read_part(part, most_bytes)]

    def still_open(self, queries: Sequence[Query]) -> set[str]:
        """Ids of those of `queries` that wait for an answer, and whose client is there; one round trip."""
        with self.connection.pipeline(transaction=False) as pipeline:
            for query in queries:
                pipeline.hget(self.keys.episode(query.episode).queries, query.id)
                pipeline.exists(self.keys.client(query.client))
            # Keys of a wrong type, which no client of ours makes, hold nothing that is open.
            replies = pipeline.execute(raise_on_error=False)
        for reply in replies:
            if passes(reply):
                raise reply
        states = zip(queries, replies[0::2], replies[1::2], strict=True)
        return {query.id for query, kind, there in states if kind in (b"done", b"value") and there}

    def read_reference(self, reference: str, most_bytes: int = MOST_READ_BYTES) -> list[bytes] | int:
        """Return the encoded batches of reference frames, or how many bytes they have where that is more.

        Empty where they are gone.
        """
        command = ("EVAL", _READ_REFERENCE, 1, self.keys.reference(reference), most_bytes)
        (batches,) = exchange(self.connection, [command])
        return checked(batches)

    def answer(
        self, answers: Sequence[tuple[Query, str]], worker: str, *, ttl_s: int | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """Commands by which a worker answers queries (`messages.encode_answer`), those that are pending."""
        by_client: dict[str, list[tuple[Query, str]]] = {}
        for each in answers:
            by_client.setdefault(each[0].client, []).append(each)
        for client, all_of_client in by_client.items():
            for start in range(0, len(all_of_client), _MOST_ANSWERS):
                part = all_of_client[start : start + _MOST_ANSWERS]
                keys = [self.keys.client_answers(client)]
                keys += [self.keys.episode(query.episode).queries for query, _ in part]
                texts = [text for query, answer in part for text in (query.id, answer)]
                yield ("EVAL", _ANSWER, len(keys), *keys, ttl_s or self.ttl_s, _ANSWERS_KEPT, worker, *texts)

    def _read_part(self, wanted: Sequence[Wanted], most_bytes: int) -> Iterator[EpisodeRead]:
        keys: list[str] = []
        arguments: list[Any] = [most_bytes]
        for each in wanted:
            episode = self.keys.episode(each.episode)
            keys += (episode.meta, episode.frames, episode.queries)
            arguments += (each.first, each.last, len(each.queries), *each.queries)
        (read,) = exchange(self.connection, [("EVAL", _READ, len(keys), *keys, *arguments)])
        for each, reply in zip(wanted, checked(read), strict=True):
            if not reply:
                wrong = ProtocolError(f"the keys of episode {each.episode!r} on Redis are of a wrong type.")
                yield EpisodeRead(wrong, frozenset(each.queries), [])
                continue
            fields, kinds, batches = reply
            still_open = [query for query, kind in zip(each.queries, kinds, strict=True) if kind]
            yield episode_read(fields, still_open, batches)

    def _keys(self, episode: str, reference: str) -> tuple[str, str, str, str, str]:
        keys = self.keys.episode(episode)
        users = self.keys.reference_users(reference)
        return keys.meta, keys.frames, keys.queries, self.keys.reference(reference), users

    @staticmethod
    def _eval(target: redis.Redis | Pipeline, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return target.eval(script, len(keys), *keys, *arguments)


def as_text(stored: bytes) -> str:
    """What stands on Redis as text; bytes that are no UTF-8 become surrogates."""
    return stored.decode(errors="surrogateescape")


def _parts(wanted: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
    """`wanted` in parts of about _MOST_BATCHES batches."""
    starts, batches = [0], 0
    for index, each in enumerate(wanted):
        count = max(1, each.last - each.first + 1)
        if batches and batches + count > _MOST_BATCHES:
            starts.append(index)
            batches = 0
        batches += count
    return (wanted[start:end] for start, end in pairwise([*starts, len(wanted)]) if end > start)


def _step_error(step: Step, reply: list[Any], max_bytes: int) -> VlacQueueError | redis.RedisError | None:
    status = reply[0]
    if status == b"ok":
        return None
    if status == b"error":
        return redis.ResponseError(reply[1].decode(errors="replace"))
    if status == b"full":
        return QueueFull(
            f"open episodes hold {reply[1]} bytes of frames and max_pending_bytes is {max_bytes}; nothing was "
            "stored. Close finished episodes, start more workers, or raise max_pending_bytes."
        )
    if status == b"gone" or (status == b"order" and reply[1] < step.index):
        return episode_lost(step.episode)
    return ProtocolError(
        f"episode {step.episode!r} has {reply[1]} batches on Redis where {step.index} were pushed from here; "
        "only one client may push to an episode."
    )


def episode_lost(episode: str) -> EpisodeLost:
    """The error for an episode whose keys vanished while it was open."""
    return EpisodeLost(
        f"the keys of episode {episode!r} are gone: Redis restarted without persistence, evicted them (set "
        "maxmemory-policy noeviction), or nobody touched the episode for episode_ttl_s; its frames are not kept "
        "here (keep_frames_bytes). Start a new episode."
    )
