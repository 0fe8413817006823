"""Reading: what is read is what is there, in a fixed number of round trips, and nothing changes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from dashboards.reading import Reader
from tests.conftest import Workers, until
from tests.dashboards.redis_state import (
    KEYS,
    contents,
    describe_worker,
    enqueue,
    fail,
    histogram,
    open_episode,
    register_rq_worker,
)
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.commands.demo.rollouts import load_rollouts
from vlac_queue.gate import RolloutGate
from vlac_queue.metrics import PHASES
from vlac_queue.reading import EPISODES_SHOWN, FAILURES_KEPT
from vlac_queue.server import RedisServer


@pytest.fixture
def reader(server: RedisServer, connection: redis.Redis) -> Iterator[Reader]:
    yield Reader(VlacConfig(redis_url=server.url))


# What is there.


def test_an_empty_redis(reader: Reader) -> None:
    snapshot = reader.look().snapshot
    assert snapshot is not None
    assert snapshot.time == pytest.approx(time.time(), abs=60)
    assert (snapshot.workers, snapshot.plain, snapshot.listening) == ((), (), 0)
    assert (snapshot.queue.waiting, snapshot.queue.oldest_s, snapshot.queue.taken) == (0, None, 0)
    assert (snapshot.queue.failed, snapshot.queue.suspended) == (0, False)
    assert (snapshot.episodes.open, snapshot.episodes.frame_bytes, snapshot.episodes.limit_bytes) == (0, 0, 0)
    assert (snapshot.failed, snapshot.training.episodes, snapshot.training.done_rate) == ((), 0, None)


def test_the_server(reader: Reader, connection: redis.Redis) -> None:
    info: Any = connection.info()
    server = reader.read().redis
    assert (server.version, server.policy, server.max_bytes) == (info["redis_version"], "noeviction", 0)
    assert server.used_bytes > 100_000
    assert server.clients >= 1


def test_open_episodes_and_their_bytes(reader: Reader, client: CriticClient) -> None:
    frames = load_rollouts("random")[0].frames
    with client.episode("open the drawer") as one, client.episode("close the door") as two:
        one.push(frames[0])
        two.push(frames[:2])
        two.push(frames[2])
        episodes = reader.read().episodes
        assert (episodes.open, episodes.frame_bytes) == (2, one.sent_bytes + two.sent_bytes)
        assert episodes.limit_bytes == VlacConfig().max_pending_bytes
        told = {episode.task: episode for episode in episodes.untouched}
        assert told["close the door"].pushes == 2
        assert told["close the door"].frame_bytes == two.sent_bytes
        assert told["open the drawer"].id == one.id
        assert all(0 <= episode.untouched_s < 60 for episode in episodes.untouched)
        assert reader.read(episodes=0).episodes.untouched == ()
    assert reader.read().episodes.open == 0


def test_the_longest_untouched_episodes_come_first_and_expired_ones_do_not_count(
    reader: Reader, connection: redis.Redis
) -> None:
    for number in range(EPISODES_SHOWN + 5):
        open_episode(connection, f"e{number}", expires_s=3500 - number)
    open_episode(connection, "crashed", expires_s=-60)
    episodes = reader.read().episodes
    assert (episodes.open, len(episodes.untouched)) == (EPISODES_SHOWN + 5, EPISODES_SHOWN)
    first = episodes.untouched[0]
    assert (first.id, first.task, first.pushes) == (f"e{EPISODES_SHOWN + 4}", f"task of {first.id}", 2)
    assert (first.queries, first.frame_bytes) == (3, 1000)
    assert first.untouched_s == pytest.approx(100 + EPISODES_SHOWN + 4, abs=5)


def test_waiting_and_failed_jobs(reader: Reader, connection: redis.Redis) -> None:
    seconds, _ = connection.time()  # type: ignore[misc]
    since = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(seconds - 50))
    enqueue(connection, "a", enqueued_at=since)
    enqueue(connection, "b")
    connection.zadd("rq:failed:vlac", {"x": 1, "y": 2, "z": 3})
    connection.set("rq:suspended", 1)
    queue = reader.read().queue
    assert (queue.waiting, queue.failed, queue.suspended) == (2, 3, True)
    assert queue.oldest_s == pytest.approx(51, abs=3)


@pytest.mark.parametrize("fields", [{}, {"enqueued_at": "yesterday"}, {"enqueued_at": b"\xff"}], ids=str)
def test_a_job_that_does_not_say_since_when_it_waits(
    reader: Reader, connection: redis.Redis, fields: dict[str, Any]
) -> None:
    enqueue(connection, "a", **fields)
    queue = reader.read().queue
    assert (queue.waiting, queue.oldest_s) == (1, None)


def test_a_worker(reader: Reader, connection: redis.Redis) -> None:
    describe_worker(connection)
    connection.rpush(KEYS.claims("w1"), "job-1", "job-2")
    reading = reader.read()
    (worker,) = reading.workers
    info = worker.info
    assert info is not None
    assert (info.name, info.host, info.pid, info.state, info.device) == ("w1", "gpu-1", 42, "busy", "cuda:0")
    assert (info.critic, info.model, info.prompt, info.engine) == ("vlac", "/models/VLAC", "3fa9c1", "pt")
    assert (info.jobs, info.rejected_jobs, info.queries, info.failures, info.batches) == (10, 1, 120, 3, 16)
    assert (info.rss_bytes, info.accelerator_bytes, info.accelerator_limit_bytes) == (3 << 30, 6 << 30, 12 << 30)
    assert info.last_error == "ValueError: the model said 'banana'"
    assert set(worker.latency) == set(PHASES)
    assert (worker.taken, reading.queue.taken, reading.plain) == (2, 2, ())


def test_plain_workers_are_those_that_live_without_a_critic(reader: Reader, connection: redis.Redis) -> None:
    register_rq_worker(connection, "fresh")
    register_rq_worker(connection, "ended", death="2026-01-01T00:01:00.000000Z")
    register_rq_worker(connection, "serving")
    describe_worker(connection, "serving.99", parent="serving")
    connection.sadd(KEYS.rq_workers, "rq:worker:expired", "not-a-worker-key")
    snapshot = reader.look().snapshot
    assert snapshot is not None
    assert [(plain.name, plain.host, plain.pid) for plain in snapshot.plain] == [("fresh", "gpu-2", 7)]
    assert [(worker.name, worker.parent) for worker in snapshot.workers] == [("serving.99", "serving")]
    assert snapshot.listening == 2


def test_workers_of_another_queue_are_not_shown(server: RedisServer, connection: redis.Redis) -> None:
    describe_worker(connection)
    reading = Reader(VlacConfig(redis_url=server.url, queue="other")).read()
    assert (reading.workers, reading.plain) == ((), ())


def test_texts_on_redis_can_not_drive_the_terminal(reader: Reader, connection: redis.Redis) -> None:
    describe_worker(connection, "w\x1b]0;title\x07", host="\x1b[2J", critic=b"\xff\xfe", last_error="x\n\x1b[31m")
    open_episode(connection, "e\x9b31m")
    fail(connection, error="\x1b[2J", task="\x07")
    connection.hset(KEYS.totals, "audit/\x1b[2J", "1")
    snapshot = reader.look().snapshot
    assert snapshot is not None
    texts = json.dumps([repr(vars(snapshot.workers[0])), repr(snapshot.episodes), repr(snapshot.failed)])
    assert texts.isprintable() and r"\x1b" not in texts and r"\x07" not in texts and r"\x9b" not in texts
    assert all(name.isprintable() for name in snapshot.training.audit)
    assert snapshot.workers[0].name == "w?]0;title?"


def test_a_worker_of_another_version_is_shown_with_what_it_says(reader: Reader, connection: redis.Redis) -> None:
    connection.sadd(KEYS.workers, "w1")
    said = {"state": "idle", "queries": "many", "uptime_s": "nan", "latency_total": "what", "new_field": "x"}
    connection.hset(KEYS.worker("w1"), mapping=said)
    look = reader.look()
    assert look.snapshot is not None, look.error
    (worker,) = look.snapshot.workers
    assert (worker.state, worker.queries, worker.uptime_s, worker.host) == ("idle", 0, 0.0, "")


def test_failures_are_read_once_and_the_newest_come_first(reader: Reader, connection: redis.Redis) -> None:
    for number in range(FAILURES_KEPT + 3):
        fail(connection, frame=number)
    connection.xadd(KEYS.events, {"e": json.dumps({"kind": "outcome", "episode": "e1", "done": True})})
    for nonsense in ("[]", "{", '"text"', "[" * 100_000):
        connection.xadd(KEYS.events, {"e": nonsense})
    connection.xadd(KEYS.events, {"other": "field"})
    failed = reader.read().failed
    assert [each.frame for each in failed] == list(range(FAILURES_KEPT + 2, 2, -1))
    assert (failed[0].worker, failed[0].query, failed[0].task) == ("w1", "done", "open the drawer")
    assert failed[0].at == pytest.approx(time.time(), abs=60)
    fail(connection, frame=99)
    assert [each.frame for each in reader.read().failed][:2] == [99, FAILURES_KEPT + 2]
    assert reader.read().failed[0].frame == 99


def test_outcomes_of_training(reader: Reader, connection: redis.Redis) -> None:
    totals = {"episodes": 10, "done": 6, "masked": 2, "reward_sum": 6.8, "values": 2, "value_sum": 0.8,
              "audit/precision": 0.9, "audit/recall": "nan", "audit_at": 1000.5}  # fmt: skip
    connection.hset(KEYS.totals, mapping=totals)
    training = reader.read().training
    assert (training.done_rate, training.mean_value) == (0.75, 0.4)
    assert (training.audit, training.audit_at) == ({"precision": 0.9, "recall": None}, 1000.5)


# Redis' moods.


def test_a_redis_that_is_away_is_part_of_the_look() -> None:
    with RedisServer() as other:
        reader = Reader(VlacConfig(redis_url=other.url))
        assert reader.look().error == ""
        other.stop()
        look = reader.look()
        assert look.snapshot is None
        assert f"can't reach Redis at {other.url}" in look.error
        other.start()
        assert reader.look().error == ""


def test_a_wrong_password_is_told_from_a_redis_that_is_away() -> None:
    with RedisServer("--requirepass", "right") as server:
        for url in (server.url, server.url.replace("redis://", "redis://:wr0ng@")):
            error = Reader(VlacConfig(redis_url=url)).look().error
            assert "refuses this user" in error and error.endswith("to vlac-dashboard, or mend redis_url.")
            assert "wr0ng" not in error
        right = Reader(VlacConfig(redis_url=server.url.replace("redis://", "redis://:right@")))
        assert (right.look().error, right.url) == ("", server.url.replace("redis://", "redis://:***@"))


def test_a_key_of_the_wrong_kind_is_an_error_and_no_crash(reader: Reader, connection: redis.Redis) -> None:
    connection.set(KEYS.totals, "text")
    look = reader.look()
    assert look.snapshot is None
    assert "can't do what it was asked" in look.error


# Only reads, and not much.


def fill(connection: redis.Redis, client: CriticClient) -> None:
    """Some of everything, what is expired and abandoned among it: bait for anything that cleans up."""
    client.episode("open the drawer", load_rollouts("reference")[0].frames).push(load_rollouts("random")[0].frames)
    open_episode(connection, "crashed", expires_s=-60)
    describe_worker(connection)
    connection.rpush(KEYS.claims("w1"), "job-1")
    connection.sadd(KEYS.workers, "dead")
    connection.rpush(KEYS.claims("dead"), "job-2")
    register_rq_worker(connection, "plain")
    register_rq_worker(connection, "ended", death="2026-01-01T00:01:00.000000Z")
    connection.sadd(KEYS.rq_workers, "rq:worker:expired")
    enqueue(connection, "a")
    connection.rpush(KEYS.rq_queue, "a job that is gone")
    connection.zadd("rq:failed:vlac", {"expired": 1})
    connection.zadd("rq:wip:vlac", {"abandoned": 1})
    fail(connection)
    connection.hset(KEYS.totals, mapping={"episodes": 1})
    connection.persist(KEYS.worker("w1"))  # no key may expire by itself during the comparison


def test_looking_changes_no_key(reader: Reader, connection: redis.Redis, client: CriticClient) -> None:
    fill(connection, client)
    before = contents(connection)
    assert len(before) > 10
    assert reader.look().error == reader.look().error == ""
    after = contents(connection)
    assert {key: dump for key, (dump, _) in after.items()} == {key: dump for key, (dump, _) in before.items()}
    for key, (_, ttl_ms) in after.items():  # times to live run on; nothing prolonged, set or took one away
        earlier = before[key][1]
        assert ttl_ms == earlier == -1 or earlier - 60_000 < ttl_ms <= earlier, key


def test_looking_sends_no_command_that_writes_or_searches(
    reader: Reader, connection: redis.Redis, client: CriticClient
) -> None:
    fill(connection, client)
    reader.look()
    connection.config_resetstat()
    assert reader.look().snapshot is not None
    stats: Any = connection.info("commandstats")
    called = {name.removeprefix("cmdstat_") for name in stats} - {"config|resetstat"}
    assert {"hgetall", "xrange"} <= called
    assert not called & {"keys", "scan", "sscan", "hscan", "zscan", "eval", "lrange", "smismember"}
    details: Any = connection.command()
    for name in called:
        flags = {str(flag) for flag in details[name.partition("|")[0]]["flags"]}
        assert not any("write" in flag for flag in flags), name


def commands_of(
    reader: Reader, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, Counter[str]]:
    """Round trips of a look, and how often each command was sent."""
    trips: list[int] = []
    execute = redis.client.Pipeline.execute
    with monkeypatch.context() as patch:
        patch.setattr(
            redis.client.Pipeline,
            "execute",
            lambda self, **options: trips.append(len(self)) or execute(self, **options),
        )
        patch.setattr(
            redis.Redis, "execute_command", lambda *_, **__: pytest.fail("a round trip outside of pipelines")
        )
        assert reader.look().snapshot is not None
    connection.config_resetstat()
    assert reader.look().snapshot is not None
    stats: Any = connection.info("commandstats")
    return len(trips), Counter({name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()})


def test_a_look_costs_the_same_however_much_waits_or_failed(
    reader: Reader, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        describe_worker(connection, f"w{number}", ttl_ms=600_000)
        open_episode(connection, f"e{number}")
    enqueue(connection, "first")
    fail(connection)
    reader.look()
    trips, commands = commands_of(reader, connection, monkeypatch)
    assert trips == 3
    for start in range(0, 10_000, 1000):
        connection.rpush(KEYS.rq_queue, *(f"job-{n}" for n in range(start, start + 1000)))
    for start in range(0, 100_000, 5000):
        connection.zadd("rq:failed:vlac", {f"failed-{n}": n for n in range(start, start + 5000)})
    assert commands_of(reader, connection, monkeypatch) == (trips, commands)
    for number in range(5, 200):
        describe_worker(connection, f"w{number}", ttl_ms=600_000)
        open_episode(connection, f"e{number}")
    many_trips, many = commands_of(reader, connection, monkeypatch)
    assert many_trips == trips
    assert many["hgetall"] - commands["hgetall"] == 195  # a worker is a hash and a list
    assert sum(many.values()) - sum(commands.values()) <= 2 * 195 + 3 * (EPISODES_SHOWN - 5)
    snapshot = reader.look().snapshot
    assert snapshot is not None
    assert (len(snapshot.workers), snapshot.queue.waiting, snapshot.queue.failed) == (200, 10_001, 100_000)


# Real workers.


def test_a_real_worker_is_seen_at_work(reader: Reader, workers: Workers, client: CriticClient) -> None:
    workers.start()
    rollout = load_rollouts("reference")[0]
    until(lambda: (s := reader.look().snapshot) and s.workers)
    with RolloutGate(client, [rollout.task], references=[rollout.frames]) as gate:
        for step in range(1, 5):
            gate.observe(step, {0: rollout.frames[step - 1]})
        gate.settle()
    snapshot = until(
        lambda: (
            (s := reader.look().snapshot)
            and (s.workers[0].state, s.training.episodes) == ("idle", 1)
            and s.workers[0].queries >= 4
            and s
        )
    )
    (worker,) = snapshot.workers
    assert (worker.critic, worker.failures, worker.taken, worker.state) == ("reference", 0, 0, "idle")
    assert worker.pid == workers.processes[0].pid
    assert worker.rss_bytes > 10 << 20
    assert (snapshot.training.episodes, snapshot.plain) == (1, ())
    assert snapshot.latency["total"].count >= 4
    parts = [snapshot.latency[phase].p50_s for phase in PHASES[:-1]]
    assert all(part is not None and 0 <= part < 60 for part in parts)


def test_a_real_plain_worker_has_no_critic_until_its_first_job(
    reader: Reader, workers: Workers, client: CriticClient
) -> None:
    workers.start(worker_class=None)
    reading = reader.read()
    assert ([plain.pid for plain in reading.plain], reading.workers) == ([workers.processes[0].pid], ())
    name = reading.plain[0].name
    rollout = load_rollouts("reference")[0]
    with client.episode(rollout.task, rollout.frames) as episode:
        episode.push(rollout.frames[0])
        episode.ask_done().result()
        reading = until(lambda: (r := reader.read()).workers and r)
    assert reading.plain == ()
    assert [worker.info.parent for worker in reading.workers if worker.info] == [name]


def test_histogram_texts_are_what_workers_write(reader: Reader, connection: redis.Redis) -> None:
    describe_worker(connection, latency_total=histogram(0.1))
    reader.look()
    describe_worker(connection, latency_total=histogram(0.1, 5.0, 5.0), queries=122, time=time.time() + 1)
    until(lambda: (s := reader.look().snapshot) and s.latency["total"].count == 2)
    snapshot = reader.look().snapshot
    assert snapshot is not None
    assert snapshot.latency["total"].p50_s == pytest.approx(5.0, rel=0.2)
