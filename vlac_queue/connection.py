"""Connections to Redis, and Redis' errors in our terms."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from hiredis import pack_command
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq.connections import parse_connection

from vlac_queue.config import redact_url
from vlac_queue.errors import ConfigError, QueueFull, RedisUnavailable
from vlac_queue.failover import connection_arguments, following

#: Seconds that a blocking read waits on the server at a time; between two reads the deadline is looked at.
BLOCK_S = 1.0
#: Seconds until a silent connection counts as broken; well above BLOCK_S.
SOCKET_TIMEOUT_S = 10.0


#: What a Redis raises that is away or full, and may be back or have room in a moment.
AWAY = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, redis.exceptions.OutOfMemoryError)

#: How a connection behaves on both sides of the queue, whoever made it.
_BEHAVIOUR: dict[str, Any] = {
    "socket_timeout": SOCKET_TIMEOUT_S,
    "socket_connect_timeout": 5.0,
    "health_check_interval": 30,
}


def _retry() -> Retry:
    return Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=3)


def connect(url: str, **behaviour: Any) -> redis.Redis:
    """A client for `url` that connects at its first command, and again whenever the connection broke.

    Args:
        url: redis://, rediss:// (TLS), unix://, or redis+sentinel://host:26379,host2:26379/mymaster/0, which
            finds the master anew at each connection.
        behaviour: arguments of redis-py's connections, in place of ours.

    Raises:
        ConfigError: the URL can't be parsed.
    """
    try:
        arguments = connection_arguments(url)
    except ValueError as error:
        raise ConfigError(f"redis_url {redact_url(url)} can't be used: {error}") from None
    pool = redis.ConnectionPool(**{**arguments, "retry": _retry(), **_BEHAVIOUR, **behaviour})
    return redis.Redis.from_pool(pool)


class AnyRedis(redis.Redis):
    """RQ's commands take any URL of ours by it: RQ_CONNECTION_CLASS=vlac_queue.connection.AnyRedis."""

    @classmethod
    def from_url(cls, url: str, **behaviour: Any) -> redis.Redis:
        return connect(url, **behaviour)


def reconnect(connection: redis.Redis) -> redis.Redis:
    """A client of its own for the server of `connection`; safe to use after a fork."""
    client_class, connection_class, kwargs = parse_connection(connection)
    kwargs.update(_BEHAVIOUR, retry=_retry(), connection_class=following(connection_class))
    return client_class(connection_pool=redis.ConnectionPool(**kwargs))


@contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Raises Redis' errors as ours.

    Raises:
        RedisUnavailable: the server can't be reached, is still loading or refuses the password.
        QueueFull: the server has reached its maxmemory.
    """
    try:
        yield
    except redis.exceptions.AuthenticationError as error:
        raise RedisUnavailable(
            f"Redis at {redact_url(url)} refused the password: {error}; mend redis_url."
        ) from error
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        remedy = "start redis-server there, or correct redis_url (VLAC_REDIS_URL)."
        if "CERTIFICATE" in str(error).upper():
            remedy = (
                "it speaks TLS, and one side does not trust the other: look at ssl_ca_certs, ssl_certfile "
                "and the host name in redis_url (VLAC_REDIS_URL)."
            )
        raise RedisUnavailable(
            f"can't reach Redis at {redact_url(url)} ({type(error).__name__}: {error}); {remedy}"
        ) from error
    except redis.exceptions.ResponseError as error:
        if isinstance(error, redis.exceptions.OutOfMemoryError):
            raise QueueFull(
                "Redis has reached its maxmemory; raise it, or lower max_pending_bytes below it."
            ) from error
        raise


#: Where a connection broke before the reply.
_MISSING = object()


class Script(str):
    """A Lua script. `exchange` sends its digest, and all of it only to a server that does not know it yet."""

    digest: str

    def __new__(cls, text: str) -> Script:
        script = super().__new__(cls, text)
        script.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return script


def exchange(connection: redis.Redis, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Sends commands as they are made, and reads all replies afterwards.

    Args:
        connection: sends on one of its connections.
        commands: each command's words, a script as ("EVAL", Script, ...); sending one of them again must change
            nothing, since a connection that breaks leaves open which were executed: those without a reply are
            sent again, one by one. So are scripts that the server did not know.

    Returns:
        Each command's reply; the server's errors as values, since others may have succeeded. Where the server
        can't be reached, that is the error of each command that is left.
    """
    made: list[tuple[Any, ...]] = []
    replies: list[Any] = []
    left = iter(commands)
    pool = connection.connection_pool
    try:
        link = pool.get_connection()
        try:
            for command in left:
                made.append(command)
                # As redis-py packs it, without its look at each word.
                link.send_packed_command([pack_command(_by_digest(command))])
            while len(replies) < len(made):
                replies.append(_read_reply(link))
        except BaseException:
            # Replies that nobody reads any more must not be taken for those to other commands.
            link.disconnect()
            raise
        finally:
            pool.release(link)
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
        made += left
    replies += [_MISSING] * (len(made) - len(replies))
    away: Exception | None = None
    for index, reply in enumerate(replies):
        if reply is _MISSING or isinstance(reply, redis.exceptions.NoScriptError):
            try:
                replies[index] = away or connection.execute_command(*made[index])
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
                replies[index] = away = error
            except redis.RedisError as error:
                replies[index] = error
    return replies


def checked(reply: Any) -> Any:
    """A reply that `exchange` gave, unless it is an error: that is raised."""
    if isinstance(reply, redis.RedisError):
        raise reply
    return reply


def _by_digest(command: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(script := command[1] if len(command) > 1 else None, Script):
        return ("EVALSHA", script.digest, *command[2:])
    return command


def _read_reply(link: Any) -> Any:
    try:
        return link.read_response()
    except redis.exceptions.ResponseError as error:
        return error


class RedisClock:
    """Seconds since 1970 on the server's clock, so that deadlines mean the same on every host."""

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection
        self._offset = 0.0
        self._synced = -math.inf

    def sync(self, max_age_s: float = 0.0) -> RedisClock:
        """Asks the server for its time, unless it was asked within the last `max_age_s` seconds."""
        if time.monotonic() - self._synced > max_age_s:
            seconds, microseconds = self._connection.time()
            self._synced = time.monotonic()
            self._offset = seconds + microseconds / 1e6 - self._synced
        return self

    def now(self) -> float:
        """The server's time as of the last `sync`, carried on by the local monotonic clock; no I/O."""
        return time.monotonic() + self._offset
