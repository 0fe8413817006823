"""The snapshot: what it reads is what is there, and reading changes nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import redis

from dashboards.snapshot import CriticState, Snapshot, read_snapshot, with_rates
from tests.conftest import Workers, until
from vlac_queue import CriticClient
from vlac_queue.demo.rollouts import load_rollouts
from vlac_queue.keys import WORKER_TTL_MS, Keys

_KEYS = Keys("vlac")
_WRITES = ("set", "del", "rem", "add", "push", "pop", "move", "expire", "eval", "flush", "trim", "incr", "unlink")


def describe_worker(
    connection: redis.Redis, name: str = "w1", *, ttl_ms: int = WORKER_TTL_MS, **fields: Any
) -> None:
    """Leaves on Redis what a CriticWorker says of itself."""
    described: dict[str, Any] = {
        "loads": 1, "jobs": 10, "rejected_jobs": 1, "queries": 120, "failures": 3, "batches": 16, "busy_s": 5.0,
        "host": "gpu-1", "pid": 42, "critic": "vlac", "model": "/models/VLAC", "engine": "pt", "state": "busy",
        "parent": "", "uptime_s": 20.0, "max_batch": 16, "rss_bytes": 3 << 30, "accelerator_bytes": 6 << 30,
        "time": time.time(), **fields,
    }  # fmt: skip
    connection.sadd(_KEYS.workers, name)
    connection.hset(_KEYS.worker(name), mapping=described)
    connection.pexpire(_KEYS.worker(name), ttl_ms)
    register_rq_worker(connection, name)


def register_rq_worker(connection: redis.Redis, name: str, **fields: Any) -> None:
    key = f"rq:worker:{name}"
    connection.sadd(_KEYS.rq_workers, key)
    mapping = {"birth": "2026-01-01T00:00:00.000000Z", "hostname": "gpu-2", "pid": 7, "state": "idle", **fields}
    connection.hset(key, mapping=mapping)


def enqueue(connection: redis.Redis, job: str, **fields: Any) -> None:
    connection.rpush(_KEYS.rq_queue, job)
    connection.hset(_KEYS.rq_job(job), mapping={"status": "queued", **fields})


def contents(connection: redis.Redis) -> dict[bytes, tuple[bytes | None, int]]:
    """Every key with its value and its time to live in milliseconds, -1 where it has none."""
    keys: Any = connection.keys("*")
    return {key: (connection.dump(key), connection.pttl(key)) for key in keys}  # type: ignore[misc]


# What is there.


def test_an_empty_redis(connection: redis.Redis) -> None:
    snapshot = read_snapshot(connection, _KEYS)
    assert snapshot.time == pytest.approx(time.time(), abs=60)
    assert (snapshot.critics, snapshot.plain, snapshot.listening) == ((), (), 0)
    queue = snapshot.queue
    assert (queue.name, queue.waiting, queue.oldest_s, queue.taken) == ("vlac", 0, None, 0)
    assert (queue.failed, queue.episodes, queue.frame_bytes) == (0, 0, 0)
    assert snapshot.queries_per_s == 0


def test_the_server(connection: redis.Redis) -> None:
    info: Any = connection.info()
    server = read_snapshot(connection, _KEYS).redis
    assert server.version == info["redis_version"]
    assert (server.max_bytes, server.policy, server.may_evict) == (0, "noeviction", False)
    assert server.used_bytes > 100_000
    assert server.clients >= 1
    assert not replace(server, max_bytes=1 << 30).may_evict
    assert replace(server, max_bytes=1 << 30, policy="allkeys-lru").may_evict


def test_open_episodes_and_their_bytes(client: CriticClient, connection: redis.Redis) -> None:
    frames = load_rollouts("random")[0].frames
    with client.episode("open the drawer") as one, client.episode("close the door") as two:
        one.push(frames[0])
        two.push(frames[:2])
        queue = read_snapshot(connection, _KEYS).queue
        assert queue.episodes == 2
        assert queue.frame_bytes == one.sent_bytes + two.sent_bytes
    queue = read_snapshot(connection, _KEYS).queue
    assert (queue.episodes, queue.frame_bytes) == (0, 0)


def test_an_expired_episode_is_not_counted(connection: redis.Redis) -> None:
    connection.zadd(_KEYS.open, {"crashed": time.time() - 60, "open": time.time() + 600})
    assert read_snapshot(connection, _KEYS).queue.episodes == 1


def test_waiting_and_failed_jobs(connection: redis.Redis) -> None:
    seconds, _ = connection.time()  # type: ignore[misc]
    since = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(seconds - 50))
    enqueue(connection, "a", enqueued_at=since)
    enqueue(connection, "b")
    connection.zadd("rq:failed:vlac", {"x": 1, "y": 2, "z": 3})
    queue = read_snapshot(connection, _KEYS).queue
    assert (queue.waiting, queue.failed) == (2, 3)
    assert queue.oldest_s == pytest.approx(51, abs=3)


@pytest.mark.parametrize("fields", [{}, {"enqueued_at": "yesterday"}, {"enqueued_at": b"\xff"}], ids=str)
def test_a_job_that_does_not_say_since_when_it_waits(connection: redis.Redis, fields: dict[str, Any]) -> None:
    enqueue(connection, "a", **fields)
    queue = read_snapshot(connection, _KEYS).queue
    assert (queue.waiting, queue.oldest_s) == (1, None)


def test_a_worker(connection: redis.Redis) -> None:
    describe_worker(connection)
    connection.rpush(_KEYS.claims("w1"), "job-1", "job-2")
    snapshot = read_snapshot(connection, _KEYS)
    (critic,) = snapshot.critics
    assert (critic.name, critic.host, critic.pid, critic.state) == ("w1", "gpu-1", 42, "busy")
    assert (critic.critic, critic.model, critic.engine) == ("vlac", "/models/VLAC", "pt")
    assert (critic.jobs, critic.rejected_jobs, critic.queries, critic.failures) == (10, 1, 120, 3)
    assert (critic.batches, critic.mean_batch, critic.taken) == (16, 7.5, 2)
    assert (critic.rss_bytes, critic.accelerator_bytes) == (3 << 30, 6 << 30)
    assert critic.busy == 0.25  # since its start, for want of an earlier snapshot
    assert critic.queries_per_s is None
    assert snapshot.queue.taken == 2
    assert (snapshot.plain, snapshot.listening) == ((), 1)


def test_a_worker_before_its_first_batch_has_no_mean(connection: redis.Redis) -> None:
    describe_worker(connection, state="loading", queries=0, batches=0)
    (critic,) = read_snapshot(connection, _KEYS).critics
    assert (critic.state, critic.mean_batch) == ("loading", None)


def test_a_worker_without_heartbeat_is_silent_then_gone(connection: redis.Redis) -> None:
    describe_worker(connection, ttl_ms=WORKER_TTL_MS - 4000)
    connection.rpush(_KEYS.claims("w1"), "job-1")
    snapshot = read_snapshot(connection, _KEYS)
    assert [critic.state for critic in snapshot.critics] == ["silent"]
    assert snapshot.critics[0].silent_s == pytest.approx(4, abs=1.5)
    connection.delete(_KEYS.worker("w1"), "rq:worker:w1")
    snapshot = read_snapshot(connection, _KEYS, snapshot)
    assert [(critic.state, critic.taken) for critic in snapshot.critics] == [("gone", 1)]
    assert snapshot.listening == 0
    # Once others took over its jobs nothing of it is left to show.
    connection.delete(_KEYS.claims("w1"))
    assert read_snapshot(connection, _KEYS).critics == ()


def test_plain_workers_are_those_that_live_without_a_critic(connection: redis.Redis) -> None:
    register_rq_worker(connection, "fresh")
    register_rq_worker(connection, "ended", death="2026-01-01T00:01:00.000000Z")
    register_rq_worker(connection, "serving")
    describe_worker(connection, "serving.99", parent="serving")
    connection.sadd(_KEYS.rq_workers, "rq:worker:expired", "not-a-worker-key")
    snapshot = read_snapshot(connection, _KEYS)
    assert [(plain.name, plain.host, plain.pid) for plain in snapshot.plain] == [("fresh", "gpu-2", 7)]
    assert [(critic.name, critic.parent) for critic in snapshot.critics] == [("serving.99", "serving")]
    assert snapshot.listening == 2


def test_workers_of_another_queue_are_not_shown(connection: redis.Redis) -> None:
    describe_worker(connection)
    snapshot = read_snapshot(connection, Keys("other"))
    assert (snapshot.critics, snapshot.plain) == ((), ())


def test_texts_on_redis_can_not_drive_the_terminal(connection: redis.Redis) -> None:
    describe_worker(connection, "w\x1b]0;title\x07", host="\x1b[2J", critic=b"\xff\xfe", state="idle\n")
    (critic,) = read_snapshot(connection, _KEYS).critics
    shown = critic.name + critic.host + critic.critic + critic.state
    assert shown.isprintable()
    assert critic.name == "w?]0;title?"


def test_a_worker_of_another_version_is_shown_with_what_it_says(connection: redis.Redis) -> None:
    connection.sadd(_KEYS.workers, "w1")
    connection.hset(_KEYS.worker("w1"), mapping={"state": "idle", "queries": "many", "uptime_s": "nan"})
    (critic,) = read_snapshot(connection, _KEYS).critics
    assert (critic.state, critic.queries, critic.uptime_s, critic.host) == ("idle", 0, 0.0, "")


# Rates.


def at(beat: float, **fields: Any) -> CriticState:
    return CriticState("w1", "idle", pid=42, beat=beat, uptime_s=beat - 1000, **fields)


def test_rates_are_those_between_two_heartbeats() -> None:
    first = with_rates(at(1010, queries=100, busy_s=5), None)
    assert (first.busy, first.queries_per_s) == (0.5, None)
    second = with_rates(at(1012, queries=160, busy_s=5.5), first)
    assert (second.busy, second.queries_per_s) == (0.25, 30.0)
    # No heartbeat in between: nothing new is known, and it is not a standstill.
    again = with_rates(at(1012, queries=160, busy_s=5.5), second)
    assert (again.busy, again.queries_per_s) == (0.25, 30.0)
    idle = with_rates(at(1013, queries=160, busy_s=5.5), again)
    assert (idle.busy, idle.queries_per_s) == (0.0, 0.0)


def test_a_long_batch_does_not_count_as_more_than_busy() -> None:
    first = with_rates(at(1010, busy_s=1), None)
    assert with_rates(at(1011, busy_s=9), first).busy == 1.0


def test_a_worker_that_started_anew_has_no_rate_yet() -> None:
    first = with_rates(at(1010, queries=100), None)
    assert with_rates(at(1012, queries=10), first).queries_per_s is None
    assert with_rates(replace(at(1012, queries=200), pid=43), first).queries_per_s is None


def test_a_worker_that_went_has_no_rate() -> None:
    first = with_rates(at(1010, queries=100), None)
    assert with_rates(CriticState("w1", "gone"), first).queries_per_s is None
    # Nor has one that comes back after it was taken for dead.
    assert with_rates(at(1012, queries=200), CriticState("w1", "gone", pid=42)).queries_per_s is None


def test_the_rate_of_all_is_the_sum(connection: redis.Redis) -> None:
    for name, queries in (("w1", 100), ("w2", 0)):
        describe_worker(connection, name, queries=queries, time=1000.0)
    first = read_snapshot(connection, _KEYS)
    assert first.queries_per_s is None
    describe_worker(connection, "w1", queries=150, time=1001.0)
    describe_worker(connection, "w2", queries=40, time=1002.0)
    describe_worker(connection, "w3", queries=500, time=1002.0)
    second = read_snapshot(connection, _KEYS, first)
    assert [critic.queries_per_s for critic in second.critics] == [50.0, 20.0, None]
    assert second.queries_per_s == 70.0


# Only reads.


def fill(connection: redis.Redis, client: CriticClient) -> None:
    """Some of everything, what is expired and abandoned among it: bait for anything that cleans up."""
    client.episode("open the drawer", load_rollouts("reference")[0].frames).push(load_rollouts("random")[0].frames)
    connection.zadd(_KEYS.open, {"crashed": 1})
    connection.hset(_KEYS.sizes, "crashed", 1000)
    describe_worker(connection)
    connection.rpush(_KEYS.claims("w1"), "job-1")
    connection.sadd(_KEYS.workers, "dead")
    connection.rpush(_KEYS.claims("dead"), "job-2")
    register_rq_worker(connection, "plain")
    register_rq_worker(connection, "ended", death="2026-01-01T00:01:00.000000Z")
    connection.sadd(_KEYS.rq_workers, "rq:worker:expired")
    enqueue(connection, "a")
    connection.rpush(_KEYS.rq_queue, "a job that is gone")
    connection.zadd("rq:failed:vlac", {"expired": 1})
    connection.zadd("rq:wip:vlac", {"abandoned": 1})
    for name in ("w1", "plain"):  # no key may expire by itself during the comparison
        connection.persist(f"rq:worker:{name}")
    connection.persist(_KEYS.worker("w1"))


def test_a_snapshot_changes_no_key(connection: redis.Redis, client: CriticClient) -> None:
    fill(connection, client)
    before = contents(connection)
    assert len(before) > 10
    read_snapshot(connection, _KEYS, read_snapshot(connection, _KEYS))
    after = contents(connection)
    assert {key: dump for key, (dump, _) in after.items()} == {key: dump for key, (dump, _) in before.items()}
    for key, (_, ttl_ms) in after.items():  # times to live run on; nothing prolonged, set or took one away
        earlier = before[key][1]
        assert ttl_ms == earlier == -1 or earlier - 60_000 < ttl_ms <= earlier, key


def commands_called(connection: redis.Redis) -> set[str]:
    stats: Any = connection.info("commandstats")
    return {name.removeprefix("cmdstat_") for name in stats}


def test_a_snapshot_sends_no_writing_command(connection: redis.Redis, client: CriticClient) -> None:
    fill(connection, client)
    before = connection.dbsize()
    connection.config_resetstat()
    snapshot: Snapshot = read_snapshot(connection, _KEYS, read_snapshot(connection, _KEYS))
    called = commands_called(connection)
    assert snapshot.critics, "nothing was read"
    assert "hgetall" in called
    details: Any = connection.command()
    for name in called:
        flags = details.get(name.partition("|")[0], {}).get("flags", [])
        assert not {"write", b"write"} & set(flags), name
        assert not any(part in name for part in _WRITES) or name == "config|resetstat", name
    assert connection.dbsize() == before


def test_a_snapshot_takes_two_round_trips(connection: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        describe_worker(connection, f"w{number}")
    trips = []
    execute = redis.client.Pipeline.execute
    monkeypatch.setattr(redis.client.Pipeline, "execute", lambda self: trips.append(1) or execute(self))
    monkeypatch.setattr(
        type(connection), "execute_command", lambda *_: pytest.fail("a round trip outside pipelines")
    )
    assert len(read_snapshot(connection, _KEYS).critics) == 5
    assert len(trips) == 2


# A real worker.


def test_a_real_worker_is_seen_at_work(workers: Workers, client: CriticClient, connection: redis.Redis) -> None:
    assert workers.start().poll() is None
    rollout = load_rollouts("reference")[0]
    first = until(lambda: (s := read_snapshot(connection, _KEYS)).critics and s)
    with client.episode(rollout.task, rollout.frames) as episode:
        for frame in rollout.frames[:4]:
            episode.push(frame)
            episode.ask_done().result()
    seen = until(lambda: (s := read_snapshot(connection, _KEYS, first)).critics[0].queries == 4 and s)
    (critic,) = seen.critics
    assert (critic.critic, critic.failures, critic.taken) == ("reference", 0, 0)
    assert critic.pid == workers.processes[0].pid
    assert 0 < critic.queries_per_s < 100
    assert critic.rss_bytes > 10 << 20
    assert seen.plain == ()


def test_a_real_plain_worker_has_no_critic_until_its_first_job(
    workers: Workers, client: CriticClient, connection: redis.Redis
) -> None:
    workers.start(worker_class=None)
    snapshot = read_snapshot(connection, _KEYS)
    assert ([plain.pid for plain in snapshot.plain], snapshot.critics) == ([workers.processes[0].pid], ())
    rollout = load_rollouts("reference")[0]
    with client.episode(rollout.task, rollout.frames) as episode:
        episode.push(rollout.frames[0])
        episode.ask_done().result()
        snapshot = read_snapshot(connection, _KEYS)
    assert snapshot.plain == ()
    assert [critic.parent for critic in snapshot.critics] == [workers_name(connection, workers.processes[0].pid)]


def workers_name(connection: redis.Redis, pid: int) -> str:
    """Name of the RQ worker with this process id."""
    keys: Any = connection.smembers(_KEYS.rq_workers)
    names = [
        key.decode().removeprefix("rq:worker:") for key in keys if int(connection.hget(key, "pid") or 0) == pid
    ]
    (name,) = names
    return name
