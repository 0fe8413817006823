"""RQ's scheduler, as a process that outlives errors of Redis and does not outlive its worker."""

from __future__ import annotations

import os
import time
from typing import Any

import redis
from rq.scheduler import RQScheduler

from workers.trouble import Trouble


class Scheduler(RQScheduler):
    """Enqueues jobs that RQ has scheduled, in a process of its own; takes RQ's arguments, and its worker's name.

    RQ's own process ends at the first error of Redis, and stays when its worker is killed: with what it has
    inherited, the accelerator among it.
    """

    def __init__(self, *args: Any, worker: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._worker = worker
        self._worker_pid = os.getpid()

    def begin(self, burst: bool) -> None:
        """Have due jobs enqueued: by a process of its own, or now if the worker ends with its work (`burst`)."""
        if not self.acquire_locks():
            return
        if not burst:
            self.start()
            return
        try:
            self.enqueue_scheduled_jobs()
        finally:
            self.release_locks()

    def revive(self) -> None:
        """Have a process run again that has died."""
        if not self._process or not self._process.is_alive():
            self.acquire_locks(auto_start=True)

    def kill(self) -> None:
        """End the process, whatever it waits for."""
        if self._process:
            self._process.kill()

    def work(self) -> None:
        self._install_signal_handlers()
        trouble = Trouble(self.log, self._worker, "scheduler", self.connection)
        while not self._stop_requested and os.getppid() == self._worker_pid:
            try:
                if not self.pid:
                    self.register_birth()
                if self.should_reacquire_locks:
                    self.acquire_locks()
                self.heartbeat()
                self.enqueue_scheduled_jobs()
                trouble.over()
            except redis.RedisError as error:
                trouble.met(error)
            time.sleep(self.interval)
        try:
            self.stop()
        except redis.RedisError as error:
            trouble.met(error)
