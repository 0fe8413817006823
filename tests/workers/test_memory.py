"""Queries that need more memory than a worker may take, or can't be prepared otherwise: each fails alone."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import redis

from tests.conftest import Workers, until
from tests.vlac_queue.test_frames import make_frames
from tests.workers.critics import NAME, frame
from tests.workers.test_decoded import ask as asked
from tests.workers.test_decoded import open_queries
from tests.workers.test_worker import ask, hold
from vlac_queue import CriticClient, CriticFailed
from vlac_queue.keys import Keys
from vlac_queue.messages import Failure
from workers import memory
from workers.critics import CriticQuery
from workers.preparing import Intake
from workers.store import WorkerStore

#: One batch of 75 MB, which packs to 300 kB.
LARGE = np.zeros((24, 1024, 1024, 3), np.uint8)


def limit_memory(pid: int, more: int) -> None:
    """Lets a process take `more` bytes of address space, and no more."""
    most = psutil.Process(pid).memory_info().vms + more
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))


def test_what_needs_more_memory_than_there_is_fails_alone(
    client: CriticClient, workers: Workers, connection: redis.Redis, tmp_path: Path
) -> None:
    worker = workers.start(NAME)
    until(lambda: [each["state"] for each in workers.described()] == ["idle"])
    limit_memory(worker.pid, 160 << 20)
    held, gate = hold(client, tmp_path)
    before, long, referring = ask(client, "task", 51), client.episode("task"), client.episode("task", LARGE)
    for _ in range(4):
        long.push(LARGE)
    referring.push(frame(51))
    mistyped = client.episode("task", np.stack([frame(0), frame(1)]))
    mistyped.push(frame(51))
    key = Keys("vlac").reference(mistyped.meta.reference)
    connection.delete(key)
    connection.set(key, "a stranger's")
    bad = [long.ask_value(), referring.ask_done(), mistyped.ask_done()]
    after = ask(client, "task", 102)
    gate.touch()
    assert (before.result().score, after.result().score, held.result().score) == (0.2, 0.4, 0.2)
    reasons = ("frames would take .* MiB .* RLIMIT_AS of its process leaves", "frames would take", "WRONGTYPE")
    for pending, reason in zip(bad, reasons, strict=False):
        with pytest.raises(CriticFailed, match=reason):
            pending.result()
    assert worker.poll() is None


@pytest.mark.slow
def test_history_bytes_bound_all_that_a_worker_keeps(client: CriticClient, workers: Workers) -> None:
    """100 MB of episodes and 100 MB of references in 32 MiB; 24 MiB beside them are for buffers and the critic."""
    limit, beside = 32 << 20, 24 << 20
    worker = workers.start("reference", VLAC_HISTORY_BYTES=str(limit))
    reference = make_frames("random", 2, 256, 256)
    with client.episode("task", reference) as episode:
        episode.push(reference[0])
        assert episode.ask_done().result()
    idle = psutil.Process(worker.pid).memory_info().rss
    frames = make_frames("random", 8, 256, 256)
    for index in range(8):
        references = [make_frames("random", 16, 256, 256, seed=4 * index + each) for each in range(4)]
        episodes = client.episodes(["task"] * 8, references=references * 2)
        for frame_ in frames:
            client.push_many([(each, frame_) for each in episodes])
            client.wait(client.ask_done_many(episodes))
        client.wait([episode.ask_value() for episode in episodes])
        client.close_many(episodes)
    until(lambda: psutil.Process(worker.pid).memory_info().rss - idle < 1.1 * limit + beside)


def test_what_is_kept_gives_way_to_what_is_asked(
    client: CriticClient, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here memory for what is kept, or for what is asked, but not for both."""
    intake = Intake(WorkerStore(connection, Keys("vlac"), ttl_s=100), history_bytes=1 << 30)
    small, large = client.episodes(["task"] * 2)
    for episode, count in ((small, 10), (large, 24)):
        for index in range(count):
            episode.push(LARGE[index])
    asked(client, intake, "value", [small])
    looks: list[int] = []

    def left() -> Iterator[tuple[int, str]]:
        looks.append(intake._kept.nbytes)
        yield (130 << 20) - intake._kept.nbytes, "this test"

    monkeypatch.setattr(memory, "_left", left)
    (query,) = asked(client, intake, "value", [large])
    assert len(query.frames) == len(LARGE) and looks[0] > 30 << 20 and looks[-1] == 0


class Failing(WorkerStore):
    """Can't read one of the episodes."""

    def __init__(self, error: Exception, episode: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.error, self.episode = error, episode

    def read_episodes(self, wanted: Any, *args: Any) -> Any:
        if any(each.episode == self.episode for each in wanted):
            raise self.error
        return super().read_episodes(wanted, *args)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), redis.ResponseError("NOPERM no")])
def test_whatever_goes_wrong_in_preparing_is_that_querys_answer(
    client: CriticClient, connection: redis.Redis, error: Exception
) -> None:
    episodes = client.episodes(["task"] * 3)
    client.push_many([(episode, frame(red)) for episode, red in zip(episodes, (51, 102, 153), strict=True)])
    queries = open_queries(client, "done", episodes)
    intake = Intake(Failing(error, episodes[1].id, connection, Keys("vlac"), ttl_s=100))
    first, bad, last = [prepared.ask for prepared in intake.prepare(queries)]
    assert isinstance(first, CriticQuery) and isinstance(last, CriticQuery) and last.frames[0, 0, 0, 0] == 153
    assert isinstance(bad, Failure) and re.search("more|Redis|too deep", bad.message) and bad.traceback


def test_errors_of_redis_that_pass_are_raised(client: CriticClient, connection: redis.Redis) -> None:
    episode = client.episode("task")
    episode.push(frame(51))
    away = Failing(redis.ConnectionError("away"), episode.id, connection, Keys("vlac"), ttl_s=100)
    with pytest.raises(redis.ConnectionError):
        Intake(away).prepare(open_queries(client, "done", [episode]))
