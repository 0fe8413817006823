"""`CriticWorker`: an RQ worker that keeps the critic loaded and answers many jobs in one batch.

Three threads, so that the critic never waits for Redis:

    main     takes jobs, reads and decodes their frames, and puts the queries into the batcher (workers/taker.py)
    critic   takes batches and asks the critic (workers/asker.py)
    replies  writes the answers and finishes the jobs (workers/replies.py)

a fourth that beats once a second, and gives the jobs of dead workers back to the queue (workers/heart.py); and one
that ends a stopping worker whatever Redis does.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import redis
from redis.client import Pipeline
from rq import SimpleWorker
from rq.defaults import DEFAULT_LOGGING_DATE_FORMAT, DEFAULT_LOGGING_FORMAT
from rq.exceptions import StopRequested
from rq.registry import FailedJobRegistry
from rq.worker import DequeueStrategy
from rq.worker_registration import clean_worker_registry

from vlac_queue.config import VlacConfig
from vlac_queue.connection import address, elsewhere, reconnect
from vlac_queue.errors import ConfigError, CriticFailed
from vlac_queue.keys import WORKER_TTL_MS
from vlac_queue.messages import CriticIdentity
from workers.asker import Asker
from workers.claims import Claims
from workers.critics import make_critic
from workers.envelope import DataOnlySerializer
from workers.flow import JobQuery, TakenJob
from workers.heart import Heart, Parent
from workers.log import make_logs_safe, shown
from workers.replies import Replies
from workers.restart import may_restart
from workers.scheduler import Scheduler
from workers.shared import Shared
from workers.store import WorkerStore
from workers.taker import Taker

# Not when a worker is made: RQ's command asks Redis before that, and logs what it meets.
make_logs_safe()

#: Seconds between two rounds of maintenance.
_MAINTENANCE_S = 60.0
#: Seconds to wait after a failed connection.
_REDIS_PAUSE_S = 0.5
#: Seconds that a worker takes to end once its critic is done with the batch at hand.
_END_S = 10.0


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
        queues = [queues] if isinstance(queues, str) else queues
        names = [each if isinstance(each, str) else each.name for each in queues]
        serves = kwargs.get("prepare_for_work", True)
        if serves and len(names) != 1:
            raise ConfigError(f"a CriticWorker serves one queue, not {len(names)}; start one worker for each.")
        if kwargs.get("connection") is None and queues and not isinstance(queues[0], str):
            kwargs["connection"] = queues[0].connection
        unique = name or f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:4]}"
        super().__init__(names, unique, *args, **kwargs)
        self.scheduler: Scheduler | None = None
        self._adopted: TakenJob | None = None
        if serves:  # RQ reads other workers' state through instances that never work
            self._prepare_to_serve(VlacConfig.from_env(queue=names[0]))

    def _prepare_to_serve(self, config: VlacConfig) -> None:
        shared = self._shared = Shared(self.name, config, self.connection)
        shared.stats.critic = CriticIdentity(config.critic, config.model_path)
        store = WorkerStore(self.connection, shared.keys, ttl_s=config.episode_ttl_s)
        self._claims = Claims(self.connection, shared.keys, self.name, shared.stats)
        self._replies = Replies(shared, store, self._claims)
        self._asker = Asker(shared, make_critic(config), store, self._replies, self._claims)
        self._heart = Heart(shared, self._claims, self._replies, self._asker, self)
        self._taker = Taker(shared, store, self._claims, self._replies, self._asker, self._heart)
        self._listening, self._housekeeping = map(shared.trouble, ("listening to commands", "maintenance"))
        self._asking, self._replying = (
            threading.Thread(target=self._guarded, args=(part.run, name), name=name, daemon=True)
            for part, name in ((self._asker, "critic"), (self._replies, "replies"))
        )
        self._beating = threading.Thread(target=self._heart.run, name="beat", daemon=True)
        #: Set once this worker has ended.
        self._ended = threading.Event()

    def live_inside(self, job: TakenJob, parent: Parent) -> None:
        """Be a worker inside a job of another one, and begin with that job."""
        self._adopted, self._claims.lives_in = job, job.id
        self._heart.parent = parent

    @property
    def signalled(self) -> bool:
        """Whether a signal has told it to stop."""
        return self._shutdown_requested_date is not None

    # RQ's interface.

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
        """Load the critic and serve until stopped; the arguments are those of `rq worker`.

        Returns:
            Whether any job was answered.

        Raises:
            CriticFailed: the critic could not be loaded, or its thread died.
        """
        self._begin(logging_level, date_format, log_format)
        try:
            if with_scheduler:
                self._start_scheduler(burst, logging_level, date_format, log_format)
            self._install_signal_handlers()
            queries = self._wake_up(burst)
            try:
                self._serve(queries, burst, max_jobs, max_idle_time)
            except Exception as error:
                self._shared.fail(error, "taking jobs failed")
        except StopRequested:
            pass
        finally:
            self._end()
        if fatal := self._shared.fatal:
            if not burst:
                self._heart.restart_if_possible()
            raise CriticFailed(f"the worker stopped: {fatal}") from fatal
        return self._shared.stats.jobs > 0

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        # RQ would let a read hang for 415 s; our reads are short, and a dead connection must show.
        return reconnect(connection)

    def register_birth(self) -> None:
        try:
            self._heart.once_served(super().register_birth)
        except redis.ResponseError as error:
            # Lists of a wrong type, which are for people: the rest is written.
            if self.birth_date is None:
                raise
            self._heart.trouble.met(error)
        # RQ would have a worker that dies before its first beat listed for 8 minutes.
        self._heart.once_served(partial(self.connection.pexpire, self.key, WORKER_TTL_MS))

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        self._heart.once_served(partial(super().set_state, state, pipeline))

    def teardown(self) -> None:
        try:
            super().teardown()
        except redis.RedisError as error:
            self._heart.leaving.met(error)

    def _shutdown(self) -> None:
        # Unlike RQ's, this never raises in the middle of taking a job.
        self._shared.stop()
        if self._asker.loading:
            raise StopRequested()

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
            self.scheduler.begin(burst)
        except redis.RedisError as error:
            self._housekeeping.met(error)

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Go on listening whatever Redis said; RQ's would end its thread at all but a lost connection."""
        if not isinstance(exc, redis.RedisError):
            raise exc
        self._listening.met(exc)
        time.sleep(_REDIS_PAUSE_S)

    def handle_payload(self, message: Any) -> None:
        """Follow RQ's command `shutdown`; the others are about work-horses, which this worker has none of."""
        try:
            command = json.loads(message["data"])["command"]
        except (ValueError, KeyError, TypeError, RecursionError):
            command = None
        if command == "shutdown":
            super().handle_payload(message)
        else:
            self.log.warning("Worker %s: no such command: %s", self.name, shown(message["data"]))

    def run_maintenance_tasks(self) -> None:
        """Restart a dead scheduler and forget dead workers and old failures; what fails is tried the next time.

        RQ's own round also fails abandoned jobs and calls the callbacks they name: code named on Redis.
        """
        errors = []
        for task in (
            self.scheduler.revive if self.scheduler else lambda: None,
            self._shared.clock.sync,
            partial(clean_worker_registry, self.queues[0]),
            FailedJobRegistry(queue=self.queues[0]).cleanup,
        ):
            try:
                task()
            except redis.RedisError as error:
                errors.append(error)
            except Exception:  # others' entries that RQ can't read, no room for a process: none is worth a worker
                self.log.exception("Worker %s: maintenance failed", self.name)
        self._housekeeping.met(errors[0]) if errors else self._housekeeping.over()

    # Its life.

    def _begin(self, logging_level: str | None, date_format: str, log_format: str) -> None:
        """Register with Redis."""
        self._heart.restarts = may_restart() and self._heart.parent is None
        self._heart.once_served(self._heart.say_started)
        self._heart.once_served(self._check_server)
        self._heart.once_served(self._shared.clock.sync)
        self.bootstrap(logging_level, date_format, log_format)
        queue = self._shared.keys.queue
        self.log.info("Worker %s: serves queue %s on %s", self.name, queue, address(self.connection))
        if warning := elsewhere(self.connection):
            self.log.warning("Worker %s: %s", self.name, warning)
        threading.Thread(target=self._end_in_time, name="end", daemon=True).start()

    def _wake_up(self, burst: bool) -> list[JobQuery]:
        """Begin to beat, load the critic and have the threads run; return the queries to begin with."""
        # What a predecessor of this name has left.
        self._heart.once_served(partial(self._heart.recover, [self.name]))
        self._heart.once_served(self._heart.beat)
        with suppress(redis.RedisError):  # the next beat tells
            self._heart.hear()
        self._beating.start()
        queries = self._claims.queries(self._adopted) if self._adopted else []
        if not burst and self._adopted is None:
            self._taker.lie_in()
        self._asker.load(queries)
        self._asking.start()
        self._replying.start()
        return queries

    def _serve(
        self, queries: Sequence[JobQuery], burst: bool, max_jobs: int | None, max_idle_time: int | None
    ) -> None:
        """Take jobs until there is a reason to end."""
        if queries:
            self._taker.adopt(queries)
        last_maintenance = time.monotonic()
        while not self._shared.ends and (max_jobs is None or self._shared.stats.jobs < max_jobs):
            if time.monotonic() - last_maintenance > min(_MAINTENANCE_S, self.maintenance_interval):
                last_maintenance = time.monotonic()
                self.run_maintenance_tasks()
            if self._taker.turn(burst=burst):
                continue
            if burst and not self._heart.suspended:
                break
            if max_idle_time is not None and time.monotonic() - self._taker.idle_since > max_idle_time:
                self.log.info("Worker %s: idle for %d seconds, quitting", self.name, max_idle_time)
                break

    def _guarded(self, run: Callable[[], None], name: str) -> None:
        try:
            run()
        except BaseException as error:
            self._shared.fail(error, f"thread {name} died")
            self._shared.batcher.close()

    def _end(self) -> None:
        """End the critic's thread after the batch at hand, then the replies', then the beats; and leave Redis."""
        self._shared.stop()
        if self._asking.ident is not None:
            self._asking.join()
        else:
            self._asker.critic.close()
        if self._replying.is_alive():
            self._replies.close()
            self._replying.join()
        self._shared.over.set()
        if self._beating.is_alive():
            self._beating.join()
        if self._shared.fatal is None:
            self._heart.leave()
        else:
            self._heart.die()
        self.teardown()
        self._ended.set()

    def _end_in_time(self) -> None:
        """End this process where Redis keeps it from ending: it is silent, and each try at it takes long."""
        self._shared.stopping.wait()
        if self._asking.ident is not None:
            self._asking.join()
        if self._ended.wait(_END_S):
            return
        self.log.critical("Worker %s: ends without a word to Redis; others find its jobs", self.name)
        if self.scheduler:
            self.scheduler.kill()
        if self._shared.fatal is not None:
            self._heart.restart_if_possible()
        os._exit(0 if self._shared.fatal is None else 1)

    def _check_server(self) -> None:
        version = self.get_redis_server_version()
        if version < (6, 2, 0):
            raise ConfigError(
                f"Redis 6.2 or newer is needed, this server is {'.'.join(map(str, version))}; update it."
            )
