"""Looking after workers from afar: who they are, and putting their critics to sleep or waking them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any, Literal

import redis

from vlac_queue.config import redact_url
from vlac_queue.connection import Patience
from vlac_queue.errors import CriticTimeout, NoWorkers
from vlac_queue.keys import EVERYBODY, ORDERS_TTL_S, Keys
from vlac_queue.texts import MAX_TEXT, as_float, as_int, clean, many

#: Seconds between two looks at whether workers have followed; and as how many, at most, one of them counts.
_LOOK_S, _LONGEST_LOOK_S = 0.1, 1.0


@dataclass(frozen=True)
class WorkerInfo:
    """What a critic worker said of itself at its last beat; they beat once a second.

    What a worker of another version leaves out is "" or 0.

    Attributes:
        name, host, pid: which process it is.
        protocol: the protocol's version that it speaks.
        critic, model, prompt, engine, device: what it runs; `prompt` is a short hash of its prompts.
        state: "loading", "idle", "busy" or "asleep" (its critic gave the accelerator memory back).
        parent: the plain RQ worker that it lives in, or "".
        uptime_s: seconds since it started.
        max_batch: most queries in one call of its critic.
        loads, jobs, rejected_jobs, queries, failures, batches: totals since it started; failures are among the
            queries.
        busy_s: seconds for which its critic worked, likewise.
        pairs_ahead: pairs of frames scored before a value query needed them, likewise.
        pairs_unused: pairs scored of episodes that were then found done, likewise.
        rss_bytes, accelerator_bytes: memory of the process, and of its accelerator.
        accelerator_limit_bytes: most that it may take there; 0 where no limit is known.
        order: the last order about its critic that it has followed (`Keys.orders`), or "".
        last_error: first line of the last failure, or "".
        last_error_at: when, in seconds since 1970 on Redis' clock; 0: never.
        time: of this beat, likewise.
    """

    name: str
    host: str = ""
    pid: int = 0
    protocol: str = ""
    critic: str = ""
    model: str = ""
    prompt: str = ""
    engine: str = ""
    device: str = ""
    state: str = ""
    parent: str = ""
    uptime_s: float = 0.0
    max_batch: int = 0
    loads: int = 0
    jobs: int = 0
    rejected_jobs: int = 0
    queries: int = 0
    failures: int = 0
    batches: int = 0
    busy_s: float = 0.0
    pairs_ahead: int = 0
    pairs_unused: int = 0
    rss_bytes: int = 0
    accelerator_bytes: int = 0
    accelerator_limit_bytes: int = 0
    order: str = ""
    last_error: str = ""
    last_error_at: float = 0.0
    time: float = 0.0

    @classmethod
    def from_hash(cls, name: str, said: Mapping[bytes, bytes]) -> WorkerInfo:
        """Return what the hash on Redis says; the texts are made fit for a terminal."""
        values = {field: read(said[key]) for key, field, read in _FIELDS if key in said}
        return cls(clean(name), **values)  # type: ignore[arg-type]

    def to_hash(self) -> dict[str, str | int | float]:
        """Return the fields of the hash; the name stands in its key."""
        return {field: value for field, value in vars(self).items() if field != "name"}


# As `python -m rq.cli`, which would look for modules in the working folder first: a package `workers` there would
# hide ours. RQ itself adds that folder last, so a critic that lies in it is still found.
_RQ = "import sys; sys.path = [path for path in sys.path if path]; from rq.cli import main; main(prog_name='rq')"


def worker_command(queue: str, *arguments: str) -> list[str]:
    """Return the command that runs `rq worker QUEUE --with-scheduler` in this Python.

    Args:
        arguments: further ones of `rq worker`.
    """
    return [sys.executable, "-c", _RQ, "worker", queue, "--with-scheduler", *arguments]


#: What makes `rq worker` ours. The URL travels in VLAC_REDIS_URL: RQ's own variable would win over RQ_CONFIG, and
#: would hold the password that a file keeps out of the environment.
WORKER_ENVIRON = {
    "RQ_CONFIG": "vlac_queue.rq_settings",
    "RQ_CONNECTION_CLASS": "vlac_queue.connection.AnyRedis",
    "RQ_WORKER_CLASS": "workers.CriticWorker",
}


def start_worker(
    queue: str, environ: Mapping[str, str], *arguments: str, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a critic worker in a session of its own: Ctrl-C does not reach it, and what it leaves behind is found.

    Args:
        environ: its environment, with VLAC_REDIS_URL; RQ's variables are set or left out here.
        arguments: further ones of `rq worker`.
        options: of `subprocess.Popen`.
    """
    variables = {name: text for name, text in environ.items() if name != "RQ_REDIS_URL"}
    return subprocess.Popen(
        worker_command(queue, *arguments), env=variables | WORKER_ENVIRON, start_new_session=True, **options
    )


def end_worker(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """End a worker of `start_worker`, and its session, after `patience_s` for the batch at hand."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience_s)
    # Itself, or RQ's scheduler, its child.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


#: What to say beside `start_line`.
TRY_OUT = (
    "the critic vlac needs evo_vlac and weights (docs/vlac.md); to try it out without, add --critic reference"
)


def start_line(url: str, queue: str) -> str:
    """Return the command that starts a worker, to be pasted; PASSWORD stands where the URL has one."""
    command = f"VLAC_REDIS_URL={shlex.quote(redact_url(url).replace('***', 'PASSWORD'))} vlac-queue worker"
    return command if queue == "vlac" else f"{command} --queue {queue}"


def live_workers(connection: redis.Redis, keys: Keys) -> list[str]:
    """Return the names of the RQ workers that listen on the queue, without changing anything on Redis."""
    registered = [key.decode() for key in connection.smembers(keys.rq_workers)]  # type: ignore[union-attr]
    with connection.pipeline(transaction=False) as pipeline:
        for key in registered:
            pipeline.hmget(key, "birth", "death")
        alive = [birth is not None and death is None for birth, death in pipeline.execute()]
    return sorted(key.removeprefix("rq:worker:") for key, lives in zip(registered, alive, strict=True) if lives)


def require_workers(connection: redis.Redis, keys: Keys, url: str) -> list[str]:
    """Return what `live_workers` does; `url` is that of Redis, for the message.

    Raises:
        NoWorkers: there is none; the message holds the command that starts one.
    """
    if workers := live_workers(connection, keys):
        return workers
    raise NoWorkers(
        f"no worker listens on queue {keys.queue!r} at {redact_url(url)}; start one on a GPU host: "
        f"{start_line(url, keys.queue)}  ({TRY_OUT})"
    )


def timeout_error(connection: redis.Redis, keys: Keys, url: str, queries: int, waited_s: float) -> CriticTimeout:
    """Return the error for queries that were not answered in time, with what to do about it."""
    workers, waiting = live_workers(connection, keys), connection.llen(keys.rq_queue)
    hint = (
        f"{many(len(workers), 'worker')} for {many(waiting, 'waiting job')}: raise timeout_s or add workers"
        if workers
        else f"no worker listens any more: start one with {start_line(url, keys.queue)}"
    )
    return CriticTimeout(f"no answer to {many(queries, 'query')} within {waited_s:.1f} s; {hint}.")


#: The same few texts come with every beat of every worker.
_known_text = lru_cache(4096)(clean)


def _text(value: bytes) -> str:
    return _known_text(value) if len(value) <= MAX_TEXT else clean(value)


_READERS: dict[str, Callable[[bytes], str | int | float]] = {"str": _text, "int": as_int, "float": as_float}
_FIELDS = tuple(
    (field.name.encode(), field.name, _READERS[str(field.type)])
    for field in fields(WorkerInfo)
    if field.name != "name"
)


def critic_workers(connection: redis.Redis, keys: Keys) -> list[WorkerInfo]:
    """Return the living critic workers of the queue, by name; a plain RQ worker without a critic is none yet."""
    names = sorted(name.decode(errors="replace") for name in connection.smembers(keys.workers))  # type: ignore[union-attr]
    with connection.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.hgetall(keys.worker(name))
        hashes = pipeline.execute()
    return [WorkerInfo.from_hash(name, said) for name, said in zip(names, hashes, strict=True) if said]


def order_workers(
    connection: redis.Redis,
    keys: Keys,
    order: Literal["sleep", "wake"],
    names: Collection[str] = (),
    *,
    timeout_s: float = 60.0,
    patience: Patience,
) -> list[WorkerInfo]:
    """Put critics to sleep, or wake them, and wait until they have followed.

    A sleeping critic has given its accelerator memory back. Nothing is lost: a query that comes meanwhile
    wakes it, and one that waits is answered before it sleeps. Where queries keep coming, it sleeps for a moment
    between two batches, and that counts; so does being busy for an order to wake. A worker that is loading its
    critic is not waited for: it follows once it has. One that starts while its critic is to sleep loads it when
    a job waits.

    Args:
        order: what the critics are to do; the last order counts, whoever gave it.
        names: the workers, which are returned; empty: all of the queue, and those that start within ORDERS_TTL_S.
        timeout_s: seconds to wait for them; time for which Redis is away does not count.
        patience: waits for Redis, and for a worker.

    Raises:
        NoWorkers: one of `names`, or any at all, is not there.
        CriticTimeout: some did not follow in time.
    """
    text = f"{order} {uuid.uuid4().hex}"
    patience(partial(_chosen, connection, keys, names))
    patience(partial(_say, connection, keys, names, text))
    left_s = timeout_s
    while True:
        looked_at = time.monotonic()
        workers, late = patience(partial(_late, connection, keys, names, text))
        if not late:
            return workers
        if left_s <= 0:
            raise CriticTimeout(f"{', '.join(late)} did not {order} within {timeout_s:.0f} s; are they busy?")
        time.sleep(_LOOK_S)
        left_s -= min(time.monotonic() - looked_at, _LONGEST_LOOK_S)


def _chosen(connection: redis.Redis, keys: Keys, names: Collection[str]) -> list[WorkerInfo]:
    workers = [each for each in critic_workers(connection, keys) if not names or each.name in names]
    missing = ", ".join(sorted(set(names) - {each.name for each in workers}))
    if missing or not workers:
        raise NoWorkers(
            f"no such critic worker on queue {keys.queue!r}: {missing or 'none at all'}; start one, and see "
            "`vlac-queue workers list`."
        )
    return workers


def _say(connection: redis.Redis, keys: Keys, names: Collection[str], text: str) -> None:
    with connection.pipeline() as pipeline:
        if not names:
            pipeline.delete(keys.orders)
        pipeline.hset(keys.orders, mapping=dict.fromkeys(names or (EVERYBODY,), text))
        pipeline.expire(keys.orders, ORDERS_TTL_S)
        pipeline.execute()


def _late(
    connection: redis.Redis, keys: Keys, names: Collection[str], text: str
) -> tuple[list[WorkerInfo], list[str]]:
    """Return the workers, and who is still to follow the order; give it again where Redis lost it."""
    workers = _chosen(connection, keys, names)
    *own, general = connection.hmget(keys.orders, [*(each.name for each in workers), EVERYBODY])
    # Where somebody else's order came after this one, that is the one to be followed.
    counts = [(each or general or text.encode()) == text.encode() for each in own]
    late = [
        each.name
        for each, still in zip(workers, counts, strict=True)
        if still and each.state != "loading" and each.order != text
    ]
    if late and not any(own) and not general:
        _say(connection, keys, names, text)
    return workers, late
