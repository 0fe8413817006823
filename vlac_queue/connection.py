"""Connections to Redis: how they behave, and how long one waits for a server that is away."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import redis
from hiredis import pack_command
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq.connections import parse_connection

from vlac_queue.config import redact_url
from vlac_queue.credentials import ROLLOUT
from vlac_queue.errors import ConfigError, NoWorkers, QueueFull, RedisUnavailable
from vlac_queue.failover import connection_arguments, following
from vlac_queue.faults import redis_errors

#: Seconds that a blocking read waits on the server at a time; between two reads the deadline is looked at.
BLOCK_S = 1.0
#: Seconds until a silent connection counts as broken; well above BLOCK_S.
SOCKET_TIMEOUT_S = 10.0
#: Seconds of the first pause before Redis is tried again; doubles up to the last.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 1.0

Result = TypeVar("Result")


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
        ConfigError: the URL can't be parsed, or names a file for TLS that can't be read.
    """
    try:
        arguments = connection_arguments(url)
    except ValueError as error:
        raise ConfigError(f"redis_url {redact_url(url)} can't be used: {error}") from None
    for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_ca_path"):
        if (path := arguments.get(option)) and not os.access(path, os.R_OK):
            raise ConfigError(
                f"{option} of redis_url {redact_url(url)} can't be read: {path}; copy the file there, or correct "
                "it."
            )
    pool = _Pool(**{**arguments, "retry": _retry(), **_BEHAVIOUR, **behaviour})
    return redis.Redis.from_pool(pool)


class _Pool(redis.ConnectionPool):
    """Takes no connection back with a reply that nobody read: it would be taken for that to the next command."""

    def release(self, connection: Any) -> None:
        error = sys.exc_info()[1]
        # Ctrl-C, or what a signal's handler raises, may come between a command and its reply.
        if error is not None and not isinstance(error, redis.RedisError):
            connection.disconnect()
        super().release(connection)


class AnyRedis(redis.Redis):
    """RQ's commands take any URL of ours by it: RQ_CONNECTION_CLASS=vlac_queue.connection.AnyRedis."""

    @classmethod
    def from_url(cls, url: str, **behaviour: Any) -> redis.Redis:
        return connect(url, **behaviour)


def reconnect(connection: redis.Redis) -> redis.Redis:
    """A client of its own for the server of `connection`; safe to use after a fork."""
    client_class, connection_class, kwargs = parse_connection(connection)
    kwargs.update(_BEHAVIOUR, retry=_retry(), connection_class=following(connection_class))
    return client_class(connection_pool=_Pool(**kwargs))


def address(connection: redis.Redis) -> str:
    """The URL of the server and database that `connection` uses, without user and password."""
    pool = connection.connection_pool
    settings = pool.connection_kwargs
    if path := settings.get("path"):
        return f"unix://{path}?db={settings.get('db') or 0}"
    tls = "s" if issubclass(pool.connection_class, redis.SSLConnection) else ""
    if service := settings.get("service"):
        return f"redis{tls}+sentinel:///{service}/{settings.get('db') or 0}"
    host, port = settings.get("host") or "localhost", settings.get("port") or 6379
    host = f"[{host}]" if ":" in host else host
    return f"redis{tls}://{host}:{port}/{settings.get('db') or 0}"


def elsewhere(connection: redis.Redis) -> str:
    """A sentence where VLAC_REDIS_URL names another server or database than `connection` uses, else ""."""
    url = os.environ.get("VLAC_REDIS_URL")
    if not url:
        return ""
    with connect(url) as named:
        used, meant = address(connection), address(named)
    if used.replace("//localhost:", "//127.0.0.1:") == meant.replace("//localhost:", "//127.0.0.1:"):
        return ""
    return (
        f"VLAC_REDIS_URL names {meant}, but RQ connects to {used}: start `vlac-queue worker`, or set "
        "RQ_CONFIG=vlac_queue.rq_settings and RQ_CONNECTION_CLASS=vlac_queue.connection.AnyRedis, and unset "
        "RQ_REDIS_URL."
    )


class Patience:
    """Waits for a Redis that is away, full or refuses for now, and for a worker, but only once it had worked: so a
    wrong address is told at once.

    The connection tries a broken command again by itself (a second or so); this is the only other layer that
    tries again.

    Args:
        url: of Redis, for messages.
        seconds: how long.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._worked = False

    def __call__(self, work: Callable[[], Result], *, at_once: tuple[type[Exception], ...] = ()) -> Result:
        """Return what `work` returns; done again for a while where it fails. It must be fit to be done twice.

        Args:
            work: raises errors of Redis, or ours.
            at_once: those of ours that are not waited for this time.

        Raises:
            RedisUnavailable, QueueFull, NoWorkers: the last failure.
            RedisDenied, RedisFailed: Redis refused; waiting would not help.
        """
        began, pause = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                with redis_errors(self._url, ROLLOUT):
                    result = work()
                self._worked = True
                return result
            except (RedisUnavailable, QueueFull, NoWorkers) as error:
                late = time.monotonic() + pause > began + self._seconds
                if not self._worked or late or isinstance(error, at_once):
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_S)


class Script(str):
    """A Lua script. `exchange` sends its digest, and all of it only to a server that does not know it yet."""

    digest: str

    def __new__(cls, text: str) -> Script:
        script = super().__new__(cls, text)
        script.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return script

    @classmethod
    def load(cls, path: Path) -> Script:
        """Read a .lua file, without its comments; a line `-- include NAME` stands for NAME.lua beside it."""
        lines: list[str] = []
        for line in path.read_text().splitlines():
            if line.startswith("-- include "):
                lines.append(cls.load(path.with_name(f"{line.split()[-1]}.lua")))
            elif not line.lstrip().startswith("--"):
                lines.append(line)
        return cls("\n".join(lines))


def exchange(connection: redis.Redis, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Send commands as they are made, and read all replies afterwards.

    Args:
        connection: sends on one of its connections.
        commands: each command's words, a script as ("EVAL", Script, ...); sending one of them again must change
            nothing, since a connection that breaks leaves open which were executed: those without a reply are
            sent again, as often as the connection's own retries allow.

    Returns:
        Each command's reply; the server's errors as values, since others may have succeeded. Where the server
        can't be reached, that is the error of each command that is left.
    """
    sending = _Exchange(commands)
    pool = connection.connection_pool

    def attempt() -> None:
        link = pool.get_connection()
        try:
            sending.on(link)
        except BaseException:
            # Replies that nobody reads any more must not be taken for those to other commands.
            link.disconnect()
            raise
        finally:
            pool.release(link)

    try:
        (connection.get_retry() or _retry()).call_with_retry(attempt, lambda _: None)
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        return sending.given_up(error)
    return sending.replies


class _Exchange:
    """Commands, and the replies read so far; goes on where it was broken off."""

    def __init__(self, commands: Iterable[tuple[Any, ...]]) -> None:
        self.replies: list[Any] = []
        self._made: list[tuple[Any, ...]] = []
        self._left = iter(commands)

    def on(self, link: Any) -> None:
        """Send what has no reply yet on `link`, and read the replies."""
        # redis-py's look at the connection's health asks and reads a reply itself: before the first command only,
        # since between two of them it would take the reply to the first.
        check_health = True
        for command in itertools.chain(self._made[len(self.replies) :], self._making()):
            link.send_packed_command([_packed(_by_digest(command))], check_health=check_health)
            check_health = False
        while len(self.replies) < len(self._made):
            self.replies.append(_read_reply(link))
        # A server that does not know a script by its digest gets all of it.
        for index, reply in enumerate(self.replies):
            if isinstance(reply, redis.exceptions.NoScriptError):
                link.send_packed_command([_packed(self._made[index])], check_health=False)
                self.replies[index] = _read_reply(link)

    def given_up(self, error: Exception) -> list[Any]:
        """Return the replies; `error` for what has none."""
        self._made += self._left
        return self.replies + [error] * (len(self._made) - len(self.replies))

    def _making(self) -> Iterator[tuple[Any, ...]]:
        for command in self._left:
            self._made.append(command)
            yield command


def checked(reply: Any) -> Any:
    """A reply that `exchange` gave, unless it is an error: that is raised."""
    if isinstance(reply, redis.RedisError):
        raise reply
    return reply


def _by_digest(command: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(script := command[1] if len(command) > 1 else None, Script):
        return ("EVALSHA", script.digest, *command[2:])
    return command


def _packed(command: tuple[Any, ...]) -> bytes:
    """A command as redis-py packs it, without its look at each word.

    Numbers are made texts here: hiredis does so by Python, where a signal's handler may raise, and does not look.
    """
    words: tuple[Any, ...] = tuple(str(word) if isinstance(word, int) else word for word in command)
    return pack_command(words)


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
