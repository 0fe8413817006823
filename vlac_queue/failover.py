"""Connections that follow the master, when a replica takes its place; with Sentinel or without."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.sentinel import Sentinel

from vlac_queue.config import cut_by_password
from vlac_queue.faults import error_code

#: Schemes of a Redis behind Sentinel, without and with TLS: redis+sentinel://host:26379,host2:26379/mymaster/0
SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
#: Port of a sentinel that names none.
_SENTINEL_PORT = 26379
#: Seconds for one sentinel to answer; the next one is asked then.
_SENTINEL_TIMEOUT_S = 1.0
_UNUSABLE = (
    "it must be like redis://user:password@host:6379/0, unix:///path?db=0 or, for Sentinel, redis+sentinel://"
    "host:26379,host2:26379/mymaster/0, with options that redis-py knows. Write what is special in a password "
    "percent-encoded (urllib.parse.quote(password, safe='')), or leave it out and set VLAC_REDIS_PASSWORD_FILE."
)


class _Following:
    """A server that became a replica counts as away: the next command connects anew."""

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except redis.exceptions.ResponseError as error:
            # READONLY: to a write; UNBLOCKED: to a blocking read that waited when the roles changed.
            if error_code(error) not in ("READONLY", "UNBLOCKED"):
                raise
            self.disconnect()  # type: ignore[attr-defined]
            raise redis.exceptions.ConnectionError("the server is a replica now") from error


class TcpConnection(_Following, redis.Connection):
    """redis://"""


class TlsConnection(_Following, redis.SSLConnection):
    """rediss://"""


class UnixConnection(_Following, redis.UnixDomainSocketConnection):
    """unix://"""


class _Discovering(_Following):
    """Asks the sentinels who the master is whenever it connects.

    Its arguments are plain data, unlike those of redis-py's own pool for Sentinel, so that RQ can make the same
    connection again in another process.
    """

    def __init__(
        self,
        *,
        sentinels: tuple[tuple[str, int], ...],
        service: str,
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("host", None)
        kwargs.pop("port", None)
        super().__init__(redis_connect_func=self._greet, **kwargs)  # type: ignore[call-arg]
        options: Mapping[str, Any] = {
            "socket_timeout": _SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
            "username": sentinel_username,
            "password": sentinel_password,
        }
        if isinstance(self, redis.SSLConnection):
            tls = {name: value for name, value in kwargs.items() if name.startswith("ssl_")}
            options = {**options, **tls, "ssl": True}
        self._service = service
        self._sentinel = Sentinel(sentinels, sentinel_kwargs=options)

    def _connect(self) -> Any:
        self.host, self.port = self._sentinel.discover_master(self._service)
        return super()._connect()  # type: ignore[misc]

    def _greet(self, _connection: Any) -> None:
        self.on_connect()  # type: ignore[attr-defined]
        # A sentinel that was cut off may name a master of the past.
        self.send_command("ROLE")  # type: ignore[attr-defined]
        if self.read_response()[0] not in (b"master", "master"):
            self.disconnect()  # type: ignore[attr-defined]
            raise redis.exceptions.ConnectionError(f"{self.host}:{self.port} is no master of {self._service!r}")


class SentinelConnection(_Discovering, redis.Connection):
    """redis+sentinel://"""


class SentinelTlsConnection(_Discovering, redis.SSLConnection):
    """rediss+sentinel://; TLS to the sentinels as well."""


def following(connection_class: type) -> type:
    """Our class in place of redis-py's."""
    ours: dict[type, type] = {
        redis.Connection: TcpConnection,
        redis.SSLConnection: TlsConnection,
        redis.UnixDomainSocketConnection: UnixConnection,
    }
    return ours.get(connection_class, connection_class)


def connection_arguments(url: str) -> dict[str, Any]:
    """What a `redis.ConnectionPool` needs for `url`, `connection_class` among it.

    Raises:
        ValueError: the URL can't be used; the message holds nothing of it.
    """
    scheme = url.partition("://")[0]
    arguments: dict[str, Any] = {}
    # What urllib and redis-py say of a URL may be a piece of the password, which they took for a port, say.
    with contextlib.suppress(ValueError, TypeError, redis.RedisError):
        if not cut_by_password(url):
            arguments = (_sentinel_arguments if scheme in SENTINEL_SCHEMES else _arguments)(url)
            # Looks at all of them, and connects to nothing.
            made = arguments["connection_class"](**_without_class(arguments))
            str(getattr(made, "host", "")).encode("idna")
            return arguments
    raise ValueError(_UNUSABLE)


def _without_class(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "connection_class"}


def _arguments(url: str) -> dict[str, Any]:
    arguments: dict[str, Any] = redis.connection.parse_url(url)
    return {**arguments, "connection_class": following(arguments.get("connection_class", redis.Connection))}


def _sentinel_arguments(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not hosts or not service:
        raise ValueError("no hosts or no master")
    # The options of a URL of Redis are read as redis-py reads them.
    tls = parts.scheme.startswith("rediss")
    arguments: dict[str, Any] = redis.connection.parse_url(
        f"{'rediss' if tls else 'redis'}://{credentials}{'@' if credentials else ''}master/{database or 0}"
        + (f"?{parts.query}" if parts.query else "")
    )
    own = {name: values[0] for name, values in parse_qs(parts.query).items() if name.startswith("sentinel_")}
    return {
        **arguments,
        **own,
        "connection_class": SentinelTlsConnection if tls else SentinelConnection,
        "sentinels": tuple(_address(host) for host in hosts.split(",")),
        "service": unquote(service),
    }


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text.strip("[]"), _SENTINEL_PORT
    return host.strip("[]"), int(port)
