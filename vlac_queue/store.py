"""Episodes on Redis: every operation that a rollout does on an episode's keys; a worker's are in workers/store.py.

What has to be atomic is a short Lua script (lua/), which takes many episodes at once: what a step costs does not
grow by a round trip an episode. All errors are Redis' own here; the client turns them into ours.

The file is long since it holds all that a rollout sends to Redis, and nothing else does.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.client import Pipeline

from vlac_queue.connection import Script, exchange
from vlac_queue.errors import EpisodeLost, ProtocolError, QueueFull, VlacQueueError
from vlac_queue.faults import passes
from vlac_queue.jobs import NewJob
from vlac_queue.keys import Keys
from vlac_queue.messages import MAX_TASK_CHARS, Query

_LUA = Path(__file__).with_name("lua")
_OPEN, _STORE_REFERENCE, _STEP, _DROP_ABANDONED, _CLOSE = (
    Script.load(_LUA / f"{name}.lua") for name in ("open", "store_reference", "step", "drop_abandoned", "close")
)

#: What RQ calls a job that waits, and one that was begun.
_ALIVE = (b"queued", b"started")


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


@dataclass
class Step:
    """What a rollout sends for one episode: an encoded batch, a query about it, or both.

    Attributes:
        episode_id: the episode's id.
        reference: id of its reference, or "".
        index: index of the batch.
        payload: the encoded batch; b"" sends none.
        query: the query; None asks nothing.
        job: id of the job that carries it.
    """

    episode_id: str
    reference: str
    index: int = 0
    payload: bytes = b""
    query: Query | None = None
    job: str = ""


@dataclass(frozen=True)
class Standing:
    """What has become of a query.

    Attributes:
        answer: the answer's text; None while there is none.
        kept: whether Redis has the query, its frames and its reference.
        carried: whether a job still waits with it, or a worker has it.
        error: why it can't be answered: a worker refused its job, or a key of its episode is of a wrong type.
    """

    answer: str | None
    kept: bool = True
    carried: bool = False
    error: VlacQueueError | redis.RedisError | None = None


class EpisodeStore:
    """The episodes of one queue. Threads may share it."""

    def __init__(self, connection: redis.Redis, keys: Keys, *, ttl_s: int) -> None:
        self.connection = connection
        self.keys = keys
        self.ttl_s = ttl_s

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
                    self._ask_open(pipeline, episode, meta, max_bytes)
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

    def _ask_open(self, pipeline: Pipeline, episode: str, meta: EpisodeMeta, max_bytes: int) -> None:
        meta_key, frames_key, _, *reference_keys = self._keys(episode, meta.reference)
        keys = (meta_key, frames_key, self.keys.open, self.keys.sizes, *reference_keys)
        fields = [text for name, value in vars(meta).items() for text in (name, str(value))]
        arguments = (episode, self.ttl_s, max_bytes, int(bool(meta.reference)), meta.token, *fields)
        self._eval(pipeline, _OPEN, keys, arguments)

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
            keys += self._keys(step.episode_id, step.reference)
            query = step.query
            arguments += (step.episode_id, step.index, step.payload)
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

    def look_up(self, asked: Sequence[Step]) -> list[Standing]:
        """Find what has become of queries: in their episodes, in the queue, with a worker.

        Two round trips at most.
        """
        jobs = sorted({step.job for step in asked})
        with self.connection.pipeline(transaction=False) as pipeline:
            for step in asked:
                meta, frames, queries, reference, _ = self._keys(step.episode_id, step.reference)
                pipeline.hget(queries, step.query.id if step.query else "")
                pipeline.exists(meta)
                pipeline.llen(frames)
                pipeline.exists(reference)
            for job in jobs:
                pipeline.hmget(self.keys.rq_job(job), "status", "exc_info", "worker_name")
            replies = _replies(pipeline)
        told = ((None,) * 3 if isinstance(job, redis.RedisError) else job for job in replies[4 * len(asked) :])
        of_jobs = dict(zip(jobs, told, strict=True))
        carried = self._carried({job: who for job, (status, _, who) in of_jobs.items() if status in _ALIVE})
        return [
            _standing(step, replies[4 * index : 4 * index + 4], of_jobs[step.job], step.job in carried)
            for index, step in enumerate(asked)
        ]

    def _carried(self, workers: Mapping[str, bytes | None]) -> set[str]:
        """Return those of the jobs that wait, or stand in the claims of the worker that took them: it looks after
        them, or others do when it is dead.

        Args:
            workers: job id -> who took it last, if anybody did.
        """
        if not workers:
            return set()
        with self.connection.pipeline(transaction=False) as pipeline:
            for job, worker in workers.items():
                pipeline.lpos(self.keys.rq_queue, job)
                pipeline.lpos(self.keys.alone, job)
                pipeline.lpos(self.keys.claims((worker or b"").decode(errors="replace")), job)
            replies = _replies(pipeline)
        places = zip(workers, *(replies[start::3] for start in range(3)), strict=True)
        return {job for job, *found in places if any(isinstance(place, int) for place in found)}

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


def _replies(pipeline: Pipeline) -> list[Any]:
    """Return the replies to a pipeline; errors that don't pass are among them, since they concern one key."""
    replies = pipeline.execute(raise_on_error=False)
    for reply in replies:
        if passes(reply):
            raise reply
    return replies


def _standing(step: Step, of_episode: Sequence[Any], of_job: Sequence[Any], carried: bool) -> Standing:
    if errors := [reply for reply in of_episode if isinstance(reply, redis.RedisError)]:
        return Standing(None, error=errors[0])
    text, there, batches, reference = of_episode
    if text not in (None, b"done", b"value"):
        return Standing(as_text(text))
    complete = batches > step.query.batch if step.query else True
    if text is None or not there or not complete or (step.reference and not reference):
        return Standing(None, kept=False)
    status, reason, _ = of_job
    refused = ProtocolError(f"a worker refused the job: {_reason(reason)}") if status == b"failed" else None
    return Standing(None, carried=carried, error=refused)


def _reason(compressed: bytes | None) -> str:
    try:
        text = zlib.decompressobj().decompress(compressed or b"", 4096).decode(errors="replace")
    except zlib.error:
        text = ""
    return text or "see `rq info`"


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
        return episode_lost(step.episode_id)
    return ProtocolError(
        f"episode {step.episode_id!r} has {reply[1]} batches on Redis where {step.index} were pushed from here; "
        "only one client may push to an episode."
    )


def episode_lost(episode: str) -> EpisodeLost:
    """The error for an episode whose keys vanished while it was open."""
    return EpisodeLost(
        f"the keys of episode {episode!r} are gone: Redis restarted without persistence, evicted them (set "
        "maxmemory-policy noeviction), or nobody touched the episode for episode_ttl_s; its frames are not kept "
        "here (keep_frames_bytes). Start a new episode."
    )
