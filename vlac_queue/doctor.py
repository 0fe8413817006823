"""What is wrong with an installation: settings, Redis, workers, packages, weights and GPU.

Each check is a small function that returns a `Finding`; the tables of checks below say which there are.
Nothing is changed on Redis, and nothing heavy is imported: versions come from package metadata, and torch
is asked about the GPU in a process of its own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import ipaddress
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rich import box
from rich.table import Table
from rich.text import Text
from rq.registry import FailedJobRegistry
from rq.suspension import WORKERS_SUSPENDED

from vlac_queue.client import live_workers, load_frames
from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.errors import ConfigError, FrameError
from vlac_queue.keys import Keys
from vlac_queue.messages import PROTOCOL_VERSION

#: What a check comes to; see `Finding`.
State = Literal["ok", "warning", "broken", "skipped"]
#: Where the doctor runs: "gpu" also looks at what the critic vlac needs, "auto" does so for critic vlac.
Host = Literal["auto", "gpu", "rollout"]

#: Seconds until a silent Redis counts as away; somebody waits for the answer.
_TIMEOUT_S = 3.0
#: Round trips of a ping that are timed.
_PINGS = 5
#: Seconds of a round trip from which on it is worth a warning: each step of a rollout takes a few.
_SLOW_S = 0.01
#: Seconds that torch may take to be imported and to look at a GPU; from a cold disk it is slow.
_PROBE_S = 90.0
#: Workers that are told one by one.
_WORKERS_SHOWN = 8
#: Most characters of a text from Redis or another program.
_MAX_TEXT = 200
#: Most bytes of a failed job's reason that are unpacked.
_MAX_REASON_BYTES = 65_536
#: Bytes that VLAC's weights take, where their files can't be looked at.
_VLAC_BYTES = 5 << 30
#: Columns from which on the table has one for what to do; below, it stands under what was found.
_WIDE = 120

#: What CONFIG GET is asked for: one at a time, as Redis 6 wants it, and never the password.
_SETTINGS = ("maxmemory", "maxmemory-policy", "save", "appendonly", "bind", "protected-mode")
#: The oldest version that fits, and the first that does not: what both sides of the queue need.
_QUEUE_PACKAGES: dict[str, tuple[str, str]] = {
    "rq": ("3", "4"),
    "redis": ("5.0", ""),
    "numpy": ("1.26", ""),
    "lz4": ("4.3", ""),
}
#: Modules that evo_vlac needs and does not declare, and what installs each.
_COMPANIONS = {
    "loguru": "loguru",
    "cv2": "'opencv-python-headless<4.12'",
    "torchvision": "torchvision",
    "timm": "timm",
}
_INSTALL_PT = (
    "pip install torch ms-swift==3.3.0 transformers==4.51.3 'pyarrow<22' loguru 'opencv-python-headless<4.12' timm"
)
_INSTALL_VLLM = "pip install 'vllm>=0.9' ms-swift==3.12.6 loguru 'opencv-python-headless<4.12'"
_INSTALL_EVO_VLAC = "git clone https://github.com/InternRobotics/VLAC && pip install --no-deps -e VLAC"

# Asks torch about one GPU. In a process of its own: an import that crashes takes nothing along, and the
# memory that CUDA takes for itself is given back at once.
_PROBE = """
import json, sys, torch
index = int(sys.argv[1])
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
found = {"build": torch.version.cuda, "count": count}
if index < count:
    free, total = torch.cuda.mem_get_info(index)
    found.update(name=torch.cuda.get_device_name(index), free=free, total=total)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        state: "broken" does not work, "warning" works and may not be meant, "skipped" could not be looked at.
        found: what there is, or for "skipped" why nothing could be found out; never with a password.
        remedy: what to do, or "".
        check: the check's name.
    """

    state: State
    found: str
    remedy: str = ""
    check: str = ""


@dataclass(frozen=True)
class Server:
    """What a Redis server says of itself.

    Attributes:
        info: the fields of INFO; empty where refused.
        info_refused: why it was refused, or "".
        settings: those that CONFIG GET told.
        settings_refused: why they were refused, or "".
        round_trip_s: the median of a few.
        open: whether it answers without a password.
        seen_from: the address that the server sees this program under, or "" where it does not tell.
    """

    info: Mapping[str, Any]
    info_refused: str = ""
    settings: Mapping[str, str] | None = None
    settings_refused: str = ""
    round_trip_s: float = 0.0
    open: bool = False
    seen_from: str = ""

    def setting(self, name: str) -> str | None:
        """A setting by its name in CONFIG GET, else in INFO; None where neither tells."""
        told = (self.settings or {}).get(name, self.info.get(name.replace("-", "_")))
        return None if told is None else str(told)


@dataclass(frozen=True)
class CriticListener:
    """A CriticWorker, as it describes itself.

    Attributes:
        parent: the plain RQ worker that it lives in, or "".
        protocol: the protocol's version that it speaks, or "" where it does not tell.
    """

    name: str
    critic: str
    engine: str
    model: str
    state: str
    parent: str
    protocol: str
    accelerator_bytes: int


@dataclass(frozen=True)
class QueueState:
    """The queue and who serves it.

    Attributes:
        plain: names of RQ workers that listen and neither are nor hold a CriticWorker.
        stranded: dead worker -> jobs that it had taken.
        waiting: jobs that no worker has taken.
        suspended: whether `rq suspend` holds all workers.
        failed: jobs in RQ's FailedJobRegistry.
        last_failure: the reason of the last of them, or "".
    """

    critics: tuple[CriticListener, ...] = ()
    plain: tuple[str, ...] = ()
    stranded: Mapping[str, int] | None = None
    waiting: int = 0
    suspended: bool = False
    failed: int = 0
    last_failure: str = ""


def examine(
    redis_url: str | None = None,
    queue: str | None = None,
    critic: str | None = None,
    host: Host = "auto",
    environ: Mapping[str, str] = os.environ,
) -> list[Finding]:
    """Makes all checks.

    Args:
        redis_url, queue, critic: instead of those of the environment.
        host: see `Host`.
        environ: where the settings come from.
    """
    config, settings = read_settings(redis_url, queue, critic, environ)
    findings = [replace(settings, check="settings")]
    packages = {"packages": check_queue_packages}
    if config is None:
        reason = "the settings can't be read"
        checks = [*_SERVER_CHECKS, *_queue_checks(host), *_HOST_CHECKS]
        return [*findings, *_not_made(["Redis", *checks], reason), *_made(packages)]
    if config.reference:
        findings += _made({"reference": check_reference}, config)
    findings += _examine_redis(config, host) + _made(packages)
    if host == "gpu" or (host == "auto" and config.critic == "vlac"):
        return findings + _made(_HOST_CHECKS, config)
    why = (
        "--host rollout" if host == "rollout" else f"the critic is {config.critic}; --host gpu looks all the same"
    )
    return findings + _not_made(["VLAC on this host"], why)


def _examine_redis(config: VlacConfig, host: Host) -> list[Finding]:
    queue_checks = _queue_checks(host)
    try:
        connection = redis.Redis.from_url(
            config.redis_url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        unusable = Finding("broken", f"the URL can't be used: {_clean(error)}", _URL_REMEDY, check="Redis")
        return [unusable, *_not_made([*_SERVER_CHECKS, *queue_checks], "the URL can't be used")]
    with connection:
        reached = check_reachable(connection, config)
        findings = [replace(reached, check="Redis")]
        if reached.state == "broken":
            return findings + _not_made([*_SERVER_CHECKS, *queue_checks], "Redis can't be used")
        try:
            findings += _made(_SERVER_CHECKS, read_server(connection), config)
            findings += _made(queue_checks, read_queue(connection, Keys(config.queue)), config)
        except redis.exceptions.RedisError as error:
            made = {finding.check for finding in findings}
            left = [name for name in [*_SERVER_CHECKS, *queue_checks] if name not in made]
            findings += [_not_read(error, config), *_not_made(left, "Redis could not be read")]
    return findings


def _not_read(error: redis.exceptions.RedisError, config: VlacConfig) -> Finding:
    """What the doctor reads in Redis, rollouts and workers read as well."""
    if isinstance(error, redis.exceptions.ResponseError):
        remedy = f"let this user use the keys ~vlac:{config.queue}:* and ~rq:* (redis-cli ACL SETUSER)"
        return Finding("broken", f"Redis refused: {_clean(error)}", remedy, check="reading")
    remedy = "look at redis-server's log, and at the network between"
    return Finding("broken", f"Redis went away meanwhile: {_clean(error)}", remedy, check="reading")


def _made(checks: Mapping[str, Callable[..., Finding]], *subjects: Any) -> list[Finding]:
    return [replace(check(*subjects), check=name) for name, check in checks.items()]


def _not_made(names: Sequence[str], reason: str) -> list[Finding]:
    return [Finding("skipped", reason, check=name) for name in names]


# Settings.


def read_settings(
    redis_url: str | None, queue: str | None, critic: str | None, environ: Mapping[str, str]
) -> tuple[VlacConfig | None, Finding]:
    """The settings of the environment, or None where they are wrong; and what is to be said of them."""
    ours, rqs = environ.get("VLAC_REDIS_URL"), environ.get("RQ_REDIS_URL")
    try:
        config = VlacConfig.from_env(
            environ, redis_url=redis_url or (rqs if ours is None else None), queue=queue, critic=critic
        )
    except ConfigError as error:
        return None, Finding("broken", str(error), "correct that variable: export it anew, or unset it")
    found = f"queue {config.queue} at {redact_url(config.redis_url)}, critic {config.critic}"
    if redis_url is None and ours and rqs and ours != rqs:
        return config, Finding(
            "warning",
            f"{found}; but `rq worker` goes to {redact_url(rqs)}, since RQ_REDIS_URL and VLAC_REDIS_URL differ",
            "unset RQ_REDIS_URL, or export the same URL in both",
        )
    return config, Finding("ok", found)


def check_reference(config: VlacConfig) -> Finding:
    try:
        frames = load_frames(Path(config.reference or ""))
    except FrameError as error:
        return Finding("broken", _clean(error), "export VLAC_REFERENCE=FILE with the frames of a successful run")
    return Finding("ok", f"{_many(len(frames), 'frame')} of {frames.shape[2]}x{frames.shape[1]}")


# Redis.

_URL_REMEDY = "export VLAC_REDIS_URL=redis://:PASSWORD@HOST:6379/0"


def check_reachable(connection: redis.Redis, config: VlacConfig) -> Finding:
    where = redact_url(config.redis_url)
    try:
        connection.ping()
    except redis.exceptions.AuthenticationError as error:
        if not _has_password(connection):
            return Finding("broken", f"{where} asks for a password, and the URL has none", _URL_REMEDY)
        return Finding("broken", f"{where} refused the password: {_clean(error)}", _URL_REMEDY)
    except redis.exceptions.RedisError as error:
        if "protected mode" in str(error):
            remedy = "set a password there: redis-cli CONFIG SET requirepass PASSWORD; and put it into the URL"
            return Finding("broken", f"{where} is in protected mode: it talks to its own host only", remedy)
        remedy = "start redis-server there, or correct the URL: export VLAC_REDIS_URL=redis://HOST:6379/0"
        return Finding("broken", f"{where} can't be reached: {_clean(error)}", remedy)
    return Finding("ok", f"{where} answers")


def read_server(connection: redis.Redis) -> Server:
    """What the server says of itself; what it refuses to say is noted.

    Raises:
        redis.RedisError: it can't be reached any more.
    """
    info: Any = {}
    client: Any = {}
    settings: Any = {}
    info_refused = settings_refused = ""
    try:
        info = connection.info()
    except redis.exceptions.ResponseError as error:
        info_refused = _clean(error)
    # Redis before 6.2 does not know it, and managed ones may refuse it: check_password does without.
    with contextlib.suppress(redis.exceptions.ResponseError):
        client = connection.client_info()
    try:
        for name in _SETTINGS:
            settings |= connection.config_get(name)
    except redis.exceptions.ResponseError as error:
        settings_refused = _clean(error)
    return Server(
        info=info,
        info_refused=info_refused,
        settings=settings,
        settings_refused=settings_refused,
        round_trip_s=statistics.median(_ping_s(connection) for _ in range(_PINGS)),
        open=_answers_anybody(connection),
        seen_from=str(client.get("addr", "")),
    )


def _ping_s(connection: redis.Redis) -> float:
    started = time.perf_counter()
    connection.ping()
    return time.perf_counter() - started


def _has_password(connection: redis.Redis) -> bool:
    return bool(connection.connection_pool.connection_kwargs.get("password"))


def _answers_anybody(connection: redis.Redis) -> bool:
    """Whether the server answers without the URL's user and password."""
    if not _has_password(connection):
        return True
    pool = connection.connection_pool
    kwargs = {
        name: value for name, value in pool.connection_kwargs.items() if name not in ("username", "password")
    }
    anonymous = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **kwargs))
    try:
        return bool(anonymous.ping())
    except redis.exceptions.RedisError:
        return False
    finally:
        anonymous.connection_pool.disconnect()


def check_version(server: Server, config: VlacConfig) -> Finding:
    version = server.info.get("redis_version")
    if version is None:
        return Finding("skipped", f"INFO does not tell: {server.info_refused or 'no redis_version in it'}")
    found = f"Redis {_clean(version)}"
    if _numbers(str(version)) < (6, 2):
        return Finding("broken", f"{found}; 6.2 or newer is needed", "update it: apt-get install redis-server")
    if str(server.info.get("cluster_enabled", "0")) == "1":
        return Finding(
            "broken", f"{found} in cluster mode, whose keys lie apart", "start one without cluster-enabled"
        )
    if server.info.get("role", "master") != "master":
        return Finding("broken", f"{found}, a replica: it can't be written to", "use the URL of its master")
    return Finding("ok", found)


def check_round_trip(server: Server, config: VlacConfig) -> Finding:
    found = f"{server.round_trip_s * 1000:.1f} ms"
    if server.round_trip_s < _SLOW_S:
        return Finding("ok", found)
    return Finding(
        "warning",
        f"{found}; each step of a rollout takes a few of them",
        "run redis-server on the training host or in its network",
    )


def check_memory(server: Server, config: VlacConfig) -> Finding:
    limit = server.setting("maxmemory")
    if limit is None:
        return Finding("skipped", f"maxmemory is not told: {server.settings_refused or server.info_refused}")
    frames = config.max_pending_bytes
    source = " (as INFO says)" if server.settings_refused else ""
    if _number(limit) == 0:
        machine = _number(server.info.get("total_system_memory"))
        found = f"no maxmemory{source}; open episodes may take {_size(frames)} (max_pending_bytes)"
        if not machine or frames <= machine:
            return Finding("ok", found)
        return Finding(
            "warning",
            f"{found}, and the machine has {_size(machine)}",
            f"export VLAC_MAX_PENDING_BYTES={machine // 2}",
        )
    used = _number(server.info.get("used_memory"))
    found = f"{_size(used)} of maxmemory {_size(_number(limit))} used{source}"
    enough = math.ceil(frames * 1.25 / (1 << 20))
    mend = f"{_redis_cli(config)} CONFIG SET maxmemory {enough}mb"
    if _number(limit) < frames:
        lower = f"export VLAC_MAX_PENDING_BYTES={_number(limit) * 4 // 5}"
        return Finding(
            "warning",
            f"{found}; less than max_pending_bytes, {_size(frames)}",
            f"{mend}, or for rollouts: {lower}",
        )
    if used > 0.9 * _number(limit):
        return Finding("warning", f"{found}: nearly full", "close episodes after use, or raise maxmemory")
    return Finding("ok", found)


def check_eviction(server: Server, config: VlacConfig) -> Finding:
    limit, policy = server.setting("maxmemory"), server.setting("maxmemory-policy")
    if limit is None or policy is None:
        return Finding(
            "skipped", f"maxmemory-policy is not told: {server.settings_refused or server.info_refused}"
        )
    if policy == "noeviction" or _number(limit) == 0:
        return Finding("ok", _clean(policy) + ("" if policy == "noeviction" else ", and no maxmemory to act on"))
    return Finding(
        "broken",
        f"{_clean(policy)}: when full, Redis throws away frames of open episodes",
        f"{_redis_cli(config)} CONFIG SET maxmemory-policy noeviction",
    )


def check_persistence(server: Server, config: VlacConfig) -> Finding:
    save, appends = server.setting("save"), server.setting("appendonly")
    if save is None and appends is None:
        appends = "yes" if str(server.info.get("aof_enabled", "0")) == "1" else None
        if appends is None:
            return Finding("skipped", f"CONFIG GET is refused: {server.settings_refused}")
    kinds = [text for text, on in (("snapshots (save)", save), ("appendonly", appends == "yes")) if on]
    if not kinds:
        return Finding("ok", "off")
    cli = _redis_cli(config)
    switches = [text for text, on in (("save ''", save), ("appendonly no", appends == "yes")) if on]
    remedy = "; ".join(f"{cli} CONFIG SET {switch}" for switch in switches)
    if save and server.info.get("rdb_last_bgsave_status", "ok") != "ok":
        return Finding("broken", "the last snapshot failed: Redis refuses writes until one succeeds", remedy)
    return Finding("warning", f"on: {', '.join(kinds)}; it costs time and disk, and frames do not need it", remedy)


def check_password(server: Server, config: VlacConfig) -> Finding:
    if not server.open:
        return Finding("ok", "a password is asked for")
    exposed = Finding(
        "warning",
        "no password, and other hosts can reach it: whoever does can send jobs",
        f"{_redis_cli(config)} CONFIG SET requirepass PASSWORD; then VLAC_REDIS_URL=redis://:PASSWORD@HOST:6379/0",
    )
    if server.seen_from and not _is_local(server.seen_from):
        return exposed
    bind, protected = server.setting("bind"), server.setting("protected-mode")
    if bind is None or protected is None:
        return Finding(
            "skipped", f"no password; whether others can reach it is refused: {server.settings_refused}"
        )
    addresses = [address.lstrip("-") for address in bind.split()]
    if addresses and all(_is_local(address) for address in addresses):
        return Finding("ok", f"no password, and only this host can reach it (bind {bind})")
    # Before Redis 7 a bind address of one's own switched the protection off.
    listens_to_all = not addresses or "*" in addresses
    recent = _numbers(str(server.info.get("redis_version", ""))) >= (7,)
    if protected == "yes" and (recent or listens_to_all):
        return Finding("ok", "no password, and protected mode keeps other hosts out")
    return exposed


def _is_local(address: str) -> bool:
    """Whether an address, with or without a port, is a loopback address or a Unix socket."""
    if address.startswith("/") or address == "localhost":
        return True
    for text in (address, address.rpartition(":")[0].strip("[]")):
        try:
            return ipaddress.ip_address(text).is_loopback
        except ValueError:
            continue
    return False


def _redis_cli(config: VlacConfig) -> str:
    """The beginning of a redis-cli command for that server; it asks for the password itself."""
    url = urlsplit(config.redis_url)
    if url.scheme == "unix":
        command = f"redis-cli -s {url.path}"
    else:
        command = "redis-cli" + ("" if url.hostname in ("localhost", "127.0.0.1", None) else f" -h {url.hostname}")
        command += "" if url.port in (None, 6379) else f" -p {url.port}"
        command += " --tls" if url.scheme == "rediss" else ""
    return command + (" --askpass" if "***" in redact_url(config.redis_url) else "")


# The queue.


def read_queue(connection: redis.Redis, keys: Keys) -> QueueState:
    """The queue and who serves it.

    Raises:
        redis.RedisError: Redis can't be reached, or refuses.
    """
    registry = FailedJobRegistry.key_template.format(keys.queue)
    with connection.pipeline(transaction=False) as pipeline:
        pipeline.smembers(keys.workers)
        pipeline.llen(keys.rq_queue)
        pipeline.exists(WORKERS_SUSPENDED)
        # The registry's own count would clean it up, and so change it.
        pipeline.zcard(registry)
        pipeline.zrange(registry, -1, -1)
        members, waiting, suspended, failed, last = pipeline.execute()
    names = sorted(name.decode(errors="replace") for name in members)
    with connection.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.hgetall(keys.worker(name))
            pipeline.llen(keys.claims(name))
        pipeline.hget(keys.rq_job(last[0].decode(errors="replace") if last else ""), "exc_info")
        *replies, reason = pipeline.execute()
    described = list(zip(names, replies[0::2], replies[1::2], strict=True))
    critics = tuple(_listener(name, fields) for name, fields, _ in described if fields)
    ours = {critic.name for critic in critics} | {critic.parent for critic in critics}
    return QueueState(
        critics=critics,
        plain=tuple(_clean(name) for name in live_workers(connection, keys) if _clean(name) not in ours),
        stranded={_clean(name): claims for name, fields, claims in described if claims and not fields},
        waiting=waiting,
        suspended=bool(suspended),
        failed=failed,
        last_failure=_reason(reason),
    )


def _listener(name: str, fields: Mapping[bytes, bytes]) -> CriticListener:
    texts = {
        key: _clean(fields.get(key.encode(), b"").decode(errors="replace"))
        for key in ("critic", "engine", "model", "state", "parent", "protocol")
    }
    memory = _number(fields.get(b"accelerator_bytes", b"").decode(errors="replace"))
    return CriticListener(name=_clean(name), accelerator_bytes=memory, **texts)


def _reason(packed: bytes | None) -> str:
    """Why a job failed, in a line: RQ keeps the traceback compressed, and its last line tells."""
    if not packed:
        return ""
    try:
        # Anybody may have written it: a little of it is enough.
        text = zlib.decompressobj().decompress(packed, _MAX_REASON_BYTES).decode(errors="replace")
    except zlib.error:
        return ""
    lines = text.strip().splitlines()
    return _clean(lines[-1]) if lines else ""


def check_workers(queue: QueueState, config: VlacConfig, *, before_start: bool = False) -> Finding:
    """Who listens; that nobody does is fine where this host is about to start a worker."""
    start = (
        f"RQ_REDIS_URL={redact_url(config.redis_url)} RQ_WORKER_CLASS=workers.CriticWorker "
        f"rq worker {config.queue} --with-scheduler"
    )
    if not queue.critics and not queue.plain:
        return Finding(
            "warning" if before_start else "broken",
            f"no worker listens on {config.queue!r}",
            f"start one {'here' if before_start else 'on a GPU host'}: {start}",
        )
    lines = [_told(critic) for critic in queue.critics]
    lines += [f"{name}: plain RQ worker, loads a critic with its first job" for name in queue.plain]
    if len(lines) > _WORKERS_SHOWN:
        lines[_WORKERS_SHOWN:] = [f"and {len(lines) - _WORKERS_SHOWN} more"]
    return Finding(
        "ok", "\n".join([f"{_many(len(queue.critics), 'CriticWorker')}, {len(queue.plain)} plain", *lines])
    )


def _told(critic: CriticListener) -> str:
    parts = [f"{critic.critic} ({critic.engine})" if critic.engine else critic.critic, critic.model, critic.state]
    if critic.accelerator_bytes:
        parts.append(f"{_size(critic.accelerator_bytes)} of GPU memory")
    if critic.parent:
        parts.append(f"inside {critic.parent}")
    return f"{critic.name}: {', '.join(part for part in parts if part)}"


def check_same_critic(queue: QueueState, config: VlacConfig) -> Finding:
    if not queue.critics:
        return Finding("skipped", "no CriticWorker listens")
    critics = sorted({critic.critic for critic in queue.critics})
    if len(critics) > 1:
        return Finding(
            "broken",
            f"workers answer with {' and '.join(critics)}, whichever takes the job",
            "end those that are wrong, or give each critic a queue of its own (VLAC_QUEUE)",
        )
    models = sorted({f"{critic.model} {critic.engine}".strip() for critic in queue.critics})
    if len(models) > 1:
        return Finding(
            "warning",
            f"{critics[0]}, with {' and '.join(models)}: answers may differ",
            "start all workers with one VLAC_MODEL_PATH and one VLAC_ENGINE",
        )
    if critics != [config.critic]:
        return Finding(
            "warning",
            f"workers run {critics[0]}, the settings here say {config.critic}",
            f"if the workers are right: export VLAC_CRITIC={critics[0]}; else start them with {config.critic}",
        )
    return Finding("ok", critics[0])


def check_protocol(queue: QueueState, config: VlacConfig) -> Finding:
    told = sorted({critic.protocol for critic in queue.critics if critic.protocol})
    others = [version for version in told if version != str(PROTOCOL_VERSION)]
    if others:
        return Finding(
            "broken",
            f"workers speak version {' and '.join(others)}, this host {PROTOCOL_VERSION}",
            "install the same version on all hosts: pip install -U vlac-queue",
        )
    silent = [critic.name for critic in queue.critics if not critic.protocol]
    if silent or not queue.critics:
        return Finding("skipped", f"not told by {', '.join(silent)}" if silent else "no CriticWorker listens")
    return Finding("ok", f"version {PROTOCOL_VERSION}")


def check_dead_workers(queue: QueueState, config: VlacConfig) -> Finding:
    if not queue.stranded:
        return Finding("ok", "none holds a job")
    found = ", ".join(f"{name} holds {_many(count, 'job')}" for name, count in queue.stranded.items())
    if queue.critics:
        return Finding("warning", found, "nothing: a live worker gives them back within 10 s; look again then")
    return Finding("warning", found, "start a CriticWorker: it gives them back to the queue")


def check_waiting(queue: QueueState, config: VlacConfig) -> Finding:
    found = f"{_many(queue.waiting, 'job')} waiting"
    if queue.suspended:
        return Finding(
            "broken",
            f"{found}, and `rq suspend` holds all workers",
            f"rq resume --url {redact_url(config.redis_url)}",
        )
    return Finding("ok", found)


def check_failed(queue: QueueState, config: VlacConfig) -> Finding:
    if not queue.failed:
        return Finding("ok", "none")
    found = f"{queue.failed} failed or rejected" + (
        f"; the last: {queue.last_failure}" if queue.last_failure else ""
    )
    return Finding("warning", found, "see the workers' logs for more; RQ forgets these jobs within an hour")


# This host.


def check_queue_packages() -> Finding:
    found, needed = [], []
    for name, (least, below) in _QUEUE_PACKAGES.items():
        version = _version(name)
        found.append(f"{name} {version or 'missing'}")
        if version is None or not _fits(version, least, below):
            needed.append(f"'{name}>={least}{',<' + below if below else ''}'")
    if needed:
        return Finding("broken", ", ".join(found), f"pip install {' '.join(needed)}")
    return Finding("ok", ", ".join(found))


def check_torch(config: VlacConfig) -> Finding:
    torch, vision = _version("torch"), _version("torchvision")
    if torch is None:
        return Finding(
            "broken", "torch is not installed", "pip install torch torchvision, of one release and for your CUDA"
        )
    found = f"torch {torch}" + (f", torchvision {vision}" if vision else "")
    if _numbers(torch) < (2, 5):
        return Finding("warning", f"{found}: older than 2.5, the oldest that is meant", "pip install 'torch>=2.5'")
    numbers = _numbers(torch)
    # torchvision 0.20 is built for torch 2.5, 0.21 for 2.6, and so on; it does not load with another.
    fitting = (0, numbers[1] + 15) if numbers[0] == 2 and len(numbers) > 1 else None
    if vision and fitting and _numbers(vision)[:2] != fitting:
        return Finding("warning", f"{found}: not of one release", f"pip install 'torchvision==0.{fitting[1]}.*'")
    return Finding("ok", found)


def check_transformers(config: VlacConfig) -> Finding:
    version = _version("transformers")
    if version is None:
        return Finding("broken", "transformers is not installed", "pip install transformers==4.51.3")
    if _numbers(version) >= (5,):
        return Finding("broken", f"{version}; ms-swift 3 needs 4.x", "pip install transformers==4.51.3")
    if config.engine == "pt" and version != "4.51.3":
        return Finding("warning", f"{version}; VLAC was tried with 4.51.3", "pip install transformers==4.51.3")
    return Finding("ok", version)


def check_swift(config: VlacConfig) -> Finding:
    swift, numpy, arrow = _version("ms-swift"), _version("numpy"), _version("pyarrow")
    if swift is None:
        return Finding("broken", "ms-swift is not installed", _install(config))
    numbers = _numbers(swift)
    if numbers >= (3, 13):
        return Finding("broken", f"{swift} can't run evo_vlac, which needs swift.llm of 3.x", _install(config))
    if config.engine == "vllm" and numbers < (3, 12, 6):
        return Finding("broken", f"{swift} fits no vLLM of today and loses rows that fail", _INSTALL_VLLM)
    if numbers < (3, 3):
        return Finding("warning", f"{swift}: older than 3.3, the oldest that was tried", _install(config))
    if numbers < (3, 4) and numpy and _numbers(numpy) >= (2,):
        return Finding(
            "broken", f"{swift} needs numpy 1, and numpy {numpy} is here", "pip install 'numpy<2' 'pyarrow<22'"
        )
    if numpy and arrow and _numbers(numpy) < (2,) and _numbers(arrow) >= (22,):
        return Finding("broken", f"{swift}, but pyarrow {arrow} refuses numpy {numpy}", "pip install 'pyarrow<22'")
    return Finding("ok", f"{swift}, with numpy {numpy}")


def check_engine(config: VlacConfig) -> Finding:
    """The engine's own packages: vLLM, or what makes torch's attention fast."""
    if config.engine == "vllm":
        version = _version("vllm")
        if version is None or _numbers(version) < (0, 9):
            return Finding(
                "broken", f"vllm {version or 'is not installed'}; 0.9 or newer is needed", _INSTALL_VLLM
            )
        return Finding("ok", f"vllm {version}")
    flash = _version("flash_attn")
    if flash:
        return Finding("ok", f"pt, flash_attn {flash}")
    if config.attention == "flash_attn":
        return Finding(
            "broken",
            "VLAC_ATTENTION=flash_attn, and flash_attn is not installed",
            "pip install flash-attn --no-build-isolation, or export VLAC_ATTENTION=auto",
        )
    return Finding("ok", "pt, no flash_attn: eager attention, which is slower and takes more memory")


def check_evo_vlac(config: VlacConfig) -> Finding:
    folder = _module_folder("evo_vlac")
    if folder is None:
        return Finding("broken", "evo_vlac (VLAC's own code) is not installed", _INSTALL_EVO_VLAC)
    if not (folder / "utils" / "model_utils.py").is_file():
        return Finding(
            "broken",
            f"{folder} lacks utils/model_utils.py, which its package leaves out",
            "install its checkout editable: pip install --no-deps -e VLAC",
        )
    needed = [name for name in _COMPANIONS if not (name == "timm" and config.engine == "vllm")]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        install = "pip install " + " ".join(_COMPANIONS[name] for name in missing)
        return Finding("broken", f"evo_vlac is here, {', '.join(missing)} missing", install)
    return Finding("ok", f"{folder}, with {', '.join(needed)}")


def check_weights(config: VlacConfig) -> Finding:
    path = config.model_path
    if not path:
        return Finding(
            "broken",
            "VLAC_MODEL_PATH is not set",
            "huggingface-cli download InternRobotics/VLAC --local-dir VLAC-weights; "
            "export VLAC_MODEL_PATH=$PWD/VLAC-weights",
        )
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.count("/") == 1 and not path.startswith((".", "~", os.sep)):
            return Finding("skipped", f"{path} is a name on a hub: ms-swift downloads it at the worker's start")
        return Finding("broken", f"{path} is no folder", "export VLAC_MODEL_PATH=FOLDER with VLAC's weights")
    again = f"huggingface-cli download InternRobotics/VLAC --local-dir {path}"
    try:
        missing, damaged = _missing_files(folder), [file.name for file in _weight_files(folder) if _is_cut(file)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return Finding("broken", f"{path}: its JSON files can't be read ({_clean(error)})", again)
    if missing:
        return Finding("broken", f"{path} lacks {', '.join(missing)}", again)
    if damaged:
        return Finding("broken", f"{path}: incomplete: {', '.join(damaged)}", again)
    files = _weight_files(folder)
    return Finding(
        "ok", f"{path}: {_many(len(files), 'file')} of weights, {_size(_weight_bytes(folder))}, tokenizer"
    )


def _missing_files(folder: Path) -> list[str]:
    """Files that the folder of a checkpoint should have and has not."""
    if not (folder / "config.json").is_file():
        return ["config.json"]
    needed = set()
    for index in folder.glob("*.index.json"):
        needed |= set(json.loads(index.read_text())["weight_map"].values())
    # The model's own code comes with its weights; a name with -- is code of another repository.
    auto_map = json.loads((folder / "config.json").read_text()).get("auto_map", {})
    needed |= {f"{name.split('.')[0]}.py" for name in auto_map.values() if "--" not in name}
    missing = sorted(name for name in needed if not (folder / name).is_file())
    if not missing and not _weight_files(folder):
        missing.append("weights (*.safetensors or *.bin)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("a tokenizer (tokenizer.model or tokenizer.json)")
    if not (folder / "tokenizer_config.json").is_file():
        missing.append("tokenizer_config.json")
    return missing


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _weight_files(folder))


def _is_cut(path: Path) -> bool:
    """Whether a file of weights is empty, a Git LFS pointer, or shorter than its own header says."""
    with path.open("rb") as file:
        begin = file.read(8)
        if len(begin) < 8 or begin == b"version ":
            return True
        if path.suffix != ".safetensors":
            return False
        # Its format: the header's length, the header as JSON, the data; offsets count from the data's begin.
        length = int.from_bytes(begin, "little")
        size = path.stat().st_size
        if 8 + length > size:
            return True
        tensors = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0) > size


def check_gpu(config: VlacConfig) -> Finding:
    device = config.device
    if device == "cpu":
        return Finding("ok", "VLAC_DEVICE=cpu: VLAC runs on the CPU, which is slow")
    if _version("torch") is None:
        return Finding("skipped", "torch, which would tell, is not installed")
    index = int(device.partition(":")[2] or 0)
    try:
        gpu = _probe_gpu(index)
    except (OSError, RuntimeError, ValueError, LookupError, subprocess.TimeoutExpired) as error:
        return Finding("broken", f"torch can't look at the GPU: {_clean(error)}", _install(config))
    if "total" not in gpu:
        return _no_gpu(gpu["build"], int(gpu["count"]), device)
    return judge_gpu(config, _clean(gpu["name"]), int(gpu["free"]), int(gpu["total"]))


def _no_gpu(build: str | None, count: int, device: str) -> Finding:
    if count:
        seen = f"torch sees {_many(count, 'GPU')}, and VLAC_DEVICE={device}"
        return Finding("broken", seen, "export VLAC_DEVICE=auto, or look at CUDA_VISIBLE_DEVICES")
    return Finding(
        "broken",
        f"torch (a build {f'for CUDA {build}' if build else 'without CUDA'}) sees no GPU",
        "look at nvidia-smi and CUDA_VISIBLE_DEVICES; pip install torch in a build for your CUDA; "
        "or, slow: export VLAC_DEVICE=cpu",
    )


def judge_gpu(config: VlacConfig, name: str, free: int, total: int) -> Finding:
    """Whether a GPU's memory (bytes) does for the weights and `gpu_memory_fraction`."""
    folder = Path(config.model_path).expanduser()
    weights = _weight_bytes(folder) if config.model_path and folder.is_dir() else _VLAC_BYTES
    allowed = int(total * config.gpu_memory_fraction)
    found = f"{name}, {_size(free)} of {_size(total)} free; the critic may use {_size(allowed)}"
    if allowed < weights:
        # A third more, for the images of a call.
        fraction = math.ceil(weights * 4 / 3 / total * 20) / 20
        if fraction > 1:
            return Finding("broken", f"{found}; its weights take {_size(weights)}", "use a GPU with more memory")
        return Finding(
            "broken",
            f"{found}, its weights take {_size(weights)}",
            f"export VLAC_GPU_MEMORY_FRACTION={fraction:g}",
        )
    if free < allowed:
        return Finding(
            "warning",
            f"{found}; others hold the rest (a running critic worker counts)",
            "look at nvidia-smi; end what is not needed, or use another GPU: export CUDA_VISIBLE_DEVICES=N",
        )
    return Finding("ok", found)


def _probe_gpu(index: int) -> dict[str, Any]:
    """What torch sees.

    Raises:
        RuntimeError: torch can't be imported, or fails; the last line that it printed.
        subprocess.TimeoutExpired: it takes too long.
    """
    command = [sys.executable, "-c", _PROBE, str(index)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _install(config: VlacConfig) -> str:
    return _INSTALL_VLLM if config.engine == "vllm" else _INSTALL_PT


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _module_folder(name: str) -> Path | None:
    """The folder of a package, found without importing it."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "3.12.6.dev0" is (3, 12, 6)."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _fits(version: str, least: str, below: str) -> bool:
    return _numbers(version) >= _numbers(least) and (not below or _numbers(version) < _numbers(below))


# The tables of checks, by name. `reference`, `Redis` and `packages` stand where they are made.

_SERVER_CHECKS: dict[str, Callable[[Server, VlacConfig], Finding]] = {
    "version": check_version,
    "round trip": check_round_trip,
    "memory": check_memory,
    "eviction": check_eviction,
    "persistence": check_persistence,
    "password": check_password,
}
_HOST_CHECKS: dict[str, Callable[[VlacConfig], Finding]] = {
    "torch": check_torch,
    "transformers": check_transformers,
    "ms-swift": check_swift,
    "engine": check_engine,
    "evo_vlac": check_evo_vlac,
    "weights": check_weights,
    "GPU": check_gpu,
}


def _queue_checks(host: Host) -> dict[str, Callable[[QueueState, VlacConfig], Finding]]:
    return {
        "workers": functools.partial(check_workers, before_start=host == "gpu"),
        "same critic": check_same_critic,
        "protocol": check_protocol,
        "dead workers": check_dead_workers,
        "queue": check_waiting,
        "failed jobs": check_failed,
    }


# What is shown.

_STYLES: dict[State, str] = {"ok": "green", "warning": "yellow", "broken": "bold red", "skipped": "dim"}


def table(findings: Sequence[Finding], width: int) -> Table:
    """One row for each finding, for a terminal of `width` columns."""
    wide = width >= _WIDE
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=wide)
    made.add_column("check", no_wrap=True)
    made.add_column("state", no_wrap=True)
    made.add_column("found" if wide else "found, and what to do", ratio=1, overflow="fold")
    if wide:
        made.add_column("what to do", ratio=1, overflow="fold")
    for finding in _grouped(findings):
        state = Text(finding.state, style=_STYLES[finding.state])
        found = Text(finding.found, style="dim" if finding.state == "skipped" else "")
        remedy = Text(finding.remedy, style="bold")
        if wide:
            made.add_row(finding.check, state, found, remedy)
            continue
        if finding.remedy:
            found = Text("\n").join([found, Text("-> ", style="bold") + remedy])
        made.add_row(finding.check, state, found)
    return made


def _grouped(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, with checks that were skipped for one reason made one row."""
    rows: list[Finding] = []
    for (state, reason), group in itertools.groupby(findings, key=lambda each: (each.state, each.found)):
        alike = list(group)
        if state != "skipped" or len(alike) == 1:
            rows += alike
            continue
        names = ", ".join(each.check for each in alike)
        rows.append(Finding("skipped", f"{reason}: {names}", check=f"{len(alike)} checks"))
    return rows


def summary(findings: Sequence[Finding]) -> str:
    """Such as "1 broken (eviction), 2 warnings, 0 skipped"."""
    counts = {state: sum(finding.state == state for finding in findings) for state in _STYLES}
    names = ", ".join(finding.check for finding in findings if finding.state == "broken")
    rest = f"{_many(counts['warning'], 'warning')}, {counts['skipped']} skipped."
    return f"{counts['broken']} broken ({names}), {rest}" if names else f"Nothing broken, {rest}"


def as_json(findings: Sequence[Finding]) -> str:
    """The findings, and whether any is broken."""
    rows = [asdict(finding) for finding in findings]
    return json.dumps({"broken": any_broken(findings), "findings": rows}, indent=2)


def any_broken(findings: Sequence[Finding]) -> bool:
    return any(finding.state == "broken" for finding in findings)


def _size(count: float) -> str:
    """Bytes for people: "512 B", "1.2 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _many(count: int, noun: str) -> str:
    """ "1 job", "2 jobs"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _clean(text: object) -> str:
    """Fit for a terminal: others chose this text, escape sequences among it."""
    return "".join(char if char.isprintable() else " " for char in str(text)[:_MAX_TEXT])


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0
