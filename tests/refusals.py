"""A real Redis that refuses for now, in each way that one can."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import redis

from tests.conftest import until


@contextmanager
def failed_snapshot(connection: redis.Redis) -> Iterator[None]:
    """MISCONF: the last background save failed, so nothing may be written."""
    target = Path(connection.config_get("dir")["dir"]) / connection.config_get("dbfilename")["dbfilename"]
    target.unlink(missing_ok=True)
    target.mkdir()
    connection.config_set("save", "3600 1")
    connection.bgsave()
    until(lambda: connection.info("persistence")["rdb_last_bgsave_status"] == "err")
    try:
        yield
    finally:
        connection.config_set("save", "")
        target.rmdir()


@contextmanager
def too_few_replicas(connection: redis.Redis) -> Iterator[None]:
    """NOREPLICAS: it wants a replica that is not there."""
    connection.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        connection.config_set("min-replicas-to-write", 0)


@contextmanager
def endless_script(connection: redis.Redis) -> Iterator[None]:
    """BUSY: a script runs on, until it is killed."""

    def run() -> None:
        with redis.Redis(connection_pool=redis.ConnectionPool(**connection.get_connection_kwargs())) as own:
            try:
                own.eval("while true do end", 0)
            except redis.ResponseError as error:
                assert "killed" in str(error)

    connection.config_set("lua-time-limit", 50)
    thread = threading.Thread(target=run)
    thread.start()

    def busy() -> bool:
        try:
            connection.ping()
        except redis.ResponseError as error:
            return str(error).startswith("BUSY")
        return False

    until(busy)
    try:
        yield
    finally:
        connection.script_kill()
        thread.join()


@contextmanager
def full_memory(connection: redis.Redis) -> Iterator[None]:
    """OOM: it has reached its maxmemory."""
    connection.config_set("maxmemory", 1)
    try:
        yield
    finally:
        connection.config_set("maxmemory", 0)


Refusal = Callable[[redis.Redis], AbstractContextManager[None]]
REFUSALS: tuple[Refusal, ...] = (failed_snapshot, too_few_replicas, endless_script, full_memory)
