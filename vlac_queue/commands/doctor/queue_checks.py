"""The queue: who listens, with which critic, and what waits or failed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis
from rq.registry import FailedJobRegistry
from rq.suspension import WORKERS_SUSPENDED

from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.control import TRY_OUT, WorkerInfo, live_workers, start_line
from vlac_queue.finding import Finding
from vlac_queue.keys import Keys
from vlac_queue.messages import PROTOCOL_VERSION
from vlac_queue.texts import clean, many, size

#: Workers that are told one by one.
_WORKERS_SHOWN = 8
#: Most bytes of a failed job's reason that are unpacked.
_MAX_REASON_BYTES = 65_536


@dataclass(frozen=True)
class QueueState:
    """The queue and who serves it; None for what Redis does not tell this user.

    Attributes:
        user: of Redis, who reads.
        plain: names of RQ workers that listen and neither are nor hold a CriticWorker.
        stranded: dead worker -> jobs that it had taken.
        waiting: jobs that no worker has taken.
        suspended: whether `rq suspend` holds all workers.
        failed: jobs in RQ's FailedJobRegistry.
        last_failure: the reason of the last of them, or "".
    """

    user: str = "default"
    critics: tuple[WorkerInfo, ...] = ()
    plain: tuple[str, ...] = ()
    stranded: Mapping[str, int] | None = None
    waiting: int | None = None
    suspended: bool | None = None
    failed: int | None = None
    last_failure: str | None = None


def read_queue(connection: redis.Redis, keys: Keys) -> QueueState:
    """The queue and who serves it.

    Raises:
        redis.RedisError: Redis can't be reached, or does not tell this user who works.
    """
    registry = FailedJobRegistry.key_template.format(keys.queue)
    with connection.pipeline(transaction=False) as pipeline:
        pipeline.smembers(keys.workers)
        pipeline.llen(keys.rq_queue)
        pipeline.exists(WORKERS_SUSPENDED)
        # The registry's own count would clean it up, and so change it.
        pipeline.zcard(registry)
        pipeline.zrange(registry, -1, -1)
        members, *others = pipeline.execute(raise_on_error=False)
    if isinstance(members, Exception):
        raise members
    waiting, suspended, failed, last = map(_told_or_none, others)
    names = sorted(name.decode(errors="replace") for name in members)
    with connection.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.hgetall(keys.worker(name))
            pipeline.llen(keys.claims(name))
        pipeline.hget(keys.rq_job(last[0].decode(errors="replace") if last else ""), "exc_info")
        *replies, reason = map(_told_or_none, pipeline.execute(raise_on_error=False))
    described = list(zip(names, replies[0::2], replies[1::2], strict=True))
    claims_told = None not in replies[1::2]
    critics = tuple(WorkerInfo.from_hash(name, fields) for name, fields, _ in described if fields)
    ours = {critic.name for critic in critics} | {critic.parent for critic in critics}
    return QueueState(
        user=user_of(connection),
        critics=critics,
        plain=tuple(clean(name) for name in live_workers(connection, keys) if clean(name) not in ours),
        stranded={clean(name): claims for name, fields, claims in described if claims and not fields}
        if claims_told
        else None,
        waiting=waiting,
        suspended=None if suspended is None else bool(suspended),
        failed=failed,
        last_failure=_reason(reason),
    )


def user_of(connection: redis.Redis) -> str:
    """Return the name of Redis' user that `connection` logs in as."""
    return clean(connection.connection_pool.connection_kwargs.get("username") or "default")


def _told_or_none(reply: Any) -> Any:
    """A reply, or None where it is for other users."""
    if isinstance(reply, redis.exceptions.NoPermissionError):
        return None
    if isinstance(reply, Exception):
        raise reply
    return reply


def _for_others(queue: QueueState) -> Finding:
    """What rollouts need not know."""
    return Finding(
        "skipped",
        f"not for Redis' user {queue.user}",
        "look as vlac-dashboard:\nexport VLAC_REDIS_USERNAME=vlac-dashboard VLAC_REDIS_PASSWORD_FILE=FILE",
    )


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
    return clean(lines[-1]) if lines else ""


def check_workers(queue: QueueState, config: VlacConfig, *, before_start: bool = False) -> Finding:
    """Who listens; that nobody does is fine where this host is about to start a worker."""
    if not queue.critics and not queue.plain:
        where = "here" if before_start else "on a GPU host"
        return Finding(
            "warning" if before_start else "broken",
            f"no worker listens on {config.queue!r}",
            f"start one {where}:\n{start_line(config.redis_url, config.queue)}\n{TRY_OUT}",
        )
    lines = [_told(critic) for critic in queue.critics]
    lines += [f"{name}: plain RQ worker, loads a critic with its first job" for name in queue.plain]
    if len(lines) > _WORKERS_SHOWN:
        lines[_WORKERS_SHOWN:] = [f"and {len(lines) - _WORKERS_SHOWN} more"]
    return Finding(
        "ok", "\n".join([f"{many(len(queue.critics), 'CriticWorker')}, {len(queue.plain)} plain", *lines])
    )


def _told(critic: WorkerInfo) -> str:
    parts = [f"{critic.critic} ({critic.engine})" if critic.engine else critic.critic, critic.model, critic.state]
    if critic.accelerator_bytes:
        parts.append(f"{size(critic.accelerator_bytes)} of GPU memory")
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
            f"start them with {config.critic}; or, if the workers are right:\nexport VLAC_CRITIC={critics[0]}",
        )
    return Finding("ok", critics[0])


def check_protocol(queue: QueueState, config: VlacConfig) -> Finding:
    told = sorted({critic.protocol for critic in queue.critics if critic.protocol})
    others = [version for version in told if version != str(PROTOCOL_VERSION)]
    if others:
        return Finding(
            "broken",
            f"workers speak version {' and '.join(others)}, this host {PROTOCOL_VERSION}",
            "install the same version of vlac-queue on all hosts, and start their workers anew",
        )
    silent = [critic.name for critic in queue.critics if not critic.protocol]
    if silent or not queue.critics:
        return Finding("skipped", f"not told by {', '.join(silent)}" if silent else "no CriticWorker listens")
    return Finding("ok", f"version {PROTOCOL_VERSION}")


def check_dead_workers(queue: QueueState, config: VlacConfig) -> Finding:
    if queue.stranded is None:
        return _for_others(queue)
    if not queue.stranded:
        return Finding("ok", "none holds a job")
    found = ", ".join(f"{name} holds {many(count, 'job')}" for name, count in queue.stranded.items())
    if queue.critics:
        return Finding("warning", found, "nothing: a live worker gives them back within 10 s; look again then")
    return Finding("warning", found, "start a CriticWorker: it gives them back to the queue")


def check_waiting(queue: QueueState, config: VlacConfig) -> Finding:
    if queue.waiting is None or queue.suspended is None:
        return _for_others(queue)
    found = f"{many(queue.waiting, 'job')} waiting"
    if queue.suspended:
        return Finding(
            "broken",
            f"{found}, and `rq suspend` holds all workers",
            f"rq resume --url {redact_url(config.redis_url)}",
        )
    return Finding("ok", found)


def check_failed(queue: QueueState, config: VlacConfig) -> Finding:
    if queue.failed is None:
        return _for_others(queue)
    if not queue.failed:
        return Finding("ok", "none")
    found = f"{queue.failed} failed or rejected" + (
        f"; the last: {queue.last_failure}" if queue.last_failure else ""
    )
    return Finding("warning", found, "see the workers' logs for more; RQ forgets these jobs within an hour")
