"""`CriticWorker`: an RQ worker that keeps the critic loaded and answers many jobs in one batch.

Three threads, so that the critic never waits for Redis:

    main     takes jobs, reads and decodes their frames, and puts the queries into the batcher
    critic   takes batches and asks the critic (workers/asker.py)
    replies  writes the answers and finishes the jobs

a fourth that beats once a second, and gives the jobs of dead workers back to the queue; and one that ends a
stopping worker whatever Redis does.
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
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import redis
from msgspec import structs
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
from vlac_queue.connection import RedisClock, address, elsewhere, reconnect
from vlac_queue.errors import ConfigError, CriticFailed, ProtocolError
from vlac_queue.faults import passes
from vlac_queue.jobs import FAILURE_TTL_S
from vlac_queue.keys import CLIENT_TTL_S, EVERYBODY, WORKER_TTL_MS, Keys
from vlac_queue.messages import (
    MAX_JOB_BYTES,
    CriticIdentity,
    Failure,
    Query,
    decode_job,
)
from vlac_queue.texts import clean, many
from workers import memory
from workers.asker import Answered, Asker, WorkerStats
from workers.batcher import Batcher
from workers.claims import Claims, TakenJob, history
from workers.critics import Critic, CriticQuery, make_critic
from workers.description import describe
from workers.envelope import DataOnlySerializer, read_envelope
from workers.log import make_logs_safe
from workers.preparing import Intake, Prepared
from workers.replies import OpenJobs, Replies
from workers.restart import may_restart, restart
from workers.scheduler import Scheduler
from workers.store import NOTHING_AHEAD, ReadAhead, WorkerStore
from workers.trouble import Trouble
from workers.watchdog import Watchdog

# Not when a worker is made: RQ's command asks Redis before that, and logs what it meets.
make_logs_safe()

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
#: Seconds to wait after a failed connection.
_REDIS_PAUSE_S = 0.5
#: Seconds that a worker takes to end once its critic is done with the batch at hand.
_END_S = 10.0
#: Seconds for which a beat waits until the critic has followed an order.
_FOLLOWS_S = 0.2
#: Most bytes of an order that are read.
_MOST_ORDER_BYTES = 100
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
    begun back to the queue and ends; a second one ends at once, but RQ ignores one within a second of the first.

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
        if not serves:  # RQ reads other workers' state through instances that never work
            return
        self.config = VlacConfig.from_env(queue=names[0])
        self.stats = WorkerStats()
        self.critic: Critic = make_critic(self.config)
        self._keys = Keys(names[0])
        self._claims = Claims(self.connection, self._keys, self.name)
        self._store = WorkerStore(self.connection, self._keys, ttl_s=self.config.episode_ttl_s)
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
            deliver=lambda answered: self._replies.deliver(answered),
            identity=lambda: self._replies.critic,
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
        )
        self._replies.critic = CriticIdentity(self.config.critic, self.config.model_path)
        #: Jobs taken whose queries are not open yet; and what did not agree at the last beat: claims that nobody
        #: here knew of, and jobs at hand without a claim.
        self._at_hand: frozenset[str] = frozenset()
        self._unknown: frozenset[str] = frozenset()
        self._unclaimed: frozenset[str] = frozenset()
        #: Whether jobs wait to be tried alone.
        self._alone_waits = False
        self._beats = 0
        #: Whether this process may begin anew where the critic hangs or has lost its accelerator.
        self._restarts = False
        self._halt = threading.Event()
        self._taking, self._beating, self._listening, self._housekeeping, self._leaving = (
            Trouble(self.log, self.name, part, self.connection)
            for part in ("taking jobs", "heartbeat", "listening to commands", "maintenance", "leaving its jobs")
        )
        self._suspended = False
        #: Whether there was no work at the last look, and is something to decode ahead.
        self._quiet = False
        #: Queries in a job, of late.
        self._queries_per_job = 1.0
        #: How many other critic workers serve the queue.
        self._others = 0
        self._loading = False
        self._fatal: BaseException | None = None
        #: Set once this worker is to end, and once it has.
        self._ending, self._ended = threading.Event(), threading.Event()
        self._parent: _Parent | None = None
        self.scheduler: Scheduler | None = None
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
        self._once_served(self._say_started)
        self._once_served(self._check_server)
        self._once_served(self._clock.sync)
        self.bootstrap(logging_level, date_format, log_format)
        self.log.info("Worker %s: serves queue %s on %s", self.name, self._keys.queue, address(self.connection))
        if warning := elsewhere(self.connection):
            self.log.warning("Worker %s: %s", self.name, warning)
        threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=loop.__name__, daemon=True)
            for loop in (self._asker.run, self._replies.run)
        ]
        beat = threading.Thread(target=self._beat_loop, name="beat", daemon=True)
        threading.Thread(target=self._end_in_time, args=(threads[0],), name="end", daemon=True).start()
        try:
            if with_scheduler:
                self._start_scheduler(burst, logging_level, date_format, log_format)
            self._install_signal_handlers()
            # What a predecessor of this name has left.
            self._once_served(partial(self._recover, [self.name]))
            self._once_served(self._beat)
            with suppress(redis.RedisError):  # the next beat tells
                self._hear()
            beat.start()
            self._lie_in(burst)
            self._load()
            for thread in threads:
                thread.start()
            try:
                self._serve(burst, max_jobs, max_idle_time)
            except Exception as error:
                self._fatal = self._fatal or error
                self.log.exception("Worker %s: taking jobs failed", self.name)
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
            self.teardown()
            self._ended.set()
        if self._fatal is not None:
            self._restart_if_possible(burst)
            raise CriticFailed(f"the worker stopped: {self._fatal}") from self._fatal
        return self.stats.jobs > 0

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        # RQ would let a read hang for 415 s; our reads are short, and a dead connection must show.
        return reconnect(connection)

    def register_birth(self) -> None:
        try:
            self._once_served(super().register_birth)
        except redis.ResponseError as error:
            # Lists of a wrong type, which are for people: the rest is written.
            if self.birth_date is None:
                raise
            self._beating.met(error)
        # RQ would have a worker that dies before its first beat listed for 8 minutes.
        self._once_served(partial(self.connection.pexpire, self.key, WORKER_TTL_MS))

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        self._once_served(partial(super().set_state, state, pipeline))

    def _shutdown(self) -> None:
        # Unlike RQ's, this never raises in the middle of taking a job.
        self._request_stop()
        if self._loading:
            raise StopRequested()

    def _request_stop(self) -> None:
        """Stops taking jobs, and ends the critic's thread after the batch at hand."""
        self._stop_requested = True
        self._batcher.close()
        self._ending.set()

    def _start_scheduler(
        self,
        burst: bool = False,
        logging_level: str | None = "INFO",
        date_format: str = DEFAULT_LOGGING_DATE_FORMAT,
        log_format: str = DEFAULT_LOGGING_FORMAT,
    ) -> None:
        """As RQ's; where Redis refuses, it is left to the maintenance."""
        self.scheduler = Scheduler(
            self.queues,
            connection=self.connection,
            logging_level=logging_level if logging_level is not None else self.log.level,
            date_format=date_format,
            log_format=log_format,
            serializer=self.serializer,
            worker=self.name,
        )
        try:
            if not self.scheduler.acquire_locks():
                return
            if not burst:
                self.scheduler.start()
                return
            try:
                self.scheduler.enqueue_scheduled_jobs()
            finally:
                self.scheduler.release_locks()
        except redis.RedisError as error:
            self._housekeeping.met(error)

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Goes on listening whatever Redis said; RQ's would end its thread at all but a lost connection."""
        if not isinstance(exc, redis.RedisError):
            raise exc
        self._listening.met(exc)
        time.sleep(_REDIS_PAUSE_S)

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

    def run_maintenance_tasks(self) -> None:
        """Restarts a dead scheduler and forgets dead workers and old failures; what fails is tried the next time.

        RQ's own round also fails abandoned jobs and calls the callbacks they name: code named on Redis.
        """
        errors = []
        for task in (
            self._revive_scheduler,
            self._clock.sync,
            partial(clean_worker_registry, self.queues[0]),
            self._failed_registry().cleanup,
        ):
            try:
                task()
            except redis.RedisError as error:
                errors.append(error)
            except Exception:  # others' entries that RQ can't read, no room for a process: none is worth a worker
                self.log.exception("Worker %s: maintenance failed", self.name)
        self._housekeeping.met(errors[0]) if errors else self._housekeeping.over()

    def _revive_scheduler(self) -> None:
        if self.scheduler and (not self.scheduler._process or not self.scheduler._process.is_alive()):
            self.scheduler.acquire_locks(auto_start=True)

    # The main thread: jobs in.

    def _serve(self, burst: bool, max_jobs: int | None, max_idle_time: int | None) -> None:
        unread: list[TakenJob] = []
        if self._adopted is not None:
            job_id, text = self._adopted
            self._claims.add([job_id])
            self._accept([(job_id, text)])
        idle_since = last_maintenance = time.monotonic()
        while not self._stop_requested and self._fatal is None:
            if max_jobs is not None and self.stats.jobs >= max_jobs:
                break
            try:
                if time.monotonic() - last_maintenance > min(_MAINTENANCE_S, self.maintenance_interval):
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
                self._taking.met(error)
                self._halt.wait(_REDIS_PAUSE_S)
                continue
            self._taking.over()
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
            f"{many(len(job.deaths), 'worker')} died while they had this query: {history(job.deaths)}; it is not "
            "tried again. See their logs."
        )
        self.log.error("Worker %s: failed: %s: %s", self.name, many(len(blamed), "query"), failure.message)
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
            pipeline.expire(job.key, FAILURE_TTL_S)
            pipeline.zadd(self._failed_registry().key, {job_id: time.time() + FAILURE_TTL_S})
            Result.create_failure(
                job, FAILURE_TTL_S, exc_string=str(error), worker_name=self.name, pipeline=pipeline
            )
            self.increment_failed_job_count(pipeline)
            # A stranger's keys of a wrong type must not end the worker.
            pipeline.execute(raise_on_error=False)

    # The critic's thread.

    def _lie_in(self, burst: bool) -> None:
        """Leaves the critic unloaded while it is to sleep, until jobs wait that nobody else takes."""
        waits = False
        while not burst and self._adopted is None and self._asker.lies_in() and self._fatal is None:
            try:
                waited, waits = waits, self._alone_waits or self.connection.llen(self._keys.rq_queue) > 0
            except redis.RedisError:  # the beats tell
                waits = False
            if waited and waits:
                return
            self._halt.wait(BEAT_S)
            if self._stop_requested:
                raise StopRequested

    def _load(self) -> None:
        self._loading = True
        started = time.monotonic()
        self.log.info("Worker %s: loading critic %s", self.name, self.config.critic)
        try:
            self.critic.load()
            prompt = clean(getattr(self.critic, "prompt_hash", ""))
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
        self._replies.critic = structs.replace(self._replies.critic, prompt=prompt)
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
        while not self._halt.wait(BEAT_S):
            if where := self._watchdog.look(BEAT_S):
                self._end_hung(where)
            # What batches needed is free again, but glibc keeps it; a look where nothing is takes 0.2 ms.
            memory.give_back()
            try:
                wrong = self._beat()
                self._hear()
                self._beating.met(wrong[0]) if wrong else self._beating.over()
            except redis.RedisError as error:
                self._beating.met(error)
            except Exception as error:
                self._fatal = self._fatal or error
                self.log.exception("Worker %s: the heartbeat failed", self.name)
                return

    def _hear(self) -> None:
        """Tells the critic's thread the last order to this worker, or to all (`vlac-queue workers`)."""
        own, general = cast("list[bytes | None]", self.connection.hmget(self._keys.orders, [self.name, EVERYBODY]))
        if order := own or general:
            text = order[:_MOST_ORDER_BYTES].decode(errors="replace")
            if self._asker.order(text, _FOLLOWS_S):  # who gave it waits to see that
                self.connection.hset(self._keys.worker(self.name), mapping=self._description())

    def _beat(self) -> list[redis.RedisError]:
        """Says that this worker lives, learns what it should know, and finds dead workers.

        Returns:
            Errors that do not pass, of keys that are of a wrong type, say: what else there is to do is done.
        """
        self._replies.new_beat()
        self._state = (WorkerStatus.BUSY if self._jobs else WorkerStatus.IDLE).value
        mine = self._jobs.ids | self._at_hand
        replies = self._exchange_news()
        wrong = [reply for reply in replies if isinstance(reply, redis.RedisError)]
        for error in filter(passes, replies[:6]):
            raise error
        known = [None if isinstance(reply, redis.RedisError) else reply for reply in replies[:6]]
        names, suspended, was_there, claimed, alone, parent_stops = known
        self._suspended = bool(suspended)
        self._alone_waits = bool(alone)
        if claimed is not None:
            claims = frozenset(job.decode(errors="replace") for job in claimed)
            self._check_claims(mine, claims, lapsed=self._beats > 0 and was_there == 0)
        self._beats += 1
        if self._parent and not self._stop_requested and (parent_stops or self._orphaned()):
            self.log.info("Worker %s: its parent %s stops, stopping too", self.name, self._parent.name)
            self._request_stop()
        others = sorted(self._known(names or ()) - {self.name})
        self._others = len(others)
        return wrong + self._recover(others)

    def _exchange_news(self) -> list[Any]:
        """Writes that this worker lives; the first six replies, which may be errors, are what it reads before."""
        worker_key = self._keys.worker(self.name)
        parent = self._parent.name if self._parent else ""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.smembers(self._keys.workers)
            pipeline.exists(WORKERS_SUSPENDED)
            pipeline.exists(worker_key)
            pipeline.lrange(self._claims.key, 0, -1)
            pipeline.llen(self._keys.alone)
            pipeline.hget(f"{self.redis_worker_namespace_prefix}{parent}", "shutdown_requested_date")
            pipeline.hset(self.key, mapping={**self.serialize(), "state": self._state})
            pipeline.pexpire(self.key, WORKER_TTL_MS)
            pipeline.sadd(self.redis_workers_keys, self.key)
            pipeline.sadd(self._keys.rq_workers, self.key)
            pipeline.sadd(self._keys.workers, self.name)
            pipeline.hset(worker_key, mapping=self._description())
            pipeline.pexpire(worker_key, WORKER_TTL_MS)
            return pipeline.execute(raise_on_error=False)

    def _check_claims(self, mine: frozenset[str], claimed: frozenset[str], *, lapsed: bool) -> None:
        """Makes claims and what is at hand agree: a reply was lost, Redis lost the claims, or others thought this
        worker dead.

        Args:
            mine: jobs at hand before `claimed` was read.
            claimed: this worker's claims.
            lapsed: whether others may have taken its jobs over since the last beat.
        """
        unknown = claimed - mine - self._jobs.ids - self._at_hand
        # A job may be just on its way from the claims to here: only what is unknown twice is lost.
        lost, self._unknown = unknown & self._unknown, unknown
        if lost:
            self.log.warning("Worker %s: lost on the way: %s", self.name, many(len(lost), "job"))
            self._claims.give_back(lost)
        unclaimed = mine - claimed
        if lapsed:
            if unclaimed:
                self._batcher.remove(lambda each: each.job in unclaimed)
                self._jobs.drop(unclaimed)
                self.log.warning(
                    "Worker %s: was thought dead; %d of its jobs went to others", self.name, len(unclaimed)
                )
            unclaimed = frozenset()
        # Answers may be just on their way, or jobs to here: as above.
        evicted, self._unclaimed = unclaimed & self._unclaimed, unclaimed
        if evicted:
            self.log.warning("Worker %s: Redis lost the claims of %d jobs; made again", self.name, len(evicted))
            self._claims.add(evicted)

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
            self._leaving.met(error)

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
            "order": self._asker.followed,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "time": self._clock.now(),
        }
        return {**own, **describe(self.config, self.stats, self._replies)}

    def _orphaned(self) -> bool:
        return self._parent is not None and not self._parent.same_process and os.getppid() != self._parent.pid

    def _recover(self, others: Sequence[str]) -> list[redis.RedisError]:
        """Takes over what dead workers had; returns errors that do not pass, each of one of them."""
        if not others:
            return []
        wrong = []
        with self.connection.pipeline(transaction=False) as pipeline:
            for name in others:
                pipeline.exists(self._keys.worker(name))
            alive = pipeline.execute()
        for name, lives in zip(others, alive, strict=True):
            try:
                if not lives:
                    self._take_over(name)
            except redis.RedisError as error:
                if passes(error):
                    raise
                wrong.append(error)
        return wrong

    def _take_over(self, name: str) -> None:
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
        self._ending.set()
        asking, replying = threads
        if asking.ident is not None:
            asking.join()
        else:
            self.critic.close()
        if replying.is_alive():
            self._replies.close()
            replying.join()

    def _end_in_time(self, asking: threading.Thread) -> None:
        """Ends this process where Redis keeps it from ending: it is silent, and each try at it takes long."""
        self._ending.wait()
        if asking.ident is not None:
            asking.join()
        if self._ended.wait(_END_S):
            return
        self.log.critical("Worker %s: ends without a word to Redis; others find its jobs", self.name)
        if self.scheduler:
            self.scheduler.kill()
        if self._fatal is not None:
            self._restart_if_possible(False)
        os._exit(0 if self._fatal is None else 1)

    def _leave(self) -> None:
        """Gives unfinished jobs back and takes this worker off the lists; else others find them."""
        try:
            given_back = self._claims.give_back()
            with self.connection.pipeline() as pipeline:
                pipeline.srem(self._keys.workers, self.name)
                pipeline.delete(self._keys.worker(self.name))
                pipeline.execute()
            if given_back:
                self.log.info("Worker %s: gave %s back to the queue", self.name, many(given_back, "job"))
        except redis.RedisError as error:
            self._leaving.met(error)

    def teardown(self) -> None:
        try:
            super().teardown()
        except redis.RedisError as error:
            self._leaving.met(error)

    def _failed_registry(self) -> FailedJobRegistry:
        return FailedJobRegistry(self.queues[0].name, connection=self.connection, serializer=DataOnlySerializer)

    def _once_served(self, work: Callable[[], object]) -> None:
        """Does `work`, again while Redis refuses it for now; `__init__` has found that it is there."""
        refused = False
        while True:
            try:
                work()
                return self._beating.over() if refused else None
            except redis.ResponseError as error:
                if not passes(error):
                    raise
                if self._stop_requested:
                    raise StopRequested from error
                self._beating.met(error)
                refused = True
                time.sleep(_REDIS_PAUSE_S)

    def _say_started(self) -> None:
        """Says that this worker is there, before RQ does."""
        self.connection.hset(self._keys.worker(self.name), "state", WorkerStatus.STARTED.value)
        self.connection.pexpire(self._keys.worker(self.name), WORKER_TTL_MS)

    def _check_server(self) -> None:
        version = self.get_redis_server_version()
        if version < (6, 2, 0):
            raise ConfigError(
                f"Redis 6.2 or newer is needed, this server is {'.'.join(map(str, version))}; update it."
            )


def _shown(data: bytes) -> str:
    """Bytes from Redis, fit for a log."""
    return repr(data[:100])
