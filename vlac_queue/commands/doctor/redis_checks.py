"""Checks of Redis: whether it can be reached, what it says of itself, and whether that suits."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis

from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.faults import found_and_remedy
from vlac_queue.finding import Finding, release
from vlac_queue.texts import as_int, clean, size

#: Round trips of a ping that are timed.
_PINGS = 5
#: Seconds of a round trip from which on it is worth a warning: each step of a rollout takes a few.
_SLOW_S = 0.01
#: What makes a connection that of a user.
_CREDENTIALS = ("username", "password")
#: What CONFIG GET is asked for; never the password.
_SETTINGS = ("maxmemory", "maxmemory-policy", "save", "appendonly", "bind", "protected-mode")


@dataclass(frozen=True)
class Server:
    """What a Redis server says of itself."""

    info: Mapping[str, Any]  # the fields of INFO
    info_refused: str = ""  # why it was refused
    settings: Mapping[str, str] | None = None  # those that CONFIG GET told
    settings_refused: str = ""  # why they were refused
    round_trip_s: float = 0.0  # the median of a few
    open: bool = False  # whether it answers without a password
    seen_from: str = ""  # the address that the server sees this program under, where it tells

    def setting(self, name: str) -> str | None:
        """Return a setting by its name in CONFIG GET, else in INFO; None where neither tells."""
        told = (self.settings or {}).get(name, self.info.get(name.replace("-", "_")))
        return None if told is None else str(told)


def check_reachable(connection: redis.Redis, config: VlacConfig, user: str = "") -> Finding:
    """Check whether Redis answers; `user` is the one of `vlac-queue acl` for this host, or ""."""
    where = redact_url(config.redis_url)
    try:
        connection.ping()
    except redis.exceptions.RedisError as error:
        found, remedy = found_and_remedy(error, config.redis_url, user)
        return Finding("broken", clean(found, 1000), remedy)
    return Finding("ok", f"{where} answers")


def read_server(connection: redis.Redis) -> Server:
    """Return what the server says of itself; what it refuses to say is noted.

    Raises:
        redis.RedisError: it can't be reached any more.
    """
    info, info_refused = _told(connection.info)
    # Redis before 6.2 does not know it, and managed ones may refuse it: check_password does without.
    client, _ = _told(connection.client_info)
    # One at a time, as Redis 6 wants it.
    told = [_told(connection.config_get, name) for name in _SETTINGS]
    return Server(
        info=info,
        info_refused=info_refused,
        settings={name: value for settings, _ in told for name, value in settings.items()},
        settings_refused=told[-1][1],
        round_trip_s=statistics.median(_ping_s(connection) for _ in range(_PINGS)),
        open=_answers_anybody(connection),
        seen_from=str(client.get("addr", "")),
    )


def _told(ask: Callable[..., Any], *arguments: str) -> tuple[dict[str, Any], str]:
    """Return what the server says, and "", or nothing, and why it refuses."""
    try:
        return ask(*arguments), ""
    except redis.exceptions.ResponseError as error:
        return {}, clean(error)


def _ping_s(connection: redis.Redis) -> float:
    started = time.perf_counter()
    connection.ping()
    return time.perf_counter() - started


def _answers_anybody(connection: redis.Redis) -> bool:
    """Return whether the server answers without the URL's user and password."""
    pool = connection.connection_pool
    if not pool.connection_kwargs.get("password"):
        return True
    kwargs = {name: value for name, value in pool.connection_kwargs.items() if name not in _CREDENTIALS}
    stranger = redis.ConnectionPool(connection_class=pool.connection_class, **kwargs)
    with contextlib.closing(stranger), contextlib.suppress(redis.exceptions.RedisError):
        return bool(redis.Redis(connection_pool=stranger).ping())
    return False


def check_version(server: Server, config: VlacConfig) -> Finding:
    version = server.info.get("redis_version")
    if version is None:
        return Finding("skipped", f"INFO does not tell: {server.info_refused or 'no redis_version in it'}")
    found = f"Redis {clean(version)}"
    if release(str(version)) < (6, 2):
        return Finding("broken", f"{found}; 6.2 or newer is needed", "update it:\napt-get install redis-server")
    if str(server.info.get("cluster_enabled", "0")) == "1":
        found = f"{found} in cluster mode, whose keys lie apart"
        return Finding("broken", found, "start one without cluster-enabled")
    if server.info.get("role", "master") != "master":
        return Finding("broken", f"{found}, a replica: it can't be written to", "use the URL of its master")
    return Finding("ok", found)


def check_round_trip(server: Server, config: VlacConfig) -> Finding:
    found = f"{server.round_trip_s * 1000:.1f} ms"
    if server.round_trip_s < _SLOW_S:
        return Finding("ok", found)
    remedy = "run redis-server on the training host or in its network"
    return Finding("warning", f"{found}; each step of a rollout takes a few of them", remedy)


def check_memory(server: Server, config: VlacConfig) -> Finding:
    limit = server.setting("maxmemory")
    if limit is None:
        return Finding("skipped", f"maxmemory is not told: {server.settings_refused or server.info_refused}")
    frames = config.max_pending_bytes
    source = " (as INFO says)" if server.settings_refused else ""
    if as_int(limit) == 0:
        machine = as_int(server.info.get("total_system_memory"))
        found = f"no maxmemory{source}; open episodes may take {size(frames)} (max_pending_bytes)"
        if not machine or frames <= machine:
            return Finding("ok", found)
        remedy = f"export VLAC_MAX_PENDING_BYTES={machine // 2}"
        return Finding("warning", f"{found}, and the machine has {size(machine)}", remedy)
    used = as_int(server.info.get("used_memory"))
    found = f"{size(used)} of maxmemory {size(as_int(limit))} used{source}"
    if as_int(limit) < frames:
        enough = math.ceil(frames * 1.25 / (1 << 20))
        remedy = (
            f"{_redis_cli(config)} CONFIG SET maxmemory {enough}mb\nor for rollouts:\n"
            f"export VLAC_MAX_PENDING_BYTES={as_int(limit) * 4 // 5}"
        )
        return Finding("warning", f"{found}; less than max_pending_bytes, {size(frames)}", remedy)
    if used > 0.9 * as_int(limit):
        return Finding("warning", f"{found}: nearly full", "close episodes after use, or raise maxmemory")
    return Finding("ok", found)


def check_eviction(server: Server, config: VlacConfig) -> Finding:
    limit, policy = server.setting("maxmemory"), server.setting("maxmemory-policy")
    if limit is None or policy is None:
        refused = server.settings_refused or server.info_refused
        return Finding("skipped", f"maxmemory-policy is not told: {refused}")
    if policy == "noeviction" or as_int(limit) == 0:
        return Finding("ok", clean(policy) + ("" if policy == "noeviction" else ", and no maxmemory to act on"))
    remedy = f"{_redis_cli(config)} CONFIG SET maxmemory-policy noeviction"
    return Finding("broken", f"{clean(policy)}: when full, Redis throws away frames of open episodes", remedy)


def check_persistence(server: Server, config: VlacConfig) -> Finding:
    save, appends = server.setting("save"), server.setting("appendonly")
    if save is None and appends is None:
        if str(server.info.get("aof_enabled", "0")) != "1":
            return Finding("skipped", f"CONFIG GET is refused: {server.settings_refused}")
        appends = "yes"
    switches = {"snapshots (save)": "save ''"} if save else {}
    switches |= {"appendonly": "appendonly no"} if appends == "yes" else {}
    if not switches:
        return Finding("ok", "off")
    remedy = "\n".join(f"{_redis_cli(config)} CONFIG SET {switch}" for switch in switches.values())
    if save and server.info.get("rdb_last_bgsave_status", "ok") != "ok":
        return Finding("broken", "the last snapshot failed: Redis refuses writes until one succeeds", remedy)
    found = f"on: {', '.join(switches)}; it costs time and disk, and frames do not need it"
    return Finding("warning", found, remedy)


def check_password(server: Server, config: VlacConfig) -> Finding:
    if not server.open:
        return Finding("ok", "a password is asked for")
    exposed = Finding(
        "warning",
        "no password, and other hosts can reach it: whoever does can send jobs",
        f"{_redis_cli(config)} CONFIG SET requirepass PASSWORD\nthen:\nexport VLAC_REDIS_URL=redis://:PASSWORD@HOST:6379/0",
    )
    if server.seen_from and not _is_local(server.seen_from):
        return exposed
    bind, protected = server.setting("bind"), server.setting("protected-mode")
    if bind is None or protected is None:
        found = f"no password; whether others can reach it is refused: {server.settings_refused}"
        return Finding("skipped", found)
    addresses = [address.lstrip("-") for address in bind.split()]
    if addresses and all(_is_local(address) for address in addresses):
        return Finding("ok", f"no password, and only this host can reach it (bind {bind})")
    # Before Redis 7 a bind address of one's own switched the protection off.
    recent = release(str(server.info.get("redis_version", ""))) >= (7,)
    if protected == "yes" and (recent or not addresses or "*" in addresses):
        return Finding("ok", "no password, and protected mode keeps other hosts out")
    return exposed


#: The checks of a server that answers, by name.
SERVER_CHECKS: dict[str, Callable[[Server, VlacConfig], Finding]] = {
    "version": check_version,
    "round trip": check_round_trip,
    "memory": check_memory,
    "eviction": check_eviction,
    "persistence": check_persistence,
    "password": check_password,
}


def _is_local(address: str) -> bool:
    """Return whether an address, with or without a port, is a loopback address or a Unix socket."""
    if address.startswith("/") or address == "localhost":
        return True
    for text in (address, address.rpartition(":")[0].strip("[]")):
        try:
            return ipaddress.ip_address(text).is_loopback
        except ValueError:
            continue
    return False


def _redis_cli(config: VlacConfig) -> str:
    """Return the beginning of a redis-cli command for that server; it asks for the password itself."""
    url = urlsplit(config.redis_url)
    if url.scheme.endswith("+sentinel"):
        command = "redis-cli -h <the master's address>"
    elif url.scheme == "unix":
        command = f"redis-cli -s {url.path}"
    else:
        command = "redis-cli" + ("" if url.hostname in ("localhost", "127.0.0.1", None) else f" -h {url.hostname}")
        command += "" if url.port in (None, 6379) else f" -p {url.port}"
        command += " --tls" if url.scheme == "rediss" else ""
    return command + (" --askpass" if "***" in redact_url(config.redis_url) else "")
