"""The main thread: takes jobs, reads and decodes their frames, and hands queries to the critic's thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import redis
from rq.exceptions import StopRequested

from vlac_queue.keys import CLIENT_TTL_S
from vlac_queue.messages import Failure
from workers.asker import Asker
from workers.claims import Claims, Wants
from workers.critics import CriticQuery
from workers.flow import Answered, JobQuery, Prepared, Reply, TakenJob
from workers.heart import BEAT_S, Heart
from workers.pairs import PairWork
from workers.preparing import Intake
from workers.replies import Replies
from workers.shared import Shared
from workers.store import NOTHING_AHEAD, ReadAhead, WorkerStore

#: Seconds that taking a job waits on Redis at a time; a stop is noticed in between.
_TAKE_S = 1.0
#: Seconds between two looks for jobs while queries are open here. Where there are others, a busy worker does not
#: wait on the queue itself, so that a new job goes to an idle worker that does.
_LOOK_S = 0.004
#: As many of these looks a job is left to another worker that has seen its episode.
_PATIENCE = 15
#: Seconds without work after which frames are decoded ahead, and for how long until the next look for jobs.
_QUIET_S, _WORK_AHEAD_S = 0.01, 0.003
#: Seconds for about which frames of pairs are decoded in one go, whoever waits meanwhile.
_PREPARE_AHEAD_S = 0.02
#: Seconds to wait after a failed connection.
_REDIS_PAUSE_S = 0.5


class Taker:
    """Takes jobs.

    Args:
        shared: what the worker's threads share.
        store: the episodes.
        claims: the worker's.
        replies: takes the answers that need no critic.
        asker: asks the critic.
        heart: knows who else works.
    """

    def __init__(
        self, shared: Shared, store: WorkerStore, claims: Claims, replies: Replies, asker: Asker, heart: Heart
    ) -> None:
        self._shared = shared
        self._store = store
        self._claims = claims
        self._replies = replies
        self._asker = asker
        self._heart = heart
        self._jobs = shared.jobs
        self._batcher = shared.batcher
        self._intake = Intake(
            store,
            done_history=getattr(asker.critic, "done_history", False),
            history_bytes=shared.config.history_bytes,
        )
        self._trouble = shared.trouble("taking jobs")
        # Jobs that were taken and whose frames could not be read yet.
        self._unread: list[TakenJob] = []
        # Whether there was no work at the last look, and is something to decode ahead.
        self._quiet = False
        # Queries in a job, of late.
        self._queries_per_job = 1.0
        #: When there was work last, seconds on time.monotonic.
        self.idle_since = time.monotonic()

    def lie_in(self) -> None:
        """Return once the critic is not to sleep, or jobs wait that nobody else takes.

        Raises:
            StopRequested: the worker is to stop.
        """
        waits = False
        while self._asker.lies_in() and self._shared.fatal is None:
            try:
                waited, waits = waits, self._heart.alone_waits or self._waiting() > 0
            except redis.RedisError:  # the beats tell
                waits = False
            if waited and waits:
                return
            time.sleep(BEAT_S)
            if self._shared.stopping.is_set():
                raise StopRequested

    def adopt(self, queries: Sequence[JobQuery]) -> None:
        """Begin with the queries of the job that this worker lives in."""
        self._claims.add({job for job, _ in queries})
        self._prepare(queries)

    def turn(self, *, burst: bool) -> bool:
        """Take the next jobs, if there is room for some.

        Args:
            burst: whether not to wait for any.

        Returns:
            Whether there is work, or trouble with Redis: the jobs at hand are kept then, and read in the next
            turn.
        """
        try:
            self._shared.alone = self._alone_waits and not (self._asker.pairs and self._asker.pairs.has_lists)
            if self._shared.alone:
                # What else is at work here must not be harmed, nor a job be blamed for it.
                self._pause() if self._jobs or self._asker.at_pairs else self._serve_alone()
                works = True
            else:
                works = self._serve_together(burst)
        except redis.RedisError as error:
            self._trouble.met(error)
            time.sleep(_REDIS_PAUSE_S)
            return True
        self._trouble.over()
        if works:
            self.idle_since = time.monotonic()
        return works

    def _serve_together(self, burst: bool) -> bool:
        room = self._batcher.wait_for_room(_TAKE_S)
        if self._heart.suspended:
            time.sleep(BEAT_S)
        elif not self._unread and room:
            self._unread = self._take(room, burst)
        taken = self._unread
        self._jobs.at_hand = frozenset(job.id for job in taken)
        if jobs := [queries for job in taken if (queries := self._claims.queries(job))]:
            queries = [each for of_job in jobs for each in of_job]
            self._queries_per_job = max(1.0, (self._queries_per_job + len(queries) / len(jobs)) / 2)
            self._prepare(queries, {query: read for job in taken for query, read in job.ahead.items()})
        self._unread, self._jobs.at_hand = [], frozenset()
        return bool(taken or self._jobs)

    def _take(self, room: int, burst: bool) -> list[TakenJob]:
        """Return the next jobs, for about `room` queries; wait for them only while no query is open here."""
        busy, others = bool(self._jobs), self._shared.others
        pairs = self._asker.pairs
        # A worker at pairs leaves jobs about others' episodes to them: it would have to see their frames anew.
        at_pairs = bool(others and pairs and pairs.ready(asleep=self._asker.asleep))
        if (busy or at_pairs) and others and self._waiting():
            # An idle worker may be just between two waits on the queue: it goes first.
            self._pause()
        # Room is for queries, and a job may hold many: what is too much here is for others.
        jobs_wanted = max(1, round(room / self._queries_per_job))
        leaves_it_to_others = (busy or at_pairs) and others > 0
        works_ahead = not busy and not burst and self._intake.behind()
        block_s = 0 if burst or leaves_it_to_others else _TAKE_S
        if pairs and busy:
            block_s = min(block_s, _QUIET_S)  # there will be pairs to ask ahead
        if works_ahead:
            block_s = 0 if self._quiet else _QUIET_S
        patience = _PATIENCE if pairs and (busy or at_pairs) else 0
        wants: Wants = "no copies" if at_pairs else "all"
        if self._batcher.full or self._alone_waits:  # lists at hand come first, and done queries before them
            wants, block_s = "done", 0
        taken = self._claims.take(jobs_wanted, block_s=block_s, others=others, patience=patience, wants=wants)
        if not taken and (busy or at_pairs):
            self._pause()
        if not taken and pairs and pairs.wants_frames:
            self._prepare_ahead(pairs)
        elif not taken and works_ahead:
            self._intake.work_ahead(_WORK_AHEAD_S)
        self._quiet = works_ahead and not taken
        return taken

    def _pause(self) -> None:
        """Wait for _LOOK_S, or until no query is open here any more."""
        self._jobs.none.wait(_LOOK_S) if self._jobs else time.sleep(_LOOK_S)

    def _prepare_ahead(self, pairs: PairWork) -> None:
        """Read and decode frames of episodes whose pairs may be asked ahead."""
        until = time.monotonic() + _PREPARE_AHEAD_S
        while time.monotonic() < until and pairs.wants_frames and (wanted := pairs.to_prepare()):
            pairs.offer(self._intake.so_far([wanted]))
        self._batcher.poke()

    @property
    def _alone_waits(self) -> bool:
        return self._heart.alone_waits and not self._heart.suspended

    def _waiting(self) -> int:
        return int(self._shared.connection.llen(self._shared.keys.rq_queue))

    def _prepare(self, queries: Sequence[JobQuery], ahead: Mapping[str, ReadAhead] = NOTHING_AHEAD) -> None:
        """Read the frames of queries and hand them to the critic's thread."""
        dropped = self._left_behind(queries)
        prepared = self._intake.prepare([each for each in queries if each.query.id not in dropped], ahead)
        prepared += [Prepared(*each, None) for each in queries if each.query.id in dropped]
        self._jobs.add(each.job for each in prepared)
        ready = [(each, each.nbytes) for each in prepared if isinstance(each.ask, CriticQuery)]
        settled = [each for each in prepared if not isinstance(each.ask, CriticQuery)]
        if ready:
            self._batcher.put(ready)
        if settled:
            now = self._shared.clock.now()
            self._replies.deliver(Answered([self._settled(each) for each in settled], now, now))

    def _settled(self, prepared: Prepared) -> Reply:
        if isinstance(prepared.ask, Failure):
            return Reply.failed(prepared, prepared.ask, self._shared.stats.critic)
        return Reply(prepared)

    def _left_behind(self, queries: Sequence[JobQuery]) -> set[str]:
        """Return ids of queries that waited for longer than their client, which is gone."""
        since = self._shared.clock.now() - CLIENT_TTL_S
        waited = [query for _, query in queries if query.asked < since]
        return {query.id for query in waited} - (self._store.still_open(waited) if waited else set())

    def _serve_alone(self) -> None:
        """Try a job that was there when workers died: one query at a time, and nothing else at hand."""
        taken = self._claims.take_alone()
        self._heart.alone_waits = bool(taken)
        for job in taken:
            if not (queries := self._claims.queries(job)):
                continue
            if job.spent:
                self._replies.bury(job, queries)
            elif self._try_alone(job.id, queries):
                self._claims.finish_now(job.id)

    def _try_alone(self, job_id: str, queries: Sequence[JobQuery]) -> bool:
        """Answer a job's queries one after another; return whether all were tried."""
        self._jobs.add([job_id])  # until all were tried
        try:
            for each in queries:
                self._claims.trying(job_id, each.query.id)
                self._prepare([each])
                while self._jobs.left(job_id) > 1:
                    if self._shared.ends:
                        return False
                    time.sleep(_LOOK_S)
            return True
        finally:
            self._jobs.drop([job_id])
