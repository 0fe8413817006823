"""Make all checks: which there are, when each is made, and the settings that they go by."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from vlac_queue.client import load_frames
from vlac_queue.commands.doctor.critic_check import check_critic
from vlac_queue.commands.doctor.gpu_checks import check_gpu
from vlac_queue.commands.doctor.queue_checks import (
    Seen,
    check_dead_workers,
    check_failed,
    check_protocol,
    check_same_critic,
    check_waiting,
    check_workers,
    read_queue,
    user_of,
)
from vlac_queue.commands.doctor.redis_checks import SERVER_CHECKS, check_reachable, read_server
from vlac_queue.config import VlacConfig, redact_url
from vlac_queue.connection import connect
from vlac_queue.credentials import ROLLOUT, WORKER
from vlac_queue.errors import ConfigError, FrameError
from vlac_queue.finding import Finding
from vlac_queue.keys import Keys
from vlac_queue.packages import VLAC_PACKAGE_CHECKS, check_queue_packages
from vlac_queue.texts import clean, many
from vlac_queue.weights import check_weights

#: Where the doctor runs: "gpu" also looks at what the critic vlac needs, "auto" does so for critic vlac.
Host = Literal["auto", "gpu", "rollout"]
#: Seconds until a silent Redis counts as away; somebody waits for the answer.
_TIMEOUT_S = 3.0

# The tables of checks, by name. `reference`, `Redis` and `packages` stand where they are made.

_HOST_CHECKS: dict[str, Callable[[VlacConfig], Finding]] = {
    **VLAC_PACKAGE_CHECKS,
    "weights": check_weights,
    "GPU": check_gpu,
}


def _queue_checks(host: Host) -> dict[str, Callable[[Seen, VlacConfig], Finding]]:
    return {
        "workers": functools.partial(check_workers, before_start=host == "gpu"),
        "same critic": check_same_critic,
        "protocol": check_protocol,
        "dead workers": check_dead_workers,
        "queue": check_waiting,
        "failed jobs": check_failed,
    }


def examine(
    redis_url: str | None = None,
    queue: str | None = None,
    critic: str | None = None,
    host: Host = "auto",
    environ: Mapping[str, str] = os.environ,
) -> list[Finding]:
    """Make all checks.

    Args:
        redis_url, queue, critic: instead of those of the environment. Where neither gives a critic, it is the one
            that the workers of the queue run.
        host: see `Host`.
        environ: where the settings come from.
    """
    config, settings = read_settings(redis_url, queue, critic, environ)
    findings = [replace(settings, check="settings")]
    packages = {"packages": check_queue_packages}
    if config is None:
        reason = "the settings can't be read"
        checks = [*SERVER_CHECKS, *_queue_checks(host), *_HOST_CHECKS]
        return [*findings, *_not_made(["Redis", *checks], reason), *_made(packages)]
    if config.reference:
        findings += _made({"reference": check_reference}, config)
    given = critic or environ.get("VLAC_CRITIC")
    found, config = _examine_redis(config, host, critic_given=bool(given))
    findings += found + _made(packages)
    if host == "rollout":
        return findings + _not_made(["VLAC on this host"], "--host rollout")
    if config.critic not in ("vlac", "reference"):
        findings += _made({"critic": check_critic}, config)
    if host == "gpu" or config.critic == "vlac":
        return findings + _made(_HOST_CHECKS, config)
    why = f"the critic is {config.critic}; --host gpu looks all the same"
    return findings + _not_made(["VLAC on this host"], why)


def _examine_redis(config: VlacConfig, host: Host, *, critic_given: bool) -> tuple[list[Finding], VlacConfig]:
    """Return the findings, and the settings: with the critic that workers run where none is given."""
    queue_checks = _queue_checks(host)
    names = [*SERVER_CHECKS, *queue_checks]
    try:
        connection = connect(
            config.redis_url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ConfigError as error:
        remedy = "correct it: export VLAC_REDIS_URL=redis://HOST:6379/0"
        unusable = Finding("broken", clean(error, 1000), remedy, check="Redis")
        return [unusable, *_not_made(names, "the URL can't be used")], config
    with connection:
        reached = check_reachable(connection, config, {"rollout": ROLLOUT, "gpu": WORKER}.get(host, ""))
        findings = [replace(reached, check="Redis")]
        if reached.state == "broken":
            return findings + _not_made(names, "Redis can't be used"), config
        try:
            findings += _made(SERVER_CHECKS, read_server(connection), config)
            queue = read_queue(connection, Keys(config.queue))
            running = {worker.critic for worker in queue.critics}
            if not critic_given and len(running) == 1:
                config = replace(config, critic=running.pop())
            findings += _made(queue_checks, queue, config)
        except redis.exceptions.RedisError as error:
            made = {finding.check for finding in findings}
            left = [name for name in names if name not in made]
            findings.append(_not_read(error, config, user_of(connection)))
            findings += _not_made(left, "Redis could not be read")
    return findings, config


def _not_read(error: redis.exceptions.RedisError, config: VlacConfig, user: str) -> Finding:
    if isinstance(error, redis.exceptions.NoPermissionError):
        # What the doctor reads in Redis, rollouts and workers read as well.
        found = f"Redis' user {user} may not see who works, as each part of this project must"
        remedy = f"use a user that `vlac-queue acl --queue {config.queue}` makes, here vlac-dashboard"
    elif isinstance(error, redis.exceptions.ResponseError):
        found, remedy = "Redis refused", "look at what writes to these keys besides vlac-queue"
    else:
        found, remedy = "Redis went away meanwhile", "look at redis-server's log, and at the network between"
    return Finding("broken", f"{found}: {clean(error)}", remedy, check="reading")


def _made(checks: Mapping[str, Callable[..., Finding]], *subjects: Any) -> list[Finding]:
    return [replace(check(*subjects), check=name) for name, check in checks.items()]


def _not_made(names: Sequence[str], reason: str) -> list[Finding]:
    return [Finding("skipped", reason, check=name) for name in names]


def read_settings(
    redis_url: str | None, queue: str | None, critic: str | None, environ: Mapping[str, str]
) -> tuple[VlacConfig | None, Finding]:
    """Return the settings of the environment, or None where they are wrong; and what is to be said of them."""
    ours, rqs = environ.get("VLAC_REDIS_URL"), environ.get("RQ_REDIS_URL")
    try:
        config = VlacConfig.from_env(
            environ, redis_url=redis_url or (rqs if ours is None else None), queue=queue, critic=critic
        )
    except ConfigError as error:
        return None, Finding("broken", str(error), "correct that variable: export it anew, or unset it")
    chosen = "" if critic or environ.get("VLAC_CRITIC") else " unless workers run another"
    found = f"queue {config.queue} at {redact_url(config.redis_url)}, critic {config.critic}{chosen}"
    if redis_url is None and ours and rqs and ours != rqs:
        found = f"{found}; but `rq worker` goes to {redact_url(rqs)}, since RQ_REDIS_URL and VLAC_REDIS_URL differ"
        return config, Finding("warning", found, "unset RQ_REDIS_URL, or export the same URL in both")
    return config, Finding("ok", found)


def check_reference(config: VlacConfig) -> Finding:
    try:
        frames = load_frames(Path(config.reference or ""))
    except FrameError as error:
        remedy = "name a file with the frames of a successful run:\nexport VLAC_REFERENCE=FILE"
        return Finding("broken", clean(error), remedy)
    return Finding("ok", f"{many(len(frames), 'frame')} of {frames.shape[2]}x{frames.shape[1]}")
