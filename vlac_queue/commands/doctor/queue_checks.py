"""The queue: who listens, with which critic, and what waits or failed."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis
from rq.registry import FailedJobRegistry

from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.control import TRY_OUT, WorkerInfo, start_line
from vlac_queue.finding import Finding
from vlac_queue.keys import Keys
from vlac_queue.messages import PROTOCOL_VERSION
from vlac_queue.reading import QueueReader
from vlac_queue.records import Reading
from vlac_queue.texts import clean, many, size

#: Workers that are told one by one.
_WORKERS_SHOWN = 8
#: Most bytes of a failed job's reason that are unpacked.
_MAX_REASON_BYTES = 65_536


@dataclass(frozen=True)
class Seen(Reading):
    """The queue as the doctor sees it.

    Attributes:
        user: of Redis, who reads.
        last_failure: why the job that failed last did, or "" where nothing says so.
    """

    user: str = "default"
    last_failure: str = ""

    @property
    def critics(self) -> list[WorkerInfo]:
        return [worker.info for worker in self.workers if worker.info]

    @property
    def stranded(self) -> dict[str, int]:
        """Dead workers, each with the number of jobs that it had taken."""
        return {worker.name: worker.taken for worker in self.workers if worker.taken and not worker.info}


def read_queue(connection: redis.Redis, keys: Keys) -> Seen:
    """Return the queue and who serves it.

    Raises:
        redis.RedisError: Redis can't be reached, or does not tell this user who works.
    """
    reading = QueueReader(connection, keys, partly=True).read(episodes=0)
    failure = ""
    if reading.queue.failed:
        with suppress(redis.exceptions.NoPermissionError):
            failure = _last_failure(connection, keys)
    return Seen(**vars(reading), user=user_of(connection), last_failure=failure)


def user_of(connection: redis.Redis) -> str:
    """Return the name of Redis' user that `connection` logs in as."""
    return clean(connection.connection_pool.connection_kwargs.get("username") or "default")


def _for_others(queue: Seen) -> Finding:
    """What rollouts need not know."""
    return Finding(
        "skipped",
        f"not for Redis' user {queue.user}",
        "look as vlac-dashboard:\nexport VLAC_REDIS_USERNAME=vlac-dashboard VLAC_REDIS_PASSWORD_FILE=FILE",
    )


def _last_failure(connection: redis.Redis, keys: Keys) -> str:
    last: Any = connection.zrange(FailedJobRegistry.key_template.format(keys.queue), -1, -1)
    packed: Any = connection.hget(keys.rq_job(last[0].decode(errors="replace")), "exc_info") if last else None
    return _reason(packed)


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


def check_workers(queue: Seen, config: VlacConfig, *, before_start: bool = False) -> Finding:
    """Who listens; that nobody does is fine where this host is about to start a worker."""
    if not queue.critics and not queue.plain:
        where = "here" if before_start else "on a GPU host"
        return Finding(
            "warning" if before_start else "broken",
            f"no worker listens on {config.queue!r}",
            f"start one {where}:\n{start_line(config.redis_url, config.queue)}\n{TRY_OUT}",
        )
    lines = [_told(critic) for critic in queue.critics]
    lines += [f"{worker.name}: plain RQ worker, loads a critic with its first job" for worker in queue.plain]
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


def check_same_critic(queue: Seen, config: VlacConfig) -> Finding:
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


def check_protocol(queue: Seen, config: VlacConfig) -> Finding:
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


def check_dead_workers(queue: Seen, config: VlacConfig) -> Finding:
    if "taken" in queue.refused:
        return _for_others(queue)
    if not queue.stranded:
        return Finding("ok", "none holds a job")
    found = ", ".join(f"{name} holds {many(count, 'job')}" for name, count in queue.stranded.items())
    if queue.critics:
        return Finding("warning", found, "nothing: a live worker gives them back within 10 s; look again then")
    return Finding("warning", found, "start a CriticWorker: it gives them back to the queue")


def check_waiting(queue: Seen, config: VlacConfig) -> Finding:
    if queue.refused & {"waiting", "suspended"}:
        return _for_others(queue)
    found = f"{many(queue.queue.waiting, 'job')} waiting"
    if queue.queue.suspended:
        return Finding(
            "broken",
            f"{found}, and `rq suspend` holds all workers",
            f"rq resume --url {redact_url(config.redis_url)}",
        )
    return Finding("ok", found)


def check_failed(queue: Seen, config: VlacConfig) -> Finding:
    if "failed" in queue.refused:
        return _for_others(queue)
    if not queue.queue.failed:
        return Finding("ok", "none")
    found = f"{queue.queue.failed} failed or rejected" + (
        f"; the last: {queue.last_failure}" if queue.last_failure else ""
    )
    return Finding("warning", found, "see the workers' logs for more; RQ forgets these jobs within an hour")
