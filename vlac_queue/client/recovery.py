"""What a client does about a Redis that goes away, fills up or forgets: it waits, pushes again and asks again."""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis
from msgspec import structs
from redis.client import Pipeline

from vlac_queue.connection import Patience
from vlac_queue.errors import (
    EpisodeLost,
    ProtocolError,
    QueueFull,
    RedisUnavailable,
    VlacQueueError,
)
from vlac_queue.faults import as_ours, passes
from vlac_queue.keys import Keys
from vlac_queue.store import Step, as_text, episode_lost

if TYPE_CHECKING:
    from vlac_queue.client import CriticClient, Episode, Pending

_log = logging.getLogger(__name__)

#: Looks (2 s apart) at which a job is nowhere until it counts as lost: longer than a dead worker goes unnoticed.
_LOOKS_MISSED = 5

#: What RQ calls a job that waits, and one that was begun.
_ALIVE = (b"queued", b"started")
#: Times that what Redis lost is restored for one call.
_RESTORES = 5


class KeptFrames:
    """The encoded batches of open episodes, for pushing them again; threads may share it.

    Args:
        limit: most bytes of all together. An episode that does not fit is not kept at all from then on.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._batches: dict[str, list[bytes] | None] = {}
        self._lock = threading.Lock()

    def add(self, episode: str, index: int, payload: bytes) -> None:
        """Keeps a batch of an episode, in the place of what was kept from that index on."""
        with self._lock:
            batches = self._batches.setdefault(episode, [])
            if batches is None:
                return
            self._bytes -= sum(map(len, batches[index:]))
            del batches[index:]
            if self._bytes + len(payload) > self._limit:
                self._bytes -= sum(map(len, batches))
                self._batches[episode] = None
                return
            batches.append(payload)
            self._bytes += len(payload)

    def batches(self, episode: str) -> Sequence[bytes] | None:
        """All batches of an episode, in order; None where they are not kept."""
        with self._lock:
            kept = self._batches.get(episode, [])
            return None if kept is None else tuple(kept)

    def drop(self, episode: str) -> None:
        """Forgets an episode."""
        with self._lock:
            self._bytes -= sum(map(len, self._batches.pop(episode, None) or ()))


class Recovery:
    """The part of a client that mends: sends again what did not get through, and restores what Redis lost.

    Args:
        client: whose episodes and queries they are.
        patiently: waits for a Redis that is away or full.
        kept: the frames of its open episodes.
    """

    def __init__(self, client: CriticClient, patiently: Patience, kept: KeptFrames) -> None:
        self._client = client
        self._patiently = patiently
        self._kept = kept
        self._restoring = threading.RLock()

    def send_again(
        self,
        episodes: Sequence[Episode],
        steps: Sequence[Step],
        pendings: Sequence[Pending[Any] | None],
        errors: Sequence[VlacQueueError | None],
    ) -> list[VlacQueueError | None]:
        """Sends steps again that failed for a reason that may pass or be mended; what became of all of them.

        Args:
            episodes, steps, pendings: of each step, its episode and what it asks.
            errors: why each failed; None where it did not.
        """
        left = list(errors)

        def again() -> None:
            failed = [i for i, error in enumerate(left) if isinstance(error, EpisodeLost)]
            restored = self._restore([episodes[i] for i in failed]) if failed else set()
            tried = [i for i in failed if episodes[i].id in restored]
            tried += [i for i, error in enumerate(left) if self._may_pass(error, steps[i])]
            asking = [pending for i in tried if (pending := pendings[i])]
            for i, error in zip(tried, self._send([steps[i] for i in tried], asking), strict=True):
                left[i] = error
            for i in tried:
                if (error := left[i]) and self._may_pass(error, steps[i]):
                    raise error

        for _ in range(_RESTORES):
            if not any(
                isinstance(e, EpisodeLost) or self._may_pass(e, s) for e, s in zip(left, steps, strict=True)
            ):
                break
            try:
                self._patiently(again)
            except VlacQueueError as error:
                # Where it was not the sending that failed, it stays undone for the same reason.
                left = [
                    error if old and self._may_pass(old, step) else old
                    for old, step in zip(left, steps, strict=True)
                ]
                break
        return left

    def look_up(self, pendings: Sequence[Pending[Any]]) -> dict[str, str]:
        """Finds out what has become of open queries; those that were lost are asked again, or fail.

        Returns:
            Query id -> the answer's text, for answers whose news was missed.
        """
        client = self._client
        asked = [
            Asked(p.query.id, p.query.episode, p.query.batch + 1, p._episode._reference, p._job) for p in pendings
        ]
        standings = self._patiently(lambda: look_up(client._connection, client._keys, asked))
        lost: list[Pending[Any]] = []
        dropped: list[Pending[Any]] = []
        for pending, standing in zip(pendings, standings, strict=True):
            if pending.answered or standing.answer is not None or pending._episode._closing:
                continue
            if not standing.kept:
                lost.append(pending)
            elif standing.error is not None:
                client._fail(pending, as_ours(standing.error, client.config.redis_url))
            elif standing.refused:
                client._fail(pending, ProtocolError(f"a worker refused the job: {standing.refused}"))
            elif standing.carried:
                pending._missed = 0
            else:
                # It may be with a worker that was killed just now, whose jobs go back once it is known to be dead.
                pending._missed += 1
                if pending._missed >= _LOOKS_MISSED:
                    dropped.append(pending)
        restored = self._patiently(lambda: self._restore([p._episode for p in lost])) if lost else set()
        for pending in lost:
            if pending.query.episode not in restored:
                client._fail(pending, episode_lost(pending.query.episode))
        self._patiently(lambda: self._ask_again(dropped))
        answers = ((each.id, standing.answer) for each, standing in zip(asked, standings, strict=True))
        return {query_id: answer for query_id, answer in answers if answer is not None}

    def _may_pass(self, error: VlacQueueError | None, step: Step) -> bool:
        """Whether trying again may help: Redis is away or full, or others hold the room that a batch needs."""
        if not isinstance(error, QueueFull):
            return isinstance(error, RedisUnavailable) and not isinstance(error, EpisodeLost)
        with self._client._lock:
            own = sum(episode.sent_bytes for episode in self._client._episodes.values())
        return error.__cause__ is not None or own + len(step.payload) <= self._client.config.max_pending_bytes

    def _send(self, steps: Sequence[Step], asking: Sequence[Pending[Any]]) -> list[VlacQueueError | None]:
        client = self._client
        jobs = client._carry(asking) if asking else []
        errors = client._ours(client._store.step([(steps, jobs)], max_bytes=client.config.max_pending_bytes))
        if any(isinstance(error, QueueFull) for error in errors):
            client._store.drop_abandoned()
        return errors

    def _restore(self, episodes: Sequence[Episode]) -> set[str]:
        """Opens episodes again that Redis lost, pushes their frames and asks their open queries again.

        It may be done again after an error, wherever that came.

        Returns:
            Ids of those that could be.
        """
        client = self._client
        with self._restoring:
            batches = {episode.id: self._kept.batches(episode.id) for episode in episodes}
            able = {
                e.id: e
                for e in episodes
                if len(batches[e.id] or ()) >= e._pushed.batches and batches[e.id] is not None
            }
            if not able:
                return set()
            _log.warning("Redis has lost %d open episodes; their frames are pushed again", len(able))
            references = {episode._reference: episode._reference_batches for episode in able.values()}
            opening = [(episode.id, episode._meta) for episode in able.values()]
            limit = client.config.max_pending_bytes
            counts = client._store.open(opening, references, max_bytes=limit)
            for episode, count in zip(able.values(), counts, strict=True):
                kept = batches[episode.id] or ()
                missing = [
                    Step(episode.id, episode._reference, index, kept[index])
                    for index in range(count, episode._pushed.batches)
                ]
                for step in missing:
                    self._push(step)
            # Its clock may have jumped, and the position in the stream be one of a past server.
            client._seen = b"0"
            with client._lock:
                asking = [p for p in client._open.values() if p._episode.id in able and p._job]
        self._ask_again(asking)
        return set(able)

    def _push(self, step: Step) -> None:
        (error,) = self._send([step], ())
        if error:
            raise error

    def _ask_again(self, pendings: Sequence[Pending[Any]]) -> None:
        """Asks open queries again under their ids: one that was answered meanwhile stays so."""
        if not pendings:
            return
        client = self._client
        now = client._clock.sync().now()
        for pending in pendings:
            pending.query = structs.replace(pending.query, asked=now, deadline=now + client.config.timeout_s)
        steps = [Step(p.query.episode, p._episode._reference, query=p.query) for p in pendings]
        # What is lost once more is found at the next look.
        self._send(steps, pendings)


@dataclass(frozen=True)
class Asked:
    """An open query, as far as Redis must know of it.

    Attributes:
        id: the query's id.
        episode, batches: the episode, and how many of its batches the query is about.
        reference: id of the episode's reference, or "".
        job: id of the job that carries the query.
    """

    id: str
    episode: str
    batches: int
    reference: str
    job: str


@dataclass(frozen=True)
class Standing:
    """What has become of an open query.

    Attributes:
        answer: the answer's text; None while there is none.
        kept: whether Redis has the query, its frames and its reference.
        carried: whether a job still waits with it, or a worker has it.
        refused: why a worker refused its job, or "".
        error: what Redis said instead: a key of its episode is of a wrong type, say.
    """

    answer: str | None
    kept: bool
    carried: bool
    refused: str = ""
    error: redis.RedisError | None = None


def look_up(connection: redis.Redis, keys: Keys, asked: Sequence[Asked]) -> list[Standing]:
    """Looks where a query can be: in its episode, in the queue, with a worker. Two round trips at most."""
    jobs = sorted({each.job for each in asked})
    with connection.pipeline(transaction=False) as pipeline:
        for each in asked:
            episode = keys.episode(each.episode)
            pipeline.hget(episode.queries, each.id)
            pipeline.exists(episode.meta)
            pipeline.llen(episode.frames)
            pipeline.exists(keys.reference(each.reference))
        for job in jobs:
            pipeline.hmget(keys.rq_job(job), "status", "exc_info", "worker_name")
        replies = _replies(pipeline)
    told = (("", None, None) if isinstance(job, redis.RedisError) else job for job in replies[4 * len(asked) :])
    of_jobs = dict(zip(jobs, told, strict=True))
    carried = _carried(
        connection, keys, {job: worker for job, (status, _, worker) in of_jobs.items() if status in _ALIVE}
    )
    standings = []
    for index, each in enumerate(asked):
        of_episode = replies[4 * index : 4 * index + 4]
        if errors := [reply for reply in of_episode if isinstance(reply, redis.RedisError)]:
            standings.append(Standing(None, True, False, error=errors[0]))
            continue
        text, there, batches, reference = of_episode
        status, reason, _ = of_jobs[each.job]
        answer = None if text in (None, b"done", b"value") else as_text(text)
        kept = text is not None and bool(there) and batches >= each.batches and (not each.reference or reference)
        refused = _reason(reason) if status == b"failed" else ""
        standings.append(Standing(answer, bool(kept), each.job in carried, refused))
    return standings


def _carried(connection: redis.Redis, keys: Keys, workers: Mapping[str, bytes | None]) -> set[str]:
    """Those of the jobs that wait, or stand in the claims of the worker that took them: it looks after them, or
    others do when it is dead.

    Args:
        workers: job id -> who took it last, if anybody did.
    """
    if not workers:
        return set()
    with connection.pipeline(transaction=False) as pipeline:
        for job, worker in workers.items():
            pipeline.lpos(keys.rq_queue, job)
            pipeline.lpos(keys.alone, job)
            pipeline.lpos(keys.claims((worker or b"").decode(errors="replace")), job)
        replies = _replies(pipeline)
    places = zip(workers, *(replies[start::3] for start in range(3)), strict=True)
    return {job for job, *found in places if any(isinstance(place, int) for place in found)}


def _replies(pipeline: Pipeline) -> list[Any]:
    """The replies to a pipeline; errors that don't pass are among them, since they concern one key."""
    replies = pipeline.execute(raise_on_error=False)
    for reply in replies:
        if passes(reply):
            raise reply
    return replies


def _reason(compressed: bytes | None) -> str:
    try:
        text = zlib.decompressobj().decompress(compressed or b"", 4096).decode(errors="replace")
    except zlib.error:
        text = ""
    return text or "see `rq info`"
