"""The client against a real Redis and real workers."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis

from tests.conftest import Workers, until
from tests.workers.critics import NAME, frame
from vlac_queue import (
    CriticClient,
    CriticFailed,
    CriticTimeout,
    FrameError,
    NoWorkers,
    ProtocolError,
    QueueFull,
    RedisUnavailable,
    VlacConfig,
    VlacQueueError,
)
from vlac_queue.server import RedisServer, free_port
from vlac_queue.store import Step


@pytest.fixture
def worker(workers: Workers) -> Workers:
    workers.start(NAME)
    return workers


def keys_of(connection: redis.Redis) -> set[bytes]:
    return {key for key in connection.keys("vlac:*") if b":worker" not in key}  # type: ignore[union-attr]


def test_frames_in_verdicts_out(client: CriticClient, worker: Workers) -> None:
    with client.episode("open the drawer") as episode:
        episode.push(frame(51))
        first = episode.ask_done()
        episode.push(np.stack([frame(102), frame(255)]))
        second = episode.ask_done()
        assert (second.result().done, second.result().score, second.result().frame) == (True, 1.0, 2)
        assert (first.result().done, first.result().score, first.result().frame) == (False, 0.2, 0)
        assert first.done() and first.latency_s > 0
        assert episode.ask_value().result().values == pytest.approx((20.0, 40.0, 100.0))


def test_a_closed_episode_leaves_nothing_on_redis(
    client: CriticClient, worker: Workers, connection: redis.Redis
) -> None:
    reference = np.stack([frame(0), frame(255)])
    with client.episode("task", reference) as first, client.episode("task", reference) as second:
        for episode in (first, second):
            episode.push(frame(1))
            episode.ask_done().result()
        assert sum(b":reference:" in key and not key.endswith(b":users") for key in keys_of(connection)) == 1
    # The answer comes before its job is finished.
    until(lambda: not keys_of(connection) and not connection.keys("rq:job:*"))


def test_every_key_of_an_episode_expires(client: CriticClient, worker: Workers, connection: redis.Redis) -> None:
    with client.episode("task", np.stack([frame(0), frame(255)])) as episode:
        episode.push(frame(1))
        episode.ask_done().result()
        mine = {key for key in keys_of(connection) if b":episode:" in key or b":reference:" in key}
        assert len(mine) >= 4
        assert all(0 < connection.ttl(key) <= client.config.episode_ttl_s for key in mine)  # type: ignore[operator]


def test_many_episodes_ask_in_one_job(client: CriticClient, worker: Workers) -> None:
    episodes = [client.episode(f"task {index}") for index in range(40)]
    client.push_many([(episode, frame(index)) for index, episode in enumerate(episodes)])
    pendings = client.ask_done_many(episodes)
    client.wait(pendings)
    assert [round(pending.verdict().score * 255) for pending in pendings] == list(range(40))
    values = client.ask_value_many(episodes)
    client.wait(values)
    assert len(values) == 40 and all(len(each.verdict().values) == 1 for each in values)
    client.close_many(episodes)


def test_no_workers_is_said_at_once(client: CriticClient) -> None:
    with client.episode("task") as episode:
        episode.push(frame(1))
        with pytest.raises(NoWorkers, match="rq worker vlac --with-scheduler"):
            episode.ask_done()
    with pytest.raises(NoWorkers):
        client.ping()


def test_a_full_queue_stores_nothing_and_takes_frames_again_after_a_close(
    server: RedisServer, connection: redis.Redis
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    with CriticClient(VlacConfig(redis_url=server.url, max_pending_bytes=5000)) as client:
        first, second = client.episode("task"), client.episode("task")
        first.push(noise[0])
        with pytest.raises(QueueFull, match="max_pending_bytes"):
            second.push(noise[1])
        assert second.frames == 0 and not connection.exists(f"vlac:vlac:episode:{second.id}:frames")
        first.close()
        second.push(noise[1])
        assert second.frames == 1


def test_episodes_of_a_crashed_rollout_give_their_bytes_back(server: RedisServer, connection: redis.Redis) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    config = VlacConfig(redis_url=server.url, max_pending_bytes=5000, episode_ttl_s=1)
    crashed = CriticClient(config).episode("task")
    crashed.push(noise)
    with CriticClient(replace(config, episode_ttl_s=60)) as client, client.episode("task") as episode:

        def pushed() -> bool:
            try:
                episode.push(noise)
            except QueueFull:
                return False
            return True

        until(pushed)
    # The crashed client counts as gone only later.
    until(lambda: keys_of(connection) <= {f"vlac:vlac:client:{crashed._client.id}".encode()})


def test_redis_out_of_memory_is_a_full_queue(server: RedisServer) -> None:
    with (
        RedisServer("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as small,
        CriticClient(VlacConfig(redis_url=small.url, patience_s=0)) as client,
    ):
        episode = client.episode("task")
        noise = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), np.uint8)
        with pytest.raises(QueueFull, match="maxmemory"):
            for _ in range(8):
                episode.push(noise)
        episode.close()


def test_ids_are_unique_among_open_episodes(client: CriticClient, worker: Workers) -> None:
    with client.episode("task", id="run-1") as episode:
        episode.push(frame(51))
        assert episode.ask_done().result().score == 0.2
        with pytest.raises(ProtocolError, match="open already"):
            client.episode("task", id="run-1")
    # The same id again: nothing of the first may show.
    with client.episode("task", id="run-1") as episode:
        episode.push(frame(102))
        assert episode.ask_done().result().score == 0.4
    with pytest.raises(ProtocolError, match="episode id"):
        client.episode("task", id="a:b")


@pytest.mark.parametrize("task", ["", "   ", "x" * 2001, None])
def test_a_task_needs_words(client: CriticClient, task: Any) -> None:
    with pytest.raises(ProtocolError, match="a task must be"):
        client.episode(task)


def test_misuse_is_named(client: CriticClient, worker: Workers) -> None:
    episode = client.episode("task")
    with pytest.raises(FrameError, match="no frames yet"):
        episode.ask_done()
    with pytest.raises(FrameError, match="uint8"):
        episode.push(np.zeros((4, 4, 3)))
    with pytest.raises(ProtocolError, match="twice"):
        client.push_many([(episode, frame(1)), (episode, frame(2))])
    episode.push(frame(1))
    pending = episode.ask_done()
    episode.close()
    episode.close()
    with pytest.raises(ProtocolError, match="closed"):
        episode.push(frame(1))
    with pytest.raises(ProtocolError, match="closed"):
        pending.result()
    with pytest.raises(TypeError, match="pickle the client"):
        pickle.dumps(episode)


def test_a_reference_file_without_frames_is_named(client: CriticClient, tmp_path: Any) -> None:
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    np.savez(tmp_path / "whole.npz", frames=np.zeros((4, 8, 8, 3), np.uint8))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    np.save(tmp_path / "array.npy", np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(FrameError, match=r"no such file: .*missing\.npz"):
        client.episode("task", tmp_path / "missing.npz")
    for name in ("empty.npz", "other.npz", "cut.npz", "array.npz"):
        with pytest.raises(FrameError, match=f"{name} holds no frames"):
            client.episode("task", tmp_path / name)


def test_a_reference_can_be_a_file(client: CriticClient, workers: Workers, tmp_path: Any) -> None:
    workers.start("reference")
    run = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (0, 60, 120, 180, 240)])
    np.savez(tmp_path / "run.npz", frames=run)
    np.save(tmp_path / "run.npy", run)
    for name in ("run.npz", "run.npy"):
        with client.episode("task", tmp_path / name) as episode:
            episode.push(run[2])
            assert episode.ask_done().result().score == 0.5


def test_the_critics_failure_is_typed_and_brings_the_traceback(client: CriticClient, worker: Workers) -> None:
    with client.episode("refuse") as episode:
        episode.push(frame(1))
        with pytest.raises(CriticFailed, match="banana") as caught:
            episode.ask_done().result()
        assert "ValueError" in caught.value.traceback
        assert pickle.loads(pickle.dumps(caught.value)).traceback == caught.value.traceback  # noqa: S301


def test_a_late_answer_can_still_be_had(client: CriticClient, worker: Workers, tmp_path: Any) -> None:
    gate = tmp_path / "gate"
    with client.episode(f"hold {gate}") as episode:
        episode.push(frame(51))
        pending = episode.ask_done()
        with pytest.raises(CriticTimeout, match="1 worker for 0 waiting jobs"):
            pending.result(timeout=0.2)
        assert not pending.done()
        gate.touch()
        assert pending.result().score == 0.2


def test_a_query_past_its_deadline_is_dropped_and_asked_again_by_who_still_waits(
    server: RedisServer, worker: Workers, connection: redis.Redis, tmp_path: Any
) -> None:
    gate = tmp_path / "gate"
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=0.5)) as client:
        holding, late = client.episode(f"hold {gate}"), client.episode("task")
        for episode in (holding, late):
            episode.push(frame(1))
        first = holding.ask_done()
        until((tmp_path / "gate.begun").exists)
        pending = late.ask_done()
        with pytest.raises(CriticTimeout):
            pending.result()
        gate.touch()
        first_job = pending._job
        assert pending.result(timeout=20).done is False
        assert pending._job != first_job
        assert first.result(timeout=20).done is False


def ask_once(client: CriticClient, results: Any) -> None:
    with client.episode("task") as episode:
        episode.push(frame(51))
        results.put(episode.ask_done().result().score)


def test_a_client_pickles_into_another_process(client: CriticClient, worker: Workers) -> None:
    client.ping()  # has connected before
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=ask_once, args=(client, results))
    process.start()
    assert results.get(timeout=30) == 0.2
    process.join()


def test_threads_share_a_client(client: CriticClient, worker: Workers) -> None:
    scores: dict[int, list[float]] = {}

    def rollout(index: int) -> None:
        with client.episode(f"task {index}") as episode:
            for step in range(10):
                episode.push(frame(10 * index + step))
                scores.setdefault(index, []).append(round(episode.ask_done().result().score * 255))

    threads = [threading.Thread(target=rollout, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == {index: [10 * index + step for step in range(10)] for index in range(8)}


def test_nobody_sees_the_password() -> None:
    secret = "s3cret-word"
    port = free_port()
    with RedisServer("--requirepass", secret, port=port):
        good = VlacConfig(redis_url=f"redis://:{secret}@127.0.0.1:{port}/0")
        with CriticClient(good) as client, client.episode("task"):
            assert secret not in repr(client)
            with pytest.raises(NoWorkers) as missing:
                client.ping()
        bad = replace(good, redis_url=f"redis://:wrong-{secret}@127.0.0.1:{port}/0")
        with CriticClient(bad) as client, pytest.raises(RedisUnavailable) as refused:
            client.ping()
    with CriticClient(good) as client, pytest.raises(RedisUnavailable, match="start redis-server") as away:
        client.ping()
    for caught in (missing, refused, away):
        assert secret not in str(caught.value) and "127.0.0.1" in str(caught.value)


def test_after_a_restart_of_redis_unkept_episodes_fail_and_new_ones_work(
    workers: Workers, connection: Any
) -> None:
    port = free_port()
    settings: dict[str, Any] = {"patience_s": 0, "keep_frames_bytes": 0, "timeout_s": 20}
    restarted = Workers(f"redis://127.0.0.1:{port}/0", redis.Redis(port=port), workers._folder)
    client = CriticClient(VlacConfig(redis_url=f"redis://127.0.0.1:{port}/0", **settings))
    try:
        with RedisServer(port=port):
            restarted.start(NAME)
            until(restarted.described)  # it has begun to serve
            lost = client.episode("task")
            lost.push(frame(1))
        with pytest.raises(RedisUnavailable, match="start redis-server"):
            lost.push(frame(2))
        with RedisServer(port=port):
            with pytest.raises(RedisUnavailable, match="are gone"):
                lost.push(frame(2))
            until(lambda: _pings(client))  # the worker comes back by itself
            with client.episode("task") as episode:
                episode.push(frame(51))
                assert episode.ask_done().result().score == 0.2
            client.close()
            restarted.stop()
    finally:
        restarted.stop()


def test_an_answer_lost_with_redis_is_no_long_silence(worker: Workers, tmp_path: Any) -> None:
    port = free_port()
    client = CriticClient(VlacConfig(redis_url=f"redis://127.0.0.1:{port}/0", timeout_s=60, keep_frames_bytes=0))
    started = Workers(f"redis://127.0.0.1:{port}/0", redis.Redis(port=port), tmp_path)
    gate = tmp_path / "gate"
    with RedisServer(port=port):
        started.start(NAME)
        until(started.described)
        episode = client.episode(f"hold {gate}")
        episode.push(frame(1))
        pending = episode.ask_done()
    began = time.monotonic()
    with RedisServer(port=port), pytest.raises(RedisUnavailable, match="are gone"):
        pending.result()
    assert time.monotonic() - began < 30
    gate.touch()
    started.stop()


def _pings(client: CriticClient) -> bool:
    try:
        return bool(client.ping())
    except (NoWorkers, RedisUnavailable):
        return False


def test_sending_a_push_again_changes_nothing(client: CriticClient, connection: redis.Redis) -> None:
    with client.episode("task") as episode:
        episode.push(frame(1))
        stored: Any = connection.lrange(f"vlac:vlac:episode:{episode.id}:frames", 0, -1)
        assert send(client, Step(episode.id, "", 0, stored[0])) is None
        assert connection.llen(f"vlac:vlac:episode:{episode.id}:frames") == 1
        assert isinstance(send(client, Step(episode.id, "", 0, b"something else")), ProtocolError)


def send(client: CriticClient, step: Step) -> VlacQueueError | None:
    """What becomes of one step."""
    (error,) = client._store.step([([step], [])], max_bytes=10**9)
    assert not isinstance(error, redis.RedisError)
    return error


def test_the_caller_may_reuse_its_array(client: CriticClient, worker: Workers) -> None:
    buffer = np.zeros((64, 64, 3), np.uint8)
    with client.episode("task") as episode:
        for red in (51, 102, 255):
            buffer[0, 0, 0] = red
            episode.push(buffer)
            assert episode.ask_done().result().score == red / 255


def test_frames_may_change_size_for_done_but_not_for_values(client: CriticClient, worker: Workers) -> None:
    with client.episode("task") as episode:
        episode.push(frame(51, side=8))
        episode.push(frame(102, side=16))
        assert episode.ask_done().result().score == 0.4
        with pytest.raises(CriticFailed, match="several sizes"):
            episode.ask_value().result()
