"""The client against a real Redis and real workers."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import pickle
import subprocess
import sys
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
    ConfigError,
    CriticClient,
    CriticFailed,
    CriticTimeout,
    FrameError,
    NoWorkers,
    ProtocolError,
    QueueFull,
    RedisDenied,
    RedisFailed,
    RedisUnavailable,
    VlacConfig,
    VlacQueueError,
)
from vlac_queue.client import episode as episode_module
from vlac_queue.keys import Keys
from vlac_queue.server import RedisServer, free_port
from vlac_queue.store import EpisodeStore, Step


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
        # Up to a frame asked about before, whatever came since.
        episode.push(frame(51))
        (value,) = client.ask_value_up_to([second])
        assert value.result().values == pytest.approx((20.0, 40.0, 100.0))


def test_leaving_after_redis_stayed_away_does_not_wait_for_it_again() -> None:
    with RedisServer() as own, CriticClient(VlacConfig(redis_url=own.url, patience_s=60)) as client:
        began = time.monotonic()
        with pytest.raises(RedisUnavailable, match="gone"), client.episode("task"):
            own.stop()
            raise RedisUnavailable("gone")
        assert time.monotonic() - began < 30


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
        with pytest.raises(NoWorkers, match=r"VLAC_REDIS_URL=redis://\S+ vlac-queue worker .*--critic reference"):
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
    until(lambda: keys_of(connection) <= {f"vlac:vlac:client:{crashed.meta.client}".encode()})


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


@pytest.mark.parametrize("task", ["", "   ", "x" * 2001, None, "open \ud800", "caf\udce9"])
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


def test_a_reference_of_many_episodes_is_read_and_hashed_once(
    client: CriticClient, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    file = tmp_path / "success.npz"
    np.savez(file, frames=run)
    work: list[str] = []
    for module, name in (("numpy", "load"), ("hashlib", "sha256")):
        original = getattr(importlib.import_module(module), name)

        def counted(*arguments: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
            work.append(_name)
            return _original(*arguments, **options)

        monkeypatch.setattr(f"{module}.{name}", counted)

    def opened(source: Any) -> set[str]:
        work.clear()
        episodes = client.episodes(["task"] * 64, [source] * 64)
        client.close_many(episodes)
        return {episode.meta.reference for episode in episodes}

    of_array = opened(run)
    assert work == ["sha256"]
    assert opened(str(file)) == of_array and work == ["load", "sha256"]
    assert opened(file) == of_array and work == []
    np.savez(file, frames=run[::-1])
    assert opened(file) != of_array and work == ["load", "sha256"]
    run[0] = 0  # a caller may fill the same array anew
    assert opened(run) != of_array


def test_a_url_in_place_of_a_config_is_refused_with_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"VlacConfig\(redis_url=\.\.\.\)"):
        CriticClient("redis://localhost:6379/0")  # type: ignore[arg-type]


def test_a_failure_that_the_critic_returned_is_one_sentence(client: CriticClient, workers: Workers) -> None:
    workers.start("reference")
    until(workers.described)
    with (
        client.episode("open the drawer") as episode,
        pytest.raises(CriticFailed, match="--reference FILE") as failed,
    ):
        episode.observe(np.zeros((8, 8, 3), np.uint8)).result()
    assert "\n" not in str(failed.value)


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
        with pytest.raises(CriticTimeout, match=r"1 worker for [01] waiting job"):
            pending.result(timeout=0.2)
        assert not pending.done()
        gate.touch()
        assert pending.result().score == 0.2


def test_a_timeout_of_zero_looks_once(client: CriticClient, worker: Workers, connection: redis.Redis) -> None:
    with client.episode("task") as episode:
        pending = episode.observe(frame(51))
        until(lambda: connection.exists(f"vlac:vlac:client:{client.id}:answers"))
        assert pending.result(timeout=0).score == 0.2


@pytest.mark.slow
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
        # The worker's clock follows Redis' to some milliseconds.
        until(lambda: connection.time()[0] > pending.query.deadline)
        gate.touch()
        first_job = pending.job
        assert pending.result(timeout=20).done is False
        assert pending.job != first_job
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


def answer_of(query: Any, **fields: Any) -> str:
    """An answer as a worker writes it, with these fields changed."""
    right = {"id": query.id, "kind": "done", "done": True, "score": 0.5, "frame": 0, "critic": ["c", "", ""]}
    return json.dumps(right | fields)


def test_an_answer_that_cannot_be_read_fails_its_own_query(
    client: CriticClient, worker: Workers, connection: redis.Redis, tmp_path: Any, caplog: Any
) -> None:
    gate, stream = tmp_path / "gate", f"vlac:vlac:client:{client.id}:answers"
    bad: dict[str, Any] = {
        "expected a finite number": lambda query: answer_of(query, score="0.5"),
        "is not of this protocol": lambda query: answer_of(query, done=1),
        "not JSON": lambda query: "{",
        "not UTF-8": lambda query: b'{"id": "\xff"}',
        "asked for 'done'": lambda query: answer_of(query, kind="value", values=[1.0], critics=[]),
        "for query 'other-1'": lambda query: answer_of(query, id="other-1"),
    }
    with client.episode(f"hold {gate}") as held:
        good = held.observe(frame(51))
        until((tmp_path / "gate.begun").exists)
        pendings = [held.observe(frame(51)) for _ in bad]
        connection.xadd(stream, {b"\xff": b"\xff", b"@": b"\xff"})
        for pending, wrong in zip(pendings, bad.values(), strict=True):
            connection.xadd(stream, {pending.query.id: wrong(pending.query)})
        for pending, message in zip(pendings, bad, strict=True):
            with pytest.raises(ProtocolError, match=f"about frame .* is unusable: .*{message}"):
                pending.result(timeout=5)
        assert "names no query" in caplog.text
        surrogates = held.observe(frame(51))
        failure = {"kind": "failure", "message": "no file caf\udce9", "traceback": "\ud800"}
        connection.xadd(stream, {surrogates.query.id: answer_of(surrogates.query, **failure)})
        with pytest.raises(CriticFailed) as failed:
            surrogates.result(timeout=5)
        assert "caf\\udce9" in str(failed.value).encode().decode()
        # Without news, it stands with its episode only.
        silent = held.observe(frame(51))
        connection.hset(f"vlac:vlac:episode:{held.id}:queries", silent.query.id, b"\xff")
        with pytest.raises(ProtocolError, match="not UTF-8"):
            silent.result(timeout=10)
        gate.touch()
        assert good.result().score == 0.2


def set_ahead(connection: redis.Redis, client: CriticClient) -> None:
    """Redis' clock was an hour ahead when the client read its stream last, and is right from now on."""
    ahead = int((time.time() + 3600) * 1000)
    connection.xadd(f"vlac:vlac:client:{client.id}:answers", {"@": "worker"}, id=f"{ahead}-0")


def test_a_clock_of_redis_that_was_set_back_delays_no_answer(
    client: CriticClient, worker: Workers, connection: redis.Redis
) -> None:
    with client.episode("task") as episode:
        set_ahead(connection, client)
        assert episode.observe(frame(51)).result().score == 0.2
    with client.episode("task") as episode:
        for _ in range(3):
            pending = episode.observe(frame(51))
            until(pending.done, seconds=1)
        # The stream may also go by itself: evicted, or by its expiry.
        set_ahead(connection, client)
        assert episode.observe(frame(51)).result().score == 0.2
        connection.delete(f"vlac:vlac:client:{client.id}:answers")
        until(episode.observe(frame(51)).done, seconds=10)
        until(episode.observe(frame(51)).done, seconds=1)


def test_answers_that_were_trimmed_unread_are_found(
    client: CriticClient, worker: Workers, connection: redis.Redis
) -> None:
    with client.episode("task") as episode:
        pendings = [episode.observe(frame(51)) for _ in range(30)]
        answers: Any = lambda: connection.hvals(f"vlac:vlac:episode:{episode.id}:queries")  # noqa: E731
        until(lambda: all(answer.startswith(b"{") for answer in answers()))
        connection.xtrim(f"vlac:vlac:client:{client.id}:answers", maxlen=2)
        until(lambda: all(pending.done() for pending in pendings), seconds=10)


def test_one_look_finds_all_that_was_lost(
    client: CriticClient, workers: Workers, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlac_queue.client.recovery._LOOK_UP_S", 0.5)
    workers.start(NAME, VLAC_MAX_BATCH="1")
    gate = tmp_path / "gate"
    with client.episode(f"hold {gate}") as held, client.episode("task") as episode:
        held.observe(frame(51))
        until((tmp_path / "gate.begun").exists)
        pendings = [episode.observe(frame(51)) for _ in range(5)]
        command = [sys.executable, "-m", "rq.cli", "empty", "vlac", "--url", client.config.redis_url]
        subprocess.run(command, check=True, capture_output=True)
        gate.touch()
        began = time.monotonic()
        assert [pending.result().score for pending in pendings] == [0.2] * 5
        # Each is asked again once it was nowhere five times.
        assert time.monotonic() - began < 12


def in_child(client: CriticClient, parents: Any, waiting: Any, together: Any, results: Any) -> None:
    """What a forked child sees and does; the parent asks at the same time."""
    refused = []
    for misuse in (lambda: parents.push(frame(1)), parents.ask_done, waiting.done, waiting.result):
        with pytest.raises(ProtocolError, match="before this process was forked") as error:
            misuse()
        refused.append(str(error.value))
    together.wait()
    began = time.monotonic()
    with client, client.episode("task") as episode, parents:
        score = episode.observe(frame(102)).result().score
        took_s = time.monotonic() - began
    results.put((client.id, score, took_s, client.stats.queries))


def test_a_client_begins_anew_in_a_forked_child(client: CriticClient, worker: Workers, tmp_path: Any) -> None:
    gate = tmp_path / "gate"
    context = multiprocessing.get_context("fork")
    together, results = context.Barrier(2), context.Queue()
    with client.episode("task") as episode, client.episode(f"hold {gate}") as held:
        episode.observe(frame(51)).result()
        waiting = held.observe(frame(153))
        until((tmp_path / "gate.begun").exists)
        with client._lock:  # as another thread may hold it
            arguments = (client, episode, waiting, together, results)
            process = context.Process(target=in_child, args=arguments, daemon=True)
            process.start()
        gate.touch()
        together.wait()
        began = time.monotonic()
        assert episode.observe(frame(204)).result().score == 0.8
        assert time.monotonic() - began < 1
        child, score, took_s, queries = results.get(timeout=20)
        assert child != client.id and (score, queries) == (0.4, 1) and took_s < 1
        process.join()
        assert process.exitcode == 0
        # The child closed what it could, and everything here goes on.
        assert episode.ask_value().result().values == pytest.approx((20.0, 80.0))
        assert waiting.result().score == 0.6


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
            with pytest.raises(NoWorkers, match="VLAC_REDIS_URL=redis://:PASSWORD@127") as missing:
                client.ping()
        bad = replace(good, redis_url=f"redis://:wrong-{secret}@127.0.0.1:{port}/0")
        with CriticClient(bad) as client, pytest.raises(RedisDenied, match="VLAC_REDIS_PASSWORD_FILE") as refused:
            client.ping()
    with CriticClient(good) as client, pytest.raises(RedisUnavailable, match="start redis-server") as away:
        client.ping()
    for caught in (missing, refused, away):
        assert secret not in str(caught.value) and "127.0.0.1" in str(caught.value)


@pytest.mark.slow
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
        assert send(connection, Step(episode.id, "", 0, stored[0])) is None
        assert connection.llen(f"vlac:vlac:episode:{episode.id}:frames") == 1
        assert isinstance(send(connection, Step(episode.id, "", 0, b"something else")), ProtocolError)


def send(connection: redis.Redis, step: Step) -> VlacQueueError | None:
    """What becomes of one step."""
    (error,) = EpisodeStore(connection, Keys("vlac"), ttl_s=60).step([([step], [])], max_bytes=10**9)
    assert not isinstance(error, redis.RedisError)
    return error


def test_the_caller_may_reuse_its_array(client: CriticClient, worker: Workers) -> None:
    buffer = np.zeros((64, 64, 3), np.uint8)
    with client.episode("task") as episode:
        for red in (51, 102, 255):
            buffer[0, 0, 0] = red
            episode.push(buffer)
            assert episode.ask_done().result().score == red / 255


def test_frames_of_another_size_are_refused_and_the_episode_goes_on(client: CriticClient, worker: Workers) -> None:
    with client.episode("task") as episode:
        episode.push(frame(51, side=8))
        for push in (episode.push, episode.observe):
            with pytest.raises(FrameError, match="8x8 pixels and these are 16x16"):
                push(frame(102, side=16))
        assert episode.frames == 1
        episode.push(frame(102, side=8))
        assert episode.ask_value().result().values == pytest.approx((20.0, 40.0))


def test_ctrl_c_in_the_middle_of_a_step_spoils_no_episode(client: CriticClient, worker: Workers) -> None:
    episodes = client.episodes(["task"] * 48)
    client.observe_many([(episode, frame(1)) for episode in episodes])
    # The third of three groups is about to be encoded: the first two are with Redis, or on their way.
    original, encoded = episode_module.encode, iter(range(100))

    def interrupted(*args: Any, **kwargs: Any) -> bytes:
        if next(encoded) == 40:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episode_module, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.observe_many([(episode, frame(51)) for episode in episodes])
    for pending in client.observe_many([(episode, frame(102)) for episode in episodes]):
        assert pending.result(20).score == 0.4
    values = client.ask_value_many(episodes)
    # What was on its way counts as pushed; what was not begun does not.
    assert {len(pending.result(20).values) for pending in values} == {3, 2}
    client.close_many(episodes)


def test_ctrl_c_stays_ctrl_c_while_redis_is_away(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with RedisServer(port=port) as server:
        client = CriticClient(VlacConfig(redis_url=server.url))
        episode = client.episode("task")
        episode.push(frame(1))
    with pytest.raises(KeyboardInterrupt), client, episode:
        raise KeyboardInterrupt
    assert episode.closed and "expire by themselves" in caplog.text


def test_closing_one_episode_leaves_the_answers_of_others(
    client: CriticClient, worker: Workers, connection: redis.Redis
) -> None:
    first, second = client.episodes(["task", "task"])
    first.push(frame(1))
    second.push(frame(51))
    assert not first.ask_done().result(20).done
    first.close()
    pending = second.ask_done()
    assert pending.result(20).score == 0.2
    assert connection.exists(f"vlac:vlac:client:{client.id}:answers")
    second.close()
    assert not connection.keys(f"vlac:vlac:client:{client.id}*")


def test_ctrl_c_between_a_command_and_its_reply_gives_it_to_no_other(
    client: CriticClient, worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    episode = client.episode("task")
    pending = episode.observe(frame(51))
    read = redis.Redis.parse_response

    def interrupted(self: Any, connection: Any, command: str, **options: Any) -> Any:
        if command == "XREAD":
            raise KeyboardInterrupt
        return read(self, connection, command, **options)

    with monkeypatch.context() as patch:
        patch.setattr(redis.Redis, "parse_response", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.wait([pending])
    assert pending.result(20).score == 0.2
    assert episode.observe(frame(102)).result(20).score == 0.4
    episode.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_anywhere_in_the_bookkeeping_loses_nothing(client: CriticClient, worker: Workers) -> None:
    """As a signal's handler would, at each call and return of our own code in turn."""
    episode = client.episode("task")
    for place in range(0, 400, 3):
        calls, known = iter(range(1_000_000)), episode.frames

        def interrupt(code: Any, event: str, argument: Any, place: int = place, calls: Any = calls) -> None:
            ours = "/vlac_queue/" in code.f_code.co_filename and event in ("call", "return")
            if ours and next(calls) == place:
                sys.setprofile(None)
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            sys.setprofile(interrupt)
            try:
                episode.observe(frame(51)).result(20)
            finally:
                sys.setprofile(None)
        assert episode.frames in (known, known + 1)
    assert episode.observe(frame(102)).result(20).score == 0.4
    assert len(episode.ask_value().result(20).values) == episode.frames
    episode.close()


def test_a_key_of_a_wrong_type_spoils_its_episode_alone(
    client: CriticClient, worker: Workers, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = client.episodes(["task"] * 3)
    bad = Keys("vlac").episode(episodes[1].id)
    connection.set(bad.frames, "not a list")
    first, failed, last = client.observe_each([(episode, frame(51)) for episode in episodes])
    assert isinstance(failed, RedisFailed) and not isinstance(first, Exception) and not isinstance(last, Exception)
    assert first.result(20).score == last.result(20).score == 0.2
    connection.delete(bad.frames)
    assert all(
        pending.result(20).score == 0.4 for pending in client.observe_many([(e, frame(102)) for e in episodes])
    )
    # And when it is looked for, those of others are found.
    monkeypatch.setattr("vlac_queue.client.recovery._LOOK_UP_S", 0)
    pendings = client.ask_done_many(episodes)
    connection.delete(bad.queries)
    connection.set(bad.queries, "not a hash")
    client.poll(pendings)
    assert pendings[0].result(20).score == pendings[2].result(20).score == 0.4
    client.close_many(episodes)
