"""Redis users that may do what one part of this project does, and no more; `vlac-queue acl` prints them.

Redis checks every command by its name and by the keys it is given, those within Lua scripts too. From Redis 7 on
a user has several grants (selectors), each of commands and the keys for them, and keys may be for reading only.
Redis 6.2 knows one set of commands and one of keys for each user, so there a user may use each of its commands on
each of its keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import redis
from rq import Queue, Worker
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.executions import Execution, ExecutionRegistry
from rq.group import Group
from rq.job import Job
from rq.rate_limit import RateLimitRegistry
from rq.registry import ReadyJobRegistry
from rq.results import Result
from rq.scheduler import SCHEDULER_KEY_TEMPLATE, RQScheduler
from rq.suspension import WORKERS_SUSPENDED
from rq.worker_registration import REDIS_WORKER_KEYS, WORKERS_BY_QUEUE_KEY

from vlac_queue.credentials import ADMIN, DASHBOARD, ROLLOUT, WORKER
from vlac_queue.keys import Keys

#: Versions of Redis whose rules differ.
VERSIONS = {"6.2": (6, 2), "7.0": (7, 0), "7.2": (7, 2)}

#: RQ wants a connection to tell names of keys. It is never used.
_NOWHERE = redis.Redis()


@dataclass(frozen=True)
class Grant:
    """Commands, and the keys that they may be used on."""

    commands: str  # as ACL rules spell them, separated by spaces
    keys: tuple[str, ...] = ()  # patterns of keys to read and write
    reads: tuple[str, ...] = ()  # patterns of keys to read only (Redis 6.2: to write as well)
    apart: bool = False  # left out for Redis 6.2, where its keys would be open to the other grants' commands


@dataclass(frozen=True)
class User:
    """What a user may do."""

    name: str
    commands: str  # those that take no keys, such as "ping client|setname"
    grants: tuple[Grant, ...]  # those that do
    scripts: bool = False  # whether Lua scripts may be sent; what they call is checked like any other command
    channels: tuple[str, ...] = ()  # patterns of channels, to publish to or subscribe


#: What redis-py sends by itself, and what tells the server's version and time.
_CONNECTION = "hello ping select info time"
#: What redis-py tries on every server. Redis from 7 on takes no rule about a command that it does not know; 6.2
#: would note each try in its ACL LOG.
_TRIED = {(6, 2): "client|setinfo client|maint_notifications", (7, 0): "", (7, 2): "client|setinfo"}
_TRANSACTION = "multi exec discard unwatch"
_READS = (
    "exists get hget hgetall hlen hmget hstrlen lindex llen lrange pttl scard smembers ttl xlen xrange xread "
    "xrevrange zcard zcount zrange zrangebyscore"
)


def users(keys: Keys) -> tuple[User, User, User]:
    """Return the users of a queue: rollout, worker and dashboard."""
    return _rollout(keys), _worker(keys), _dashboard(keys)


def _rollout(keys: Keys) -> User:
    """Return who opens, pushes, asks, reads answers, closes, knows who listens, has critics sleep and wake."""
    episode, job = keys.episode("*"), keys.job_id("?" * 32)
    return User(
        ROLLOUT,
        commands=f"{_CONNECTION} {_TRANSACTION}",
        grants=(
            # Its own commands and those of its scripts; the pattern of `meta` covers all keys of an episode.
            Grant(
                "del exists expire hget hmget hset hsetnx lindex llen rpush sadd scard srem",
                (episode.meta, keys.reference("*")),
            ),
            # A client's sign of life and its stream of answers.
            Grant("del exists set xread xtrim", (keys.client("*"),)),
            Grant("del exists hdel hget hincrby hset zadd zrange zrangebyscore zrem", (keys.open, keys.sizes)),
            Grant("expire hincrby hincrbyfloat hset xadd", (keys.events, keys.totals)),
            # A job's hash, and its id at the end of the queue; and what has become of open queries.
            Grant("exists expire hmget hset", (keys.rq_job(job),)),
            Grant("llen lpos rpush", (keys.rq_queue,)),
            Grant("lpos", reads=(keys.alone,)),
            Grant("sadd", (Queue.redis_queues_keys,)),
            Grant("hgetall hmget smembers", reads=_who_works(keys)),
            Grant("del expire hmget hset", (keys.orders,)),
        ),
        scripts=True,
    )


def _worker(keys: Keys) -> User:
    """Return who may do what a CriticWorker and a plain `rq worker` with its scheduler and maintenance do."""
    episode = keys.episode("*")
    return User(
        WORKER,
        commands=f"{_CONNECTION} {_TRANSACTION} client|info client|setname script|exists script|load subscribe "
        "unsubscribe",
        grants=(
            Grant(_READS, reads=(episode.meta, keys.reference("*"))),
            # Answers, and failures for people to see.
            Grant("hget hset", (episode.queries,)),
            # Scores of pairs.
            Grant("del expire hdel hget hlen hmget hset", (episode.pairs,)),
            Grant("expire xadd", (keys.client_answers("*"), keys.events)),
            Grant("exists", reads=(keys.client("*"),)),
            # A job goes from RQ's queue to the worker's claims in one command, so their keys stand together.
            Grant(
                f"{_READS} blmove blpop copy del expire hdel hexists hincrby hincrbyfloat hset hsetnx lmove lpop "
                "lpush lrem pexpire persist rpop rpush sadd set sismember srem watch xadd zadd zrem "
                "zremrangebyscore zscore",
                (keys.workers, keys.worker("*"), keys.claims("*"), keys.alone, *_rqs(keys)),
            ),
            Grant("exists", reads=(WORKERS_SUSPENDED,)),
            Grant("hmget", reads=(keys.orders,)),
        ),
        scripts=True,
        channels=(PUBSUB_CHANNEL_TEMPLATE % "*",),
    )


def _dashboard(keys: Keys) -> User:
    """Return who reads what dashboards, `vlac-queue doctor` and `vlac-queue workers list` do; never frames.

    Of an open episode they see its task, and how much of it there is; on Redis 6.2 only its id.
    """
    return User(
        DASHBOARD,
        commands=f"{_CONNECTION} client|info",
        grants=(
            Grant(
                _READS,
                reads=(
                    *_who_works(keys),
                    keys.claims("*"),
                    keys.alone,
                    keys.open,
                    keys.sizes,
                    keys.events,
                    keys.totals,
                    keys.rq_queue,
                    Job.key_for("*"),
                    _queue(keys).failed_job_registry.key,
                    WORKERS_SUSPENDED,
                ),
            ),
            Grant("hlen hmget llen", reads=(keys.episode("*").meta,), apart=True),
        ),
    )


def _who_works(keys: Keys) -> tuple[str, ...]:
    return keys.workers, keys.worker("*"), keys.rq_workers, f"{Worker.redis_worker_namespace_prefix}*"


def _rqs(keys: Keys) -> tuple[str, ...]:
    """Return RQ's keys for one queue, and those that all queues share."""
    queue = _queue(keys)
    states = ("started", "finished", "failed", "deferred", "scheduled", "canceled")
    registries = [getattr(queue, f"{state}_job_registry") for state in states]
    registries.append(ReadyJobRegistry(keys.queue, connection=_NOWHERE))
    return (
        keys.rq_queue,
        f"{queue.intermediate_queue_key}*",
        queue.registry_cleaning_key,
        *(registry.key for registry in registries),
        Queue.redis_queues_keys,
        Job.key_for("*"),
        Result.get_key("*"),
        ExecutionRegistry.key_template.format("*"),
        Execution("*", "*", _NOWHERE).key,
        f"{Worker.redis_worker_namespace_prefix}*",
        REDIS_WORKER_KEYS,
        WORKERS_BY_QUEUE_KEY % keys.queue,
        RQScheduler.get_locking_key(keys.queue),
        SCHEDULER_KEY_TEMPLATE % "*",
        Group.REDIS_GROUP_KEY,
        Group.REDIS_GROUP_CLEANING_KEY,
        RateLimitRegistry.rl_keys_key,
    )


def _queue(keys: Keys) -> Queue:
    """Return RQ's queue, for the names of its keys."""
    return Queue(keys.queue, connection=_NOWHERE)


def acl_line(user: User, password: str, version: tuple[int, int]) -> str:
    """Return the user's line of an ACL file for a version of VERSIONS, with the password's SHA-256."""
    commands = f"{user.commands} {_TRIED[version]}"
    grants = [grant for grant in user.grants if version >= (7, 0) or not grant.apart]
    if user.scripts:
        # Redis can't know what a script does with its keys, so it wants all rights to them. What the script then
        # calls is checked against the grants above.
        grants.append(Grant("eval evalsha", _patterns(grants)))
    rules = [f"user {user.name} on {_hashed(password)} resetchannels -@all"]
    channels = [f"&{channel}" for channel in user.channels]
    if version >= (7, 0):
        selectors = [f"({' '.join([*_allowed(grant.commands), *_rules(grant)])})" for grant in grants]
        return " ".join([*rules, *_allowed(commands), *channels, *selectors])
    together = " ".join([commands, *(grant.commands for grant in grants)])
    return " ".join([*rules, *_allowed(together), *channels, *(f"~{key}" for key in _patterns(grants))])


def admin_line(password: str) -> str:
    """Return the line of a user who may do everything, for who looks after the server."""
    return f"user {ADMIN} on {_hashed(password)} ~* &* +@all"


#: Nobody comes in without a name.
DEFAULT_OFF = "user default off resetchannels -@all"


def _hashed(password: str) -> str:
    return f"#{hashlib.sha256(password.encode()).hexdigest()}"


def _allowed(commands: str) -> list[str]:
    return [f"+{name}" for name in dict.fromkeys(commands.split())]


def _rules(grant: Grant) -> list[str]:
    return [f"~{key}" for key in grant.keys] + [f"%R~{key}" for key in grant.reads]


def _patterns(grants: Iterable[Grant]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for grant in grants for key in (*grant.keys, *grant.reads)))
