"""Commands sent as they are made, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from vlac_queue.connection import Script, connect, exchange
from vlac_queue.server import RedisServer

_COUNT = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


def test_a_script_runs_once_whether_the_server_knows_it_or_not(connection: redis.Redis) -> None:
    connection.script_flush()
    commands = [("EVAL", _COUNT, 1, "count", 1), ("SET", "other", "x"), ("EVAL", _COUNT, 1, "count", 10)]
    # Unknown: both are sent again, in their order, and nothing else is.
    assert exchange(connection, commands) == [1, b"OK", 11]
    assert exchange(connection, commands) == [12, b"OK", 22]
    connection.script_flush()
    assert exchange(connection, commands[:1]) == [23]


def test_a_known_script_is_sent_by_its_digest(connection: redis.Redis) -> None:
    exchange(connection, [("EVAL", _COUNT, 1, "count", 1)])
    connection.config_resetstat()
    exchange(connection, [("EVAL", _COUNT, 1, "count", 1)] * 3)
    calls = connection.info("commandstats")
    assert calls["cmdstat_evalsha"]["calls"] == 3 and "cmdstat_eval" not in calls


def test_an_error_is_the_reply_of_its_command_alone(connection: redis.Redis) -> None:
    connection.set("text", "x")
    first, second, third = exchange(connection, [("INCR", "text"), ("INCR", "count"), ("EVAL", "nonsense(", 0)])
    assert isinstance(first, redis.ResponseError) and second == 1 and isinstance(third, redis.ResponseError)


def test_no_health_check_takes_the_reply_of_a_command(connection: redis.Redis) -> None:
    pool = connection.connection_pool
    connection.ping()
    (link,) = pool._available_connections
    link.health_check_interval = 1e-9  # due before every command

    def commands() -> Iterator[tuple[Any, ...]]:
        for number in range(20):
            link.next_health_check = 0
            yield ("ECHO", str(number))

    assert exchange(connection, commands()) == [str(number).encode() for number in range(20)]


def test_a_broken_connection_goes_on_where_it_was(server: RedisServer, connection: redis.Redis) -> None:
    other = connect(server.url)

    def commands() -> Iterator[tuple[Any, ...]]:
        yield ("EVAL", _COUNT, 1, "count", 1)
        connection.client_kill_filter(_type="normal", skipme=True)
        yield ("ECHO", "after")

    count, echo = exchange(other, commands())
    assert count in (1, 2) and echo == b"after"
