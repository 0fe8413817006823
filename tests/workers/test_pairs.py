"""Pair scores: kept with the episode, asked ahead while no query waits, shared among workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from tests.conftest import Workers, until
from tests.workers.pair_critic import PAIRS, PairsCritic
from tests.workers.vlac_stand_in import StandInModel
from vlac_queue import CriticClient, CriticFailed, VlacConfig
from vlac_queue.keys import Keys
from vlac_queue.messages import Query, ValueVerdict
from vlac_queue.server import RedisServer
from workers.claims import Claims
from workers.critics.vlac import VlacCritic
from workers.pairs import PairWork
from workers.shared import Shared
from workers.store import WorkerStore


def frame(red: int) -> Any:
    return np.full((4, 4, 3), red, np.uint8)


def run(client: CriticClient, count: int, task: str = "lift", **options: Any) -> Any:
    """An episode whose frames were all asked about and found not done; frame i has the colour i."""
    episode = client.episode(task=task, **options)
    for red in range(count):
        episode.push(frame(red))
        assert not episode.ask_done().result().done
    return episode


def expected(count: int, stride: int = 1) -> tuple[float, ...]:
    """The scores of an episode of `count` frames."""
    seconds = [*range(stride, count - 1, stride), count - 1]
    return tuple(float(second - (second - 1) // stride * stride + second) for second in seconds)


def asked(folder: Path, words: str = "pair") -> list[str]:
    """What the critics did, in order: the lines with `words` in them, without process ids."""
    file = folder / "asked"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.partition(" ")[2] for line in lines if f" {words}" in line]


def seconds(folder: Path, task: str = "lift") -> list[int]:
    """The second frames of the pairs scored for a task."""
    return [int(line.rpartition(" ")[2]) for line in asked(folder, f"pair {task} ")]


def raises(error: Exception) -> Any:
    """Return what raises `error`, however it is called."""

    def call(*args: Any, **kwargs: Any) -> None:
        raise error

    return call


def at_work(episode: Any, folder: Path) -> Any:
    """A value query over 60 frames of an episode with the task "long", once its first pair is asked."""
    episode.push(np.stack([frame(red) for red in range(60)]))
    value = episode.ask_value()
    until(lambda: seconds(folder, "long"))
    return value


def answered_before(urgent: Any, value: Any) -> None:
    """A done query of another episode is answered before the value query of `at_work`."""
    urgent.push(frame(200))
    assert not urgent.ask_done().result().done
    assert not value.done()
    assert value.result().critics == expected(60)


def counted(workers: Workers, name: str) -> int:
    return sum(int(each[name]) for each in workers.described())


def test_pairs_are_scored_while_no_query_waits_and_by_no_worker_again(
    workers: Workers, client: CriticClient, tmp_path: Path
) -> None:
    first = workers.start(PAIRS)
    episode = run(client, 8)
    until(lambda: sorted(seconds(tmp_path)) == [*range(1, 8)])
    until(lambda: counted(workers, "pairs_ahead") == 7)
    first.terminate()
    first.wait()
    workers.start(PAIRS)
    episode.push(frame(8))
    assert episode.ask_value().result() == ValueVerdict((0.0, *expected(9)), expected(9))
    assert sorted(seconds(tmp_path)) == [*range(1, 9)]
    episode.close()


@pytest.mark.parametrize(
    ("stride", "ahead", "count"),
    [(1, "true", 1), (3, "true", 2), (1, "false", 1), (3, "false", 2)],
)
def test_a_value_list_is_the_same_however_it_came_about(
    workers: Workers, server: RedisServer, tmp_path: Path, stride: int, ahead: str, count: int
) -> None:
    for _ in range(count):
        workers.start(PAIRS, VLAC_VALUE_AHEAD=ahead)
    config = VlacConfig(redis_url=server.url, value_stride=stride)
    with CriticClient(config) as client, run(client, 11) as episode:
        if ahead == "true":
            until(lambda: 9 in seconds(tmp_path))
        assert episode.ask_value().result().critics == expected(11, stride)
    assert len(seconds(tmp_path)) == len(set(seconds(tmp_path))) == len(expected(11, stride))
    if ahead == "false":
        assert counted(workers, "pairs_ahead") == 0


def test_a_worker_that_dies_loses_no_score_that_was_kept(
    workers: Workers, client: CriticClient, tmp_path: Path
) -> None:
    workers.start(PAIRS, VLAC_VALUE_AHEAD="false", PAIRS_AT_ONCE="2")
    with run(client, 9, task="kill 5") as episode:
        pending = episode.ask_value()
        until((tmp_path / "killed").exists)
        workers.start(PAIRS, VLAC_VALUE_AHEAD="false", PAIRS_AT_ONCE="2")
        assert pending.result().critics == expected(9)
    assert seconds(tmp_path, "kill 5") == [1, 2, 3, 4, 5, 5, 6, 7, 8]


def test_work_ahead_leaves_an_episode_alone_of_which_a_worker_died(
    workers: Workers, client: CriticClient, tmp_path: Path
) -> None:
    workers.start(PAIRS)
    workers.start(PAIRS)
    poison = client.episode(task="kill 1")
    poison.push(np.stack([frame(0), frame(1)]))
    assert not poison.ask_done().result().done
    until((tmp_path / "killed").exists)
    until(lambda: [process for process in workers.processes if process.poll() is not None])
    (survivor,) = [process for process in workers.processes if process.poll() is None]
    until(lambda: len(workers.described()) == 1)
    poison.push(frame(2))
    assert not poison.ask_done().result().done
    with run(client, 3, task="other"):
        until(lambda: sorted(seconds(tmp_path, "other")) == [1, 2])
    assert seconds(tmp_path, "kill 1") == [1]
    assert poison.ask_value().result().critics == expected(3)
    assert survivor.poll() is None
    poison.close()


@pytest.mark.slow
def test_a_worker_that_begins_anew_under_its_name_leaves_that_episode_alone(
    workers: Workers, client: CriticClient, connection: redis.Redis, tmp_path: Path
) -> None:
    first = workers.start(PAIRS, "--name", "gpu-1")
    poison = client.episode(task="poison 1")
    poison.push(np.stack([frame(0), frame(1)]))
    assert not poison.ask_done().result().done
    first.wait()
    until(lambda: not connection.exists("rq:worker:gpu-1"))  # RQ has a name once at a time
    second = workers.start(PAIRS, "--name", "gpu-1")
    poison.push(frame(2))
    assert not poison.ask_done().result().done
    with run(client, 3, task="other"):
        until(lambda: sorted(seconds(tmp_path, "other")) == [1, 2])
    assert seconds(tmp_path, "poison 1") == [1] and second.poll() is None
    poison.close()


@pytest.mark.parametrize("at_once", ["0", "a lot"])
def test_a_critic_that_is_wrong_about_its_calls_is_asked_pair_by_pair(
    workers: Workers, client: CriticClient, at_once: str
) -> None:
    workers.start(PAIRS, PAIRS_AT_ONCE=at_once)
    with run(client, 5) as episode:
        assert episode.ask_value().result().critics == expected(5)


@pytest.mark.slow
def test_a_redis_that_is_silent_is_no_critic_that_hangs(
    workers: Workers, client: CriticClient, connection: redis.Redis, tmp_path: Path
) -> None:
    process = workers.start(PAIRS, PAIR_SECONDS="0.02", PAIRS_AT_ONCE="2", VLAC_BATCH_LIMIT_S="1")
    with client.episode(task="long") as episode:
        episode.push(np.stack([frame(red) for red in range(60)]))
        value = episode.ask_value()
        until(lambda: seconds(tmp_path, "long"))
        connection.execute_command("CLIENT", "PAUSE", 3000, "ALL")
        assert value.result().critics == expected(60)
    assert process.poll() is None


def test_scores_that_redis_did_not_take_are_given_to_it_again(
    server: RedisServer, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pairs._KEEP_AGAIN_S", 0.01)
    shared = Shared("w", VlacConfig(redis_url=server.url, critic=PAIRS), connection)
    store = WorkerStore(connection, shared.keys, ttl_s=60)
    work = PairWork(shared, PairsCritic(shared.config), store, Claims(connection, shared.keys, "w"))
    query = Query("t-1", "e", "done", 3, 3, "c", 0.0, 0.0)
    connection.hset(shared.keys.episode("e").meta, mapping={"token": "t", "ttl_s": 60})
    with monkeypatch.context() as broken:
        broken.setattr(store, "keep_scores", raises(redis.ConnectionError("gone")))
        work.seen(query, done=True)
        assert work.ready(asleep=True)
        work.work(raises(AssertionError("the critic was asked")), asleep=True)
    assert connection.hget(shared.keys.episode("e").pairs, "done") is None
    until(lambda: work.ready(asleep=True))
    work.work(raises(AssertionError("the critic was asked")), asleep=True)
    assert connection.hget(shared.keys.episode("e").pairs, "done") == b"3"
    assert work.looks_in_s is None


def test_a_redis_that_forgets_changes_no_value(
    workers: Workers, client: CriticClient, connection: redis.Redis, tmp_path: Path
) -> None:
    workers.start(PAIRS)
    with run(client, 6) as episode:
        until(lambda: len(seconds(tmp_path)) == 5)
        connection.flushall()
        for red in range(6, 9):
            episode.push(frame(red))
            assert not episode.ask_done().result().done
        assert episode.ask_value().result().critics == expected(9)


def test_scores_of_another_critic_or_a_stranger_are_not_used(
    workers: Workers, client: CriticClient, connection: redis.Redis, tmp_path: Path
) -> None:
    episode = client.episode(task="lift")
    episode.push(np.stack([frame(red) for red in range(5)]))
    key = Keys("vlac").episode(episode.id).pairs
    token = connection.hget(Keys("vlac").episode(episode.id).meta, "token").decode()  # type: ignore[union-attr]
    connection.hset(key, mapping={"of": f"{token} another", "1": "77.0"})
    workers.start(PAIRS)
    assert episode.ask_value().result().critics == expected(5)
    connection.delete(key)
    connection.hset(key, mapping={"of": f"{token} stand-in", "5": "banana", "6": "nan"})
    episode.push(np.stack([frame(red) for red in range(5, 8)]))
    assert episode.ask_value().result().critics == expected(8)
    episode.close()


def test_a_done_query_goes_before_the_pairs_of_a_list(
    workers: Workers, client: CriticClient, tmp_path: Path
) -> None:
    workers.start(PAIRS, PAIRS_AT_ONCE="2", PAIR_SECONDS="0.05")
    with client.episode(task="long") as long, client.episode(task="urgent") as urgent:
        value = at_work(long, tmp_path)
        answered_before(urgent, value)
    # It takes a call's time to get there; the list takes thirty.
    assert asked(tmp_path, "").index("done 200") < 30


@pytest.mark.slow
def test_calls_are_small_where_the_critic_is_slow(workers: Workers, client: CriticClient, tmp_path: Path) -> None:
    # All at once would take longer than a call may.
    process = workers.start(PAIRS, PAIRS_AT_ONCE="64", PAIR_SECONDS="0.15", VLAC_BATCH_LIMIT_S="1")
    with client.episode(task="long") as episode:
        episode.push(np.stack([frame(red) for red in range(25)]))
        assert episode.ask_value().result().critics == expected(25)
    assert process.poll() is None
    assert seconds(tmp_path, "long") == [*range(1, 25)]


def test_workers_share_a_long_list(workers: Workers, client: CriticClient, tmp_path: Path) -> None:
    for _ in range(2):
        workers.start(PAIRS, PAIR_SECONDS="0.02", PAIRS_AT_ONCE="4")
    until(lambda: len(workers.described()) == 2)
    with client.episode(task="long") as episode:
        episode.push(np.stack([frame(red) for red in range(120)]))
        assert episode.ask_value().result().critics == expected(120)
    lines = (tmp_path / "asked").read_text().splitlines()
    by_worker = [sum(line.startswith(f"{process.pid} ") for line in lines) for process in workers.processes]
    assert sum(by_worker) == 119 and min(by_worker) > 20
    until(lambda: client._connection.llen("rq:queue:vlac") == 0)


def test_an_episode_that_is_done_costs_no_more_pairs_and_says_what_was_for_nothing(
    workers: Workers, client: CriticClient, tmp_path: Path
) -> None:
    workers.start(PAIRS)
    with run(client, 4, task="early") as episode:
        until(lambda: len(seconds(tmp_path, "early")) == 3)
        episode.push(frame(255))
        assert episode.ask_done().result().done
        until(lambda: counted(workers, "pairs_unused") == 3)
        with run(client, 3, task="other"):
            until(lambda: len(seconds(tmp_path, "other")) == 2)
        assert len(seconds(tmp_path, "early")) == 3
        # Who asks all the same gets the whole list.
        assert len(episode.ask_value().result().critics) == 4


def test_a_pair_that_fails_fails_the_value_query_and_no_other(workers: Workers, client: CriticClient) -> None:
    workers.start(PAIRS)
    with run(client, 5, task="fail 3") as sick, run(client, 5) as well:
        with pytest.raises(CriticFailed, match=r"comparing frames 2 and 3: .*it is blurred"):
            sick.ask_value().result()
        assert well.ask_value().result().critics == expected(5)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("none", "a ValueVerdict is wanted, not None"),
        ("huge", "a pair's score is not finite"),
        ("object", "a pair's score must be a number"),
        ("mute", "Mute: .its text can't be made"),
    ],
)
def test_a_critics_nonsense_fails_its_query_alone(
    workers: Workers, client: CriticClient, task: str, says: str
) -> None:
    process = workers.start(PAIRS)
    with run(client, 3, task=task) as sick, run(client, 3) as well:
        with pytest.raises(CriticFailed, match=says):
            sick.ask_value().result()
        assert well.ask_value().result().critics == expected(3)
    assert process.poll() is None


def test_done_queries_without_end_leave_lists_their_turn(workers: Workers, client: CriticClient) -> None:
    workers.start(PAIRS, PAIR_SECONDS="0.01", VLAC_MAX_BATCH="2")
    with client.episode(task="long") as long, client.episode(task="busy") as busy:
        long.push(np.stack([frame(red) for red in range(30)]))
        busy.push(frame(1))
        # Batches always wait: each answer makes another query.
        waiting = [busy.ask_done() for _ in range(8)]
        value = long.ask_value()
        while not value.done():
            waiting.append(busy.ask_done())
            assert not waiting.pop(0).result().done
        assert value.result().critics == expected(30)


@pytest.mark.slow
def test_a_job_on_its_last_try_waits_for_lists_and_done_queries_do_not(
    workers: Workers, client: CriticClient, connection: redis.Redis, tmp_path: Path
) -> None:
    workers.start(PAIRS, PAIRS_AT_ONCE="2", PAIR_SECONDS="0.05")
    with client.episode(task="long") as long, client.episode(task="urgent") as urgent:
        value = at_work(long, tmp_path)
        connection.rpush(Keys("vlac").alone, "vlac_00000000000000000000000000000000")
        beat = workers.described()[0]["time"]
        until(lambda: float(workers.described()[0]["time"]) > float(beat) + 1)  # the next beat knows of it
        answered_before(urgent, value)
    until(lambda: not connection.exists(Keys("vlac").alone))


def test_a_worker_that_joins_helps_with_a_list_at_work(
    workers: Workers, client: CriticClient, tmp_path: Path
) -> None:
    for _ in range(2):
        workers.start(PAIRS, PAIR_SECONDS="0.02", PAIRS_AT_ONCE="4")
    until(lambda: len(workers.described()) == 2)
    with client.episode(task="long") as episode:
        episode.push(np.stack([frame(red) for red in range(250)]))
        value = episode.ask_value()
        until(lambda: len(seconds(tmp_path, "long")) > 20)
        joined = workers.start(PAIRS, PAIR_SECONDS="0.02", PAIRS_AT_ONCE="4")
        assert value.result().critics == expected(250)
    assert f"{joined.pid} pair long" in (tmp_path / "asked").read_text()


@pytest.mark.slow
def test_a_pair_that_kills_costs_as_many_workers_as_a_job_may_and_then_fails(
    workers: Workers, server: RedisServer, tmp_path: Path
) -> None:
    for _ in range(4):
        workers.start(PAIRS, PAIR_SECONDS="0.02", PAIRS_AT_ONCE="4")
    with CriticClient(VlacConfig(redis_url=server.url, retries=1)) as client:
        until(lambda: len(workers.described()) == 4)
        with client.episode(task="poison 39") as episode:
            episode.push(np.stack([frame(red) for red in range(40)]))
            with pytest.raises(CriticFailed, match="died"):
                episode.ask_value().result()
    assert sum(process.poll() is None for process in workers.processes) >= 1


def test_a_list_over_one_frame_fails_and_is_no_number() -> None:
    critic = VlacCritic(VlacConfig(), StandInModel(lambda row: "1"))  # type: ignore[arg-type]
    critic.load()
    assert isinstance(critic.value([]), CriticFailed)


def test_pairs_of_a_wrong_type_on_redis_cost_no_answer(
    workers: Workers, client: CriticClient, connection: redis.Redis
) -> None:
    workers.start(PAIRS)
    with client.episode(task="lift") as episode:
        episode.push(np.stack([frame(red) for red in range(5)]))
        connection.set(Keys("vlac").episode(episode.id).pairs, "a stranger's")
        assert episode.ask_value().result().critics == expected(5)


def test_closing_an_episode_deletes_its_scores(
    workers: Workers, client: CriticClient, connection: redis.Redis, tmp_path: Path
) -> None:
    workers.start(PAIRS)
    with run(client, 4) as episode:
        until(lambda: connection.hlen(Keys("vlac").episode(episode.id).pairs) == 4)
        assert connection.ttl(Keys("vlac").episode(episode.id).pairs) > 0
    assert not connection.keys("vlac:vlac:episode:*")
