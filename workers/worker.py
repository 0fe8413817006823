"""`CriticWorker`: an RQ worker that keeps the critic loaded and answers many jobs in one batch.

Three threads, so that the critic never waits for Redis:

    main     takes jobs, reads and decodes their frames, and puts the queries into the batcher
    critic   takes batches and asks the critic (workers/asker.py)
    replies  writes the answers and finishes the jobs

and a fourth that beats once a second, and gives the jobs of dead workers back to the queue.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import traceback
import uuid
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import redis
from redis.client import Pipeline
from rq import SimpleWorker
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT
from rq.exceptions import StopRequested
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry
from rq.results import Result
from rq.suspension import WORKERS_SUSPENDED
from rq.worker import DequeueStrategy, WorkerStatus
from rq.worker_registration import clean_worker_registry

from vlac_queue.config import VlacConfig
from vlac_queue.connection import RedisClock, reconnect
from vlac_queue.errors import ConfigError, CriticFailed, ProtocolError
from vlac_queue.faults import fault_of, passes
from vlac_queue.keys import CLIENT_TTL_S, WORKER_TTL_MS, Keys
from vlac_queue.messages import (
    MAX_JOB_BYTES,
    CriticIdentity,
    Failure,
    Query,
    decode_job,
)
from vlac_queue.store import NOTHING_AHEAD, EpisodeStore, ReadAhead
from workers.asker import Answered, Asker, WorkerStats
from workers.batcher import Batcher
from workers.claims import Claims, TakenJob, history
from workers.critics import Critic, CriticQuery, make_critic
from workers.description import describe
from workers.envelope import DataOnlySerializer, read_envelope
from workers.intake import Intake, Prepared
from workers.log import make_logs_safe
from workers.replies import OpenJobs, Replies
from workers.restart import may_restart, restart
from workers.watchdog import Watchdog

#: Seconds between two beats, and so between two looks for dead workers.
BEAT_S = 1.0
#: Seconds that taking a job waits on Redis at a time; a stop is noticed in between.
_TAKE_S = 1.0
#: Seconds between two looks for jobs while queries are open here. Where there are others, a busy worker does not
#: wait on the queue itself, so that a new job goes to an idle worker that does.
_LOOK_S = 0.004
#: Seconds without work after which frames are decoded ahead, and for how long until the next look for jobs.
_QUIET_S, _WORK_AHEAD_S = 0.01, 0.003
#: Seconds between two rounds of maintenance.
_MAINTENANCE_S = 60.0
#: Seconds that a rejected job stays on Redis for `rq info` to show.
_FAILURE_TTL_S = 3600
#: Seconds to wait after a failed connection.
_REDIS_PAUSE_S = 0.5
#: Most characters of a worker's name.
_MOST_NAME_CHARS = 512


@dataclass(frozen=True)
class _Parent:
    """The RQ worker whose work-horse this worker lives in."""

    name: str
    pid: int
    #: Whether that worker runs its jobs in its own process (SimpleWorker) instead of forking.
    same_process: bool


class CriticWorker(SimpleWorker):
    """Answers queries with the critic that `VLAC_CRITIC` names, many jobs to a batch.

    Start it with `RQ_WORKER_CLASS=workers.CriticWorker rq worker vlac --with-scheduler`, or with the
    shortcut `vlac-queue worker`. SIGTERM or Ctrl-C finishes the batch at hand, gives jobs that are not
    begun back to the queue and ends; a second one ends at once.

    Nothing read from Redis is run: jobs are read as data, and only those for `workers.job.answer` are
    answered; RQ's clean-up of abandoned jobs, which calls the callbacks that a job names, is left out.

    Raises:
        ConfigError: `VLAC_*` variables are wrong, or not exactly one queue was given.
    """

    def __init__(self, queues: Any, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        kwargs["serializer"] = DataOnlySerializer
        names = [
            each if isinstance(each, str) else each.name
            for each in ([queues] if isinstance(queues, str) else queues)
        ]
        serves = kwargs.get("prepare_for_work", True)
        if serves and len(names) != 1:
            raise ConfigError(f"a CriticWorker serves one queue, not {len(names)}; start one worker for each.")
        if kwargs.get("connection") is None and not isinstance(queues, str) and queues:
            kwargs["connection"] = queues[0].connection
        unique = name or f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:4]}"
        super().__init__(names, unique, *args, **kwargs)
        make_logs_safe()
        if not serves:  # RQ reads other workers' state through instances that never work
            return
        self.config = VlacConfig.from_env(queue=names[0])
        self.stats = WorkerStats()
        self.critic: Critic = make_critic(self.config)
        self._keys = Keys(names[0])
        self._claims = Claims(self.connection, self._keys, self.name)
        self._store = EpisodeStore(self.connection, self._keys, ttl_s=self.config.episode_ttl_s)
        self._intake = Intake(
            self._store,
            done_history=getattr(self.critic, "done_history", False),
            history_bytes=self.config.history_bytes,
        )
        self._clock = RedisClock(self.connection)
        self._batcher: Batcher[Prepared] = Batcher(self.config.max_batch, self.config.max_wait_ms / 1000)
        self._watchdog = Watchdog(self.config.timeout_s, self.config.batch_limit_s)
        self._asker = Asker(
            self.critic,
            self._batcher,
            self._clock,
            idle_offload_s=self.config.idle_offload_s,
            deliver=lambda answered: self._replies.deliver_from_critic(answered),
            still_open=self._still_open,
            watchdog=self._watchdog,
            stats=self.stats,
            log=self.log,
        )
        self._jobs = OpenJobs()
        self._replies = Replies(
            self.connection,
            self._keys,
            self._store,
            self._clock,
            worker=self.name,
            jobs=self._jobs,
            stats=self.stats,
            log=self.log,
            finish=self._finish_jobs,
            lacks_work=self._batcher.empty,
        )
        self._replies.critic = CriticIdentity(self.config.critic, self.config.model_path)
        #: Jobs taken whose queries are not open yet, and claims that nobody here knew of at the last beat.
        self._at_hand: frozenset[str] = frozenset()
        self._unknown: frozenset[str] = frozenset()
        #: Whether jobs wait to be tried alone.
        self._alone_waits = False
        self._beats = 0
        #: Whether this process may begin anew where the critic hangs or has lost its accelerator.
        self._restarts = False
        self._halt = threading.Event()
        self._suspended = False
        #: Whether there was no work at the last look, and is something to decode ahead.
        self._quiet = False
        #: Queries in a job, of late.
        self._queries_per_job = 1.0
        #: How many other critic workers serve the queue.
        self._others = 0
        self._loading = False
        self._fatal: BaseException | None = None
        self._parent: _Parent | None = None
        self._adopted: tuple[str, str] | None = None
        self._started = time.monotonic()

    # RQ's interface.

    @classmethod
    def serve_inside(cls, job: Job, text: str) -> None:
        """Becomes a worker inside a job of another one (see `workers.job.answer`), beginning with that job.

        Args:
            job: the RQ job that runs.
            text: its argument.
        """
        name = job.worker_name or os.environ.get("RQ_WORKER_ID", "rq")
        pid = job.connection.hget(f"{cls.redis_worker_namespace_prefix}{name}", "pid")
        same_process = pid is not None and int(pid) == os.getpid()
        worker = cls([job.origin], f"{name}.{os.getpid()}", connection=job.connection)
        worker._parent = _Parent(name, os.getppid(), same_process)
        worker._adopted = (job.id, text)
        handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            worker.work()
        finally:
            for number, handler in handlers:
                signal.signal(number, handler)
        if same_process and worker._shutdown_requested_date:
            # The signal was meant for the worker around this job.
            os.kill(os.getpid(), signal.SIGTERM)

    def work(
        self,
        burst: bool = False,
        logging_level: str | None = None,
        date_format: str = DEFAULT_LOGGING_DATE_FORMAT,
        log_format: str = DEFAULT_LOGGING_FORMAT,
        max_jobs: int | None = None,
        max_idle_time: int | None = None,
        with_scheduler: bool = False,
        dequeue_strategy: DequeueStrategy = DequeueStrategy.DEFAULT,
    ) -> bool:
        """Loads the critic and serves until stopped; the arguments are those of `rq worker`.

        Returns:
            Whether any job was answered.

        Raises:
            CriticFailed: the critic could not be loaded, or its thread died.
        """
        self._restarts = may_restart() and self._parent is None
        self._check_server()
        self._clock.sync()
        self.bootstrap(logging_level, date_format, log_format)
        threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=loop.__name__, daemon=True)
            for loop in (self._asker.run, self._replies.run)
        ]
        beat = threading.Thread(target=self._beat_loop, name="beat", daemon=True)
        try:
            if with_scheduler:
                self._start_scheduler(burst, logging_level, date_format, log_format)
            self._install_signal_handlers()
            # What a predecessor of this name has left.
            self._recover([self.name])
            self._beat()
            beat.start()
            self._load()
            for thread in threads:
                thread.start()
            self._serve(burst, max_jobs, max_idle_time)
        except StopRequested:
            pass
        finally:
            self._finish(threads)
            self._halt.set()
            if beat.is_alive():
                beat.join()
            if self._fatal is None:
                self._leave()
            else:
                self._die()
            self.critic.close()
            self.teardown()
        if self._fatal is not None:
            self._restart_if_possible(burst)
            raise CriticFailed(f"the worker stopped: {self._fatal}") from self._fatal
        return self.stats.jobs > 0

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        # RQ would let a read hang for 415 s; our reads are short, and a dead connection must show.
        return reconnect(connection)

    def register_birth(self) -> None:
        super().register_birth()
        # RQ would have a worker that dies before its first beat listed for 8 minutes.
        self.connection.pexpire(self.key, WORKER_TTL_MS)

    def _shutdown(self) -> None:
        # Unlike RQ's, this never raises in the middle of taking a job.
        self._request_stop()
        if self._loading:
            raise StopRequested()

    def _request_stop(self) -> None:
        """Stops taking jobs, and ends the critic's thread after the batch at hand."""
        self._stop_requested = True
        self._batcher.close()
        self._replies.hurry()

    def subscribe(self) -> None:
        """As RQ's, and to the channel with orders for the critic."""
        self.log.info("Worker %s: subscribing to channel %s", self.name, self.pubsub_channel_name)
        self.pubsub = self.connection.pubsub()
        channels = {self.pubsub_channel_name: self.handle_payload, self._keys.orders(self.name): self._follow}
        self.pubsub.subscribe(**channels)
        self.pubsub_thread = self.pubsub.run_in_thread(  # type: ignore[assignment]
            sleep_time=60, daemon=True, exception_handler=self._pubsub_exception_handler
        )

    def handle_payload(self, message: Any) -> None:
        """Follows RQ's command `shutdown`; the others are about work-horses, which this worker has none of."""
        try:
            command = json.loads(message["data"])["command"]
        except (ValueError, KeyError, TypeError, RecursionError):
            command = None
        if command == "shutdown":
            super().handle_payload(message)
        else:
            self.log.warning("Worker %s: no such command: %s", self.name, _shown(message["data"]))

    def _follow(self, message: Any) -> None:
        """Follows the orders of `vlac-queue workers`."""
        if message["data"] in (b"sleep", b"wake"):
            self._asker.order(message["data"].decode())
        else:
            self.log.warning("Worker %s: no such order: %s", self.name, _shown(message["data"]))

    def run_maintenance_tasks(self) -> None:
        """Restarts a dead scheduler and forgets dead workers and old failures.

        RQ's own round also fails abandoned jobs and calls the callbacks they name: code named on Redis.
        """
        if self.scheduler and (not self.scheduler._process or not self.scheduler._process.is_alive()):
            self.scheduler.acquire_locks(auto_start=True)
        self._clock.sync()
        clean_worker_registry(self.queues[0])
        self._failed_registry().cleanup()

    # The main thread: jobs in.

    def _serve(self, burst: bool, max_jobs: int | None, max_idle_time: int | None) -> None:
        unread: list[TakenJob] = []
        if self._adopted is not None:
            job_id, text = self._adopted
            self._claims.add(job_id)
            self._accept([(job_id, text)])
        idle_since = last_maintenance = time.monotonic()
        while not self._stop_requested and self._fatal is None:
            if max_jobs is not None and self.stats.jobs >= max_jobs:
                break
            try:
                if time.monotonic() - last_maintenance > _MAINTENANCE_S:
                    last_maintenance = time.monotonic()
                    self.run_maintenance_tasks()
                if self._alone_waits and not self._suspended:
                    idle_since = time.monotonic()
                    # What else is open here must not be harmed.
                    self._jobs.none.wait(_LOOK_S) if self._jobs else self._serve_alone()
                    continue
                room = self._batcher.wait_for_room(_TAKE_S)
                if self._suspended:
                    self._halt.wait(BEAT_S)
                elif not unread and room:
                    unread = self._take(room, burst)
                self._at_hand = frozenset(job.id for job in unread)
                jobs = self._readable(unread)
                if jobs:
                    self._accept(jobs, {query: read for job in unread for query, read in job.ahead.items()})
                unread, self._at_hand = [], frozenset()
            except redis.RedisError as error:
                # The jobs at hand are kept and read again.
                self.log.error(
                    "Worker %s: Redis is %s (%s); trying again", self.name, fault_of(error).value, error
                )
                self._halt.wait(_REDIS_PAUSE_S)
                continue
            busy = bool(self._jobs)
            if jobs or busy:
                idle_since = time.monotonic()
            elif burst and not self._suspended:
                break
            elif max_idle_time is not None and time.monotonic() - idle_since > max_idle_time:
                self.log.info("Worker %s: idle for %d seconds, quitting", self.name, max_idle_time)
                break

    def _take(self, room: int, burst: bool) -> list[TakenJob]:
        """The next jobs, for about `room` queries; waits for them only while no query is open here."""
        busy = bool(self._jobs)
        if busy and self._others and self.connection.llen(self._keys.rq_queue):
            # An idle worker may be just between two waits on the queue: it goes first.
            self._jobs.none.wait(_LOOK_S)
        # Room is for queries, and a job may hold many: what is too much here is for others.
        jobs_wanted = max(1, round(room / self._queries_per_job))
        leaves_it_to_others = busy and self._others > 0
        works_ahead = not busy and not burst and self._intake.behind()
        block_s = 0 if burst or leaves_it_to_others else _TAKE_S
        if works_ahead:
            block_s = 0 if self._quiet else _QUIET_S
        taken = self._claims.take(jobs_wanted, block_s=block_s, others=self._others)
        if not taken and busy:
            self._jobs.none.wait(_LOOK_S)
        if not taken and works_ahead:
            self._intake.work_ahead(_WORK_AHEAD_S)
        self._quiet = works_ahead and not taken
        return taken

    def _readable(self, taken: Sequence[TakenJob]) -> list[tuple[str, str]]:
        """(job id, text) of those jobs that are ours to answer; the others are rejected."""
        jobs = []
        for job in taken:
            if job.unfit:
                self.log.warning("Worker %s: dropped what is no job: %r", self.name, job.id)
                self.stats.rejected_jobs += 1
                continue
            try:
                if job.data is None:
                    raise ProtocolError(f"the job's envelope exceeds the limit of {MAX_JOB_BYTES} bytes.")
                if job.data:
                    jobs.append((job.id, read_envelope(job.data)))
                else:  # expired or deleted while it waited
                    self.connection.lrem(self._claims.key, 1, job.id)
            except Exception as error:  # whatever a stranger's job provokes must not end the worker
                if passes(error):
                    raise
                self._reject(job.id, error)
        return jobs

    def _accept(self, jobs: Sequence[tuple[str, str]], ahead: Mapping[str, ReadAhead] = NOTHING_AHEAD) -> None:
        """Prepares the queries of jobs and hands them to the critic's thread."""
        queries = []
        for job_id, text in jobs:
            try:
                queries += [(job_id, query) for query in decode_job(text)]
            except ProtocolError as error:
                self._reject(job_id, error)
        self._queries_per_job = max(1.0, (self._queries_per_job + len(queries) / len(jobs)) / 2)
        self._prepare(queries, ahead)

    def _prepare(
        self, queries: Sequence[tuple[str, Query]], ahead: Mapping[str, ReadAhead] = NOTHING_AHEAD
    ) -> None:
        prepared = self._intake.prepare(self._of_living_clients(queries), ahead)
        unwanted = {query.id for _, query in queries} - {each.query.id for each in prepared}
        prepared += [Prepared(job_id, query, None) for job_id, query in queries if query.id in unwanted]
        self._jobs.add(each.job for each in prepared)
        ready = [(each, each.nbytes) for each in prepared if isinstance(each.ask, CriticQuery)]
        settled = [(each, each.ask) for each in prepared if not isinstance(each.ask, CriticQuery)]
        if ready:
            self._batcher.put(ready)
        if settled:
            now = self._clock.now()
            self._replies.deliver(Answered(settled, now, now))

    def _of_living_clients(self, queries: Sequence[tuple[str, Query]]) -> list[tuple[str, Query]]:
        """Leaves out what waited for longer than its client, which is gone."""
        since = self._clock.now() - CLIENT_TTL_S
        waited = [query for _, query in queries if query.asked < since]
        dropped = {query.id for query in waited} - (self._store.still_open(waited) if waited else set())
        return [(job_id, query) for job_id, query in queries if query.id not in dropped]

    def _serve_alone(self) -> None:
        """Tries a job that was there when workers died: one query at a time, and nothing else at hand."""
        taken = self._claims.take_alone()
        self._alone_waits = bool(taken)
        for job in taken:
            for job_id, text in self._readable([job]):
                if job.spent:
                    self._bury(job, text)
                elif self._try_alone(job_id, text):
                    with self.connection.pipeline(transaction=False) as pipeline:
                        self._finish_jobs([job_id], pipeline)
                        pipeline.execute()

    def _try_alone(self, job_id: str, text: str) -> bool:
        """Answers a job's queries one after another; whether all were tried."""
        try:
            queries = decode_job(text)
        except ProtocolError as error:
            self._reject(job_id, error)
            return False
        self._jobs.add([job_id])  # until all were tried
        try:
            for query in queries:
                self._claims.trying(job_id, query.id)
                self._prepare([(job_id, query)])
                while self._jobs.left(job_id) > 1:
                    if self._stop_requested or self._fatal:
                        return False
                    self._halt.wait(_LOOK_S)
            return True
        finally:
            self._jobs.drop([job_id])

    def _bury(self, job: TakenJob, text: str) -> None:
        """Fails the query that was tried when the last worker died, or all of them where none was tried alone."""
        queries = decode_job(text)
        blamed = [query for query in queries if query.id == job.trying] or queries
        failure = Failure(
            f"{len(job.deaths)} workers died while they had this query: {history(job.deaths)}; it is not tried "
            "again. See their logs."
        )
        self.log.error("Worker %s: %d queries fail: %s", self.name, len(blamed), failure.message)
        with self.connection.pipeline(transaction=False) as pipeline:
            self._replies.fail(blamed, failure, pipeline)
            if len(blamed) < len(queries):
                self._claims.spare(job.id, pipeline)
            else:
                self._finish_jobs([job.id], pipeline)
            pipeline.execute()

    def _reject(self, job_id: str, error: Exception) -> None:
        """Fails a job that is not ours, where `rq info` shows it."""
        self.log.warning("Worker %s: rejected job %s: %s", self.name, job_id, error)
        self.stats.rejected_jobs += 1
        job = Job(job_id, connection=self.connection, serializer=DataOnlySerializer)
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(self._claims.key, 1, job_id)
            pipeline.hset(
                job.key,
                mapping={"status": JobStatus.FAILED.value, "exc_info": zlib.compress(str(error).encode())},
            )
            pipeline.expire(job.key, _FAILURE_TTL_S)
            pipeline.zadd(self._failed_registry().key, {job_id: time.time() + _FAILURE_TTL_S})
            Result.create_failure(
                job, _FAILURE_TTL_S, exc_string=str(error), worker_name=self.name, pipeline=pipeline
            )
            self.increment_failed_job_count(pipeline)
            # A stranger's keys of a wrong type must not end the worker.
            pipeline.execute(raise_on_error=False)

    # The critic's thread.

    def _load(self) -> None:
        self._loading = True
        started = time.monotonic()
        self.log.info("Worker %s: loading critic %s", self.name, self.config.critic)
        try:
            self.critic.load()
        except StopRequested:
            raise
        except Exception as error:
            if self._adopted is not None:
                self._fail_job(
                    *self._adopted, Failure(f"the critic could not be loaded: {error}", traceback.format_exc())
                )
            raise CriticFailed(f"the critic {self.config.critic!r} could not be loaded: {error}") from error
        finally:
            self._loading = False
        self.stats.loads += 1
        self._replies.critic = replace(self._replies.critic, prompt=getattr(self.critic, "prompt_hash", ""))
        self.log.info(
            "Worker %s: critic %s loaded in %.1f s", self.name, self.config.critic, time.monotonic() - started
        )

    def _still_open(self, batch: Sequence[Prepared]) -> set[str]:
        try:
            return self._store.still_open([each.query for each in batch])
        except redis.RedisError:
            return {each.query.id for each in batch}

    def _finish_jobs(self, job_ids: Sequence[str], pipeline: Pipeline) -> None:
        # The job that this worker lives in is its parent's to delete, once it ends.
        deleted = [job_id for job_id in job_ids if self._adopted is None or job_id != self._adopted[0]]
        for job_id in job_ids:
            pipeline.lrem(self._claims.key, 0, job_id)
        if deleted:
            pipeline.delete(*map(self._keys.rq_job, deleted))
        if job_ids:
            pipeline.hincrby(self.key, "successful_job_count", len(job_ids))

    def _fail_job(self, job_id: str, text: str, failure: Failure) -> None:
        """Answers every query of a job with `failure`."""
        with self.connection.pipeline(transaction=False) as pipeline:
            self._replies.fail(decode_job(text), failure, pipeline)
            self._finish_jobs([job_id], pipeline)
            pipeline.execute()

    # The beating thread.

    def _beat_loop(self) -> None:
        away = False
        while not self._halt.wait(BEAT_S):
            if where := self._watchdog.look(BEAT_S):
                self._end_hung(where)
            try:
                self._beat()
                away = False
            except redis.RedisError as error:
                if not away:
                    self.log.error(
                        "Worker %s: no heartbeat, Redis is %s (%s)", self.name, fault_of(error).value, error
                    )
                away = True
            except Exception as error:
                self._fatal = self._fatal or error
                self.log.exception("Worker %s: the heartbeat failed", self.name)
                return

    def _beat(self) -> None:
        """Says that this worker lives, learns what it should know, and finds dead workers."""
        self._replies.new_beat()
        self._state = (WorkerStatus.BUSY if self._jobs else WorkerStatus.IDLE).value
        worker_key = self._keys.worker(self.name)
        mine = self._jobs.ids | self._at_hand
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.smembers(self._keys.workers)
            pipeline.exists(WORKERS_SUSPENDED)
            pipeline.exists(worker_key)
            pipeline.lrange(self._claims.key, 0, -1)
            pipeline.llen(self._keys.alone)
            parent = self._parent.name if self._parent else ""
            pipeline.hget(f"{self.redis_worker_namespace_prefix}{parent}", "shutdown_requested_date")
            pipeline.hset(self.key, mapping={**self.serialize(), "state": self._state})
            pipeline.pexpire(self.key, WORKER_TTL_MS)
            pipeline.sadd(self.redis_workers_keys, self.key)
            pipeline.sadd(self._keys.rq_workers, self.key)
            pipeline.sadd(self._keys.workers, self.name)
            pipeline.hset(worker_key, mapping=self._description())
            pipeline.pexpire(worker_key, WORKER_TTL_MS)
            names, suspended, was_there, claimed, alone, parent_stops = pipeline.execute()[:6]
        self._suspended = bool(suspended)
        self._alone_waits = bool(alone)
        self._check_claims(
            mine,
            frozenset(job.decode(errors="replace") for job in claimed),
            lapsed=self._beats > 0 and not was_there,
        )
        self._beats += 1
        if self._parent and not self._stop_requested and (parent_stops or self._orphaned()):
            self.log.info("Worker %s: its parent %s stops, stopping too", self.name, self._parent.name)
            self._request_stop()
        others = sorted(self._known(names) - {self.name})
        self._others = len(others)
        self._recover(others)

    def _check_claims(self, mine: frozenset[str], claimed: frozenset[str], *, lapsed: bool) -> None:
        """Makes claims and what is at hand agree, after a reply was lost or this worker was thought dead.

        Args:
            mine: jobs at hand before `claimed` was read.
            claimed: this worker's claims.
            lapsed: whether others may have taken its jobs over since the last beat.
        """
        unknown = claimed - mine - self._jobs.ids - self._at_hand
        # A job may be just on its way from the claims to here: only what is unknown twice is lost.
        lost, self._unknown = unknown & self._unknown, unknown
        if lost:
            self.log.warning("Worker %s: %d jobs were taken and lost on the way", self.name, len(lost))
            self._claims.give_back(lost)
        if lapsed and (gone := mine - claimed):
            self._batcher.remove(lambda each: each.job in gone)
            self._jobs.drop(gone)
            self.log.warning("Worker %s: was thought dead; %d of its jobs went to others", self.name, len(gone))

    def _end_hung(self, where: str) -> None:
        """Ends this process: its critic hangs in a batch."""
        self.log.critical(
            "Worker %s: the critic has worked on a batch for more than %.0f s (batch_limit_s); it hangs here:\n%s",
            self.name, self._watchdog.limit_s, where,
        )  # fmt: skip
        self._stop_requested = True  # or it would take again what is given back now
        self._die()
        if self.scheduler:
            self.stop_scheduler()
        self._restart_if_possible(False)
        os._exit(1)

    def _die(self) -> None:
        """Has others take its jobs over at once, at the cost of a retry: one of them may be what is wrong."""
        try:
            self.connection.delete(self._keys.worker(self.name), self.key)
        except redis.RedisError as error:
            self.log.error("Worker %s: Redis is away (%s); others find its jobs later", self.name, error)

    def _restart_if_possible(self, burst: bool) -> None:
        if burst or not self._restarts:
            return
        self.log.warning("Worker %s: starts anew", self.name)
        restart()

    def _known(self, names: Collection[bytes]) -> set[str]:
        """Names of workers, as text; what can be none is taken off the list."""
        known = set()
        for name in names:
            text = name.decode(errors="replace")
            if text.encode() == name and text.isprintable() and len(text) <= _MOST_NAME_CHARS:
                known.add(text)
            else:
                self.log.warning("Worker %s: this is no worker's name: %s", self.name, _shown(name))
                self.connection.srem(self._keys.workers, name)
        return known

    def _description(self) -> Any:
        state = "loading" if self._loading else "asleep" if self._asker.asleep else str(self._state)
        own = {
            "host": self.hostname or "",
            "state": state,
            "parent": self._parent.name if self._parent else "",
            "uptime_s": round(time.monotonic() - self._started, 1),
            "time": self._clock.now(),
        }
        return {**own, **describe(self.config, self.stats, self._replies)}

    def _orphaned(self) -> bool:
        return self._parent is not None and not self._parent.same_process and os.getppid() != self._parent.pid

    def _recover(self, others: Sequence[str]) -> None:
        if not others:
            return
        with self.connection.pipeline(transaction=False) as pipeline:
            for name in others:
                pipeline.exists(self._keys.worker(name))
            alive = pipeline.execute()
        for name, lives in zip(others, alive, strict=True):
            if lives:
                continue
            given_back, spent = self._claims.recover(name)
            if given_back or spent:
                self.log.warning(
                    "Worker %s: worker %s died; %d of its jobs go to others, %d have no retries left",
                    self.name, name, given_back, len(spent),
                )  # fmt: skip
            for job in spent:
                for _, text in self._readable([job]):
                    self._bury(job, text)

    # The end.

    def _guarded(self, loop: Any) -> None:
        try:
            loop()
        except BaseException as error:
            self._fatal = self._fatal or error
            self.log.exception("Worker %s: thread %s died", self.name, loop.__name__)
            self._batcher.close()

    def _finish(self, threads: Sequence[threading.Thread]) -> None:
        """Ends the critic's thread after the batch at hand, then the replies'."""
        self._batcher.close()
        asking, replying = threads
        if asking.ident is not None:
            asking.join()
        if replying.is_alive():
            self._replies.close()
            replying.join()

    def _leave(self) -> None:
        """Gives unfinished jobs back and takes this worker off the lists; others do it where Redis is away."""
        try:
            given_back = self._claims.give_back()
            with self.connection.pipeline() as pipeline:
                pipeline.srem(self._keys.workers, self.name)
                pipeline.delete(self._keys.worker(self.name))
                pipeline.execute()
            if given_back:
                self.log.info("Worker %s: gave %d jobs back to the queue", self.name, given_back)
        except redis.RedisError as error:
            self.log.error(
                "Worker %s: Redis is away (%s); others will find its jobs", self.name, type(error).__name__
            )

    def teardown(self) -> None:
        try:
            super().teardown()
        except redis.RedisError as error:
            self.log.error("Worker %s: Redis is away (%s) at the end", self.name, type(error).__name__)

    def _failed_registry(self) -> FailedJobRegistry:
        return FailedJobRegistry(self.queues[0].name, connection=self.connection, serializer=DataOnlySerializer)

    def _check_server(self) -> None:
        version = self.get_redis_server_version()
        if version < (6, 2, 0):
            raise ConfigError(
                f"Redis 6.2 or newer is needed, this server is {'.'.join(map(str, version))}; update it."
            )


def _shown(data: bytes) -> str:
    """Bytes from Redis, fit for a log."""
    return repr(data[:100])
