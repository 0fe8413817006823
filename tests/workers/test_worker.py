"""Real worker processes: batching, failures, safety, stopping, dying, and the model that stays resident."""

from __future__ import annotations

import os
import pickle
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import redis
from rq import Queue
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.suspension import resume, suspend

from tests.conftest import Workers, until
from tests.workers.critics import NAME, frame
from vlac_queue import CriticClient, CriticFailed, CriticTimeout, NoWorkers, VlacConfig
from vlac_queue.connection import Patience
from vlac_queue.control import order_workers
from vlac_queue.keys import Keys
from vlac_queue.messages import JOB_FUNCTION
from vlac_queue.server import RedisServer


def ask(client: CriticClient, task: str, red: int = 51) -> Any:
    """An open question about an episode of its own."""
    episode = client.episode(task)
    episode.push(frame(red))
    return episode.ask_done()


def hold(client: CriticClient, folder: Path) -> tuple[Any, Path]:
    """A question that keeps the critic busy until the file is touched; returns once it does."""
    gate = folder / "gate"
    pending = ask(client, f"hold {gate}")
    until((folder / "gate.begun").exists)
    return pending, gate


# Batching and failures.


def test_jobs_that_wait_are_answered_in_one_batch(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME, VLAC_MAX_BATCH="8")
    held, gate = hold(client, tmp_path)
    pendings = [ask(client, "count") for _ in range(12)]
    gate.touch()
    client.wait([held, *pendings])
    sizes = sorted(round(pending.verdict().score * 1000) for pending in pendings)
    assert sizes == [4] * 4 + [8] * 8


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("refuse", "banana"),
        ("explode", "the batch exploded"),
        ("lie", "TaskCritic gave a wrong answer to a done query: .* ValueVerdict"),
        ("nan", "not finite"),
        ("one", "done must be True or False"),
        ("seven", "score must be within"),
    ],
)
def test_one_querys_failure_never_fails_its_neighbours(
    task: str, message: str, client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    held, gate = hold(client, tmp_path)
    before, bad, after = ask(client, "task", 51), ask(client, task), ask(client, "task", 102)
    gate.touch()
    assert (before.result().score, after.result().score, held.result().score) == (0.2, 0.4, 0.2)
    with pytest.raises(CriticFailed, match=message):
        bad.result()


def test_a_critic_may_answer_with_numpys_numbers(client: CriticClient, workers: Workers) -> None:
    workers.start(NAME)
    with client.episode("array") as episode:
        episode.push(frame(0))
        assert episode.ask_done().result().score == 0.5
        assert episode.ask_value().result().values == (50.0,)


def test_missing_frames_are_pushed_again_and_damaged_ones_fail_their_query_alone(
    client: CriticClient, workers: Workers, connection: redis.Redis, tmp_path: Path
) -> None:
    workers.start(NAME)
    held, gate = hold(client, tmp_path)
    evicted, damaged, good = ask(client, "task"), ask(client, "task"), ask(client, "task")
    connection.delete(f"vlac:vlac:episode:{evicted.query.episode}:frames")
    key = f"vlac:vlac:episode:{damaged.query.episode}:frames"
    payload = bytearray(connection.lindex(key, 0))  # type: ignore[arg-type]
    payload[-1] ^= 1
    connection.lset(key, 0, bytes(payload))
    gate.touch()
    # A worker may have read these frames before they were touched: ask again, with a worker that has not.
    client.wait([held, evicted, damaged, good])
    again = client.ask_again([evicted, damaged, good])
    workers.stop()
    workers.start(NAME)
    again += client.ask_again([evicted, damaged, good])
    assert again[3].result().score == 0.2
    with pytest.raises(CriticFailed, match="checksum"):
        again[4].result()
    assert again[5].result().score == 0.2


def test_a_query_is_answered_once_however_often_its_job_comes(
    client: CriticClient, workers: Workers, connection: redis.Redis, tmp_path: Path
) -> None:
    workers.start(NAME, VLAC_MAX_BATCH="1")
    held, gate = hold(client, tmp_path)
    pending = ask(client, "task")
    claims = f"vlac:vlac:claims:{client.ping()[0]}"
    until(lambda: connection.llen(claims) == 2)
    job_id = connection.lindex(claims, -1)
    connection.rpush("rq:queue:vlac", job_id, job_id)
    gate.touch()
    assert pending.result().score == 0.2
    assert ask(client, "task", 102).result().score == 0.4  # the copies were passed over by now
    news: Any = connection.xrange(Keys("vlac").client_answers(client.id))
    assert sum(pending.query.id.encode() in answers for _, answers in news) == 1
    assert held.result()


def test_several_workers_share_the_queue(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    held, gate = hold(client, tmp_path)
    workers.start(NAME)
    until(lambda: sorted(each["state"] for each in workers.described()) == ["busy", "idle"])
    said = max(float(each["time"]) for each in workers.described())
    until(lambda: min(float(each["time"]) for each in workers.described()) > said)  # they know of each other
    assert ask(client, "task").result().score == 0.2  # while the first one is busy
    gate.touch()
    assert held.result()


def test_a_burst_worker_ends_when_the_queue_is_empty(client: CriticClient, workers: Workers) -> None:
    first = workers.start(NAME)
    pending = ask(client, "task")
    assert pending.result()
    first.terminate()
    assert first.wait(20) == 0
    process = workers.start(NAME, "--burst", wait=False)
    assert process.wait(20) == 0


# Safety.


class Boom:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_nothing_on_redis_runs_on_the_worker(
    client: CriticClient, workers: Workers, connection: redis.Redis, tmp_path: Path
) -> None:
    mark = tmp_path / "boom"
    queue = Queue("vlac", connection=connection)
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\ndef run(*args): pass\n")
    jobs = [
        queue.enqueue("os.system", f"touch {mark}"),
        queue.enqueue("evil.run"),  # importing it would write the file
        queue.enqueue(JOB_FUNCTION, "not a job text"),
        queue.enqueue(JOB_FUNCTION, '{"v":1,"queries":[]}', "two arguments"),
    ]
    for index, data in enumerate((pickle.dumps((JOB_FUNCTION, None, (Boom(mark),), {})), b"\x80garbage")):
        job = Job.create(JOB_FUNCTION, args=("",), connection=connection, id=f"raw-{index}", origin="vlac")
        job.data = data
        job.save()
        connection.rpush("rq:queue:vlac", job.id)
        jobs.append(job)
    # RQ's own clean-up would call this one's failure callback.
    abandoned = Job.create("evil.run", connection=connection, id="abandoned", origin="vlac")
    abandoned._failure_callback_name = "evil.run"
    abandoned.save()
    connection.zadd(StartedJobRegistry("vlac", connection=connection).key, {"abandoned:1": 1})
    with client.episode("task") as episode:
        episode.push(frame(51))
        workers.start(NAME)
        assert episode.ask_done().result().score == 0.2
    until(lambda: queue.failed_job_registry.get_job_count(cleanup=False) == len(jobs))
    assert not mark.exists()
    assert all(connection.ttl(job.key) > 0 for job in jobs)  # type: ignore[operator]
    assert workers.described()[0]["rejected_jobs"] == str(len(jobs)) or until(
        lambda: workers.described()[0]["rejected_jobs"] == str(len(jobs))
    )
    rejected = Job.fetch(jobs[0].id, connection=connection)
    assert "answers workers.job.answer only" in str(rejected.latest_result().exc_string)


def test_a_giant_job_is_refused_unread(client: CriticClient, workers: Workers, connection: redis.Redis) -> None:
    queue = Queue("vlac", connection=connection)
    bomb = Job.create(JOB_FUNCTION, args=("",), connection=connection, id="bomb", origin="vlac")
    bomb.save()
    connection.hset(bomb.key, "data", zlib.compress(bytes(512 << 20), 1))
    connection.rpush("rq:queue:vlac", bomb.id)
    worker = workers.start(NAME)
    until(lambda: queue.failed_job_registry.get_job_count(cleanup=False) == 1)
    assert psutil.Process(worker.pid).memory_info().rss < 400 << 20
    assert ask(client, "task").result().score == 0.2


# Living, stopping and dying.


def test_the_worker_beats_while_the_critic_works(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    held, gate = hold(client, tmp_path)
    (said,) = workers.described()
    until(lambda: float(workers.described()[0]["time"]) > float(said["time"]) + 1.5)
    assert workers.described()[0]["state"] == "busy"
    assert client.ping()
    gate.touch()
    assert held.result()


def test_sigterm_finishes_the_batch_at_hand_and_gives_the_rest_back(
    client: CriticClient, workers: Workers, connection: redis.Redis, tmp_path: Path
) -> None:
    process = workers.start(NAME, VLAC_MAX_BATCH="1")
    held, gate = hold(client, tmp_path)
    waiting = [ask(client, "task", red) for red in (51, 102)]
    until(lambda: connection.llen(f"vlac:vlac:claims:{client.ping()[0]}") == 2)
    process.send_signal(signal.SIGTERM)
    until(lambda: b"warm shut down" in workers.log.read_bytes())
    gate.touch()
    assert held.result().score == 0.2
    assert process.wait(20) == 0
    assert connection.llen("rq:queue:vlac") == 2 and not connection.keys("vlac:vlac:claims:*")
    with pytest.raises(NoWorkers):
        client.ping()
    workers.start(NAME)
    assert [pending.result().score for pending in waiting] == [0.2, 0.4]


def test_a_killed_workers_jobs_go_to_another(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    dying = workers.start(NAME, VLAC_MAX_BATCH="1")
    held, gate = hold(client, tmp_path)
    waiting = ask(client, "task", 102)
    workers.start(NAME)
    dying.kill()
    gate.touch()
    assert held.result(timeout=10).score == 0.2
    assert waiting.result(timeout=10).score == 0.4


@pytest.mark.slow
def test_a_job_outlives_its_claim_and_its_worker(
    client: CriticClient, workers: Workers, connection: redis.Redis, tmp_path: Path
) -> None:
    """Redis may evict the list of claims, and the worker die then: another takes over as ever."""
    dying = workers.start(NAME, VLAC_MAX_BATCH="1")
    claims = Keys("vlac").claims(client.ping()[0])
    held, gate = hold(client, tmp_path)
    waiting = ask(client, "task", 102)
    until(lambda: connection.llen(claims) == 2)
    workers.start(NAME)
    assert connection.delete(claims)
    until(lambda: connection.llen(claims) == 2)
    dying.kill()
    gate.touch()
    assert held.result(timeout=10).score == 0.2
    assert waiting.result(timeout=10).score == 0.4
    assert b"was thought dead" not in workers.log.read_bytes()


@pytest.mark.slow
def test_a_job_whose_claim_was_lost_as_its_worker_died_is_asked_again(
    client: CriticClient, workers: Workers, connection: redis.Redis, tmp_path: Path
) -> None:
    dying = workers.start(NAME)
    claims = Keys("vlac").claims(client.ping()[0])
    held, gate = hold(client, tmp_path)
    workers.start(NAME)
    dying.kill()
    assert connection.delete(claims)
    gate.touch()
    assert held.result(timeout=20).score == 0.2


@pytest.mark.slow
def test_a_crash_of_the_main_thread_costs_its_jobs_a_try(
    server: RedisServer, workers: Workers, connection: Any
) -> None:
    """One worker, that begins anew each time: it is not given the same job for ever."""
    process = workers.start(NAME, worker_class="tests.workers.crashing.CrashingWorker")
    with CriticClient(VlacConfig(redis_url=server.url, retries=1, timeout_s=60)) as client:
        crash, fine = client.episodes(["task", "task"], ids=["crash", None])
        client.push_many([(episode, frame(51)) for episode in (crash, fine)])
        poison, neighbour = client.ask_done_many([crash, fine])
        with pytest.raises(CriticFailed, match="2 workers died while they had this query"):
            poison.result()
        assert neighbour.result().score == 0.2
    assert process.poll() is None


@pytest.mark.slow
def test_a_query_that_kills_every_worker_fails_alone(
    server: RedisServer, workers: Workers, connection: Any
) -> None:
    with CriticClient(VlacConfig(redis_url=server.url, retries=1, timeout_s=60)) as client:
        for _ in range(3):
            workers.start(NAME)
        episodes = [client.episode(task) for task in ("task", "kill", "task")]
        client.push_many([(episode, frame(51)) for episode in episodes])
        before, poison, after = client.ask_done_many(episodes)
        with pytest.raises(CriticFailed, match="2 workers died while they had this query"):
            poison.result()
        assert (before.result().score, after.result().score) == (0.2, 0.2)


@pytest.mark.slow
def test_a_worker_that_was_frozen_comes_back(client: CriticClient, workers: Workers) -> None:
    process = workers.start(NAME)
    process.send_signal(signal.SIGSTOP)
    until(lambda: not _listens(client))
    process.send_signal(signal.SIGCONT)
    until(lambda: _listens(client))
    assert ask(client, "task").result().score == 0.2


def _listens(client: CriticClient) -> bool:
    try:
        return bool(client.ping())
    except NoWorkers:
        return False


def test_suspended_workers_take_nothing(client: CriticClient, workers: Workers, connection: redis.Redis) -> None:
    workers.start(NAME)
    until(workers.described)
    suspend(connection)
    said = float(workers.described()[0]["time"])
    until(lambda: float(workers.described()[0]["time"]) > said + 2)  # two beats: it knows
    pending = ask(client, "task")
    said = float(workers.described()[0]["time"])
    until(lambda: float(workers.described()[0]["time"]) > said + 1)
    assert not pending.done()
    resume(connection)
    assert pending.result().score == 0.2


def test_an_idle_worker_gives_memory_back(workers: Workers, tmp_path: Path, client: CriticClient) -> None:
    workers.start(NAME, VLAC_IDLE_OFFLOAD_S="0.2")
    until((tmp_path / "offloaded").exists)
    assert ask(client, "task").result().score == 0.2


def test_critics_sleep_and_wake_by_order_and_by_query(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    with pytest.raises(NoWorkers, match="nobody"):
        patience = Patience(client.config.redis_url, 1)
        order_workers(client._connection, Keys("vlac"), "sleep", ["nobody"], timeout_s=1, patience=patience)
    until(workers.described)
    assert ask(client, "task").result().score == 0.2  # one that loads would count as asleep
    client.sleep_workers()
    assert (tmp_path / "offloaded").exists()
    assert workers.described()[0]["state"] == "asleep"
    assert ask(client, "task").result().score == 0.2  # wakes it
    until(lambda: workers.described()[0]["state"] != "asleep")
    client.sleep_workers()
    client.wake_workers()
    assert (tmp_path / "woken").exists()


def test_a_busy_critic_sleeps_once_nothing_waits(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME, VLAC_MAX_BATCH="1")
    held, gate = hold(client, tmp_path)
    waiting = ask(client, "task")
    with pytest.raises(CriticTimeout, match="did not sleep"):
        client.sleep_workers(timeout_s=1.5)
    gate.touch()
    assert held.result() and waiting.result()
    until(lambda: workers.described()[0]["state"] == "asleep")


def test_an_order_that_can_not_be_read_changes_nothing(client: CriticClient, workers: Workers) -> None:
    workers.start(NAME)
    until(workers.described)
    (name,) = client.ping()
    for order in (b"not json", b"[]", b'{"no": "command"}', b'{"command": "kill-horse"}', b"[" * 100_000, b"\xff"):
        client._connection.publish(f"rq:pubsub:{name}", order)
        client._connection.hset(Keys("vlac").orders, name, order)
    assert ask(client, "task").result().score == 0.2
    client.sleep_workers()  # it still follows orders


def test_a_critic_that_can_not_load_ends_the_worker_with_the_reason(workers: Workers) -> None:
    process = workers.start(NAME, wait=False, TASK_CRITIC_BROKEN="1")
    assert process.wait(20) == 1
    assert "download them again" in workers.log.read_text()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"VLAC_CRITC": "reference"}, "did you mean 'VLAC_CRITIC'"),
        ({"VLAC_CRITIC": "nothing.here:Critic"}, "can't be made"),
        ({"VLAC_MAX_BATCH": "many"}, "must be a number"),
    ],
)
def test_wrong_settings_end_the_worker_with_the_reason(
    environ: dict[str, str], message: str, workers: Workers
) -> None:
    process = workers.start(environ.pop("VLAC_CRITIC", NAME), wait=False, **environ)
    assert process.wait(20) == 1
    assert message in workers.log.read_text()


def test_one_worker_serves_one_queue(workers: Workers) -> None:
    process = workers.start(NAME, "another", wait=False)
    assert process.wait(20) == 1
    assert "serves one queue" in workers.log.read_text()


# Plain `rq worker vlac --with-scheduler`, nothing exported.


def test_a_plain_rq_worker_keeps_the_model_over_100_jobs(client: CriticClient, workers: Workers) -> None:
    plain = workers.start(NAME, worker_class=None)
    for number in range(100):
        with client.episode("task") as episode:
            episode.push(frame(number))
            assert round(episode.ask_done().result().score * 255) == number
    (said,) = until(lambda: [each for each in workers.described() if each["jobs"] == "100"])
    assert (said["loads"], said["queries"], said["failures"]) == ("1", "100", "0")
    assert said["parent"] in client.ping() and len(client.ping()) == 2
    plain.send_signal(signal.SIGTERM)
    assert plain.wait(20) == 0
    with pytest.raises(NoWorkers):
        client.ping()
    assert not psutil.pid_exists(int(said["pid"]))


def test_a_plain_rq_workers_dead_horse_is_replaced(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME, worker_class=None)
    held, gate = hold(client, tmp_path)
    (said,) = until(workers.described)
    os.kill(int(said["pid"]), signal.SIGKILL)
    gate.touch()
    assert held.result().score == 0.2
    assert ask(client, "task", 102).result().score == 0.4


def test_the_horse_of_a_killed_rq_worker_ends_too(client: CriticClient, workers: Workers) -> None:
    plain = workers.start(NAME, worker_class=None)
    assert ask(client, "task").result()
    (said,) = until(workers.described)
    plain.kill()
    plain.wait()
    until(lambda: not psutil.pid_exists(int(said["pid"])))


def test_in_a_plain_rq_worker_a_broken_critic_fails_the_queries(client: CriticClient, workers: Workers) -> None:
    workers.start(NAME, worker_class=None, TASK_CRITIC_BROKEN="1")
    with pytest.raises(CriticFailed, match="download them again"):
        ask(client, "task").result()


def test_a_simple_worker_serves_too_and_stops_on_sigterm(client: CriticClient, workers: Workers) -> None:
    simple = workers.start(NAME, worker_class="rq.SimpleWorker")
    assert [ask(client, "task").result().score for _ in range(3)] == [0.2] * 3
    simple.send_signal(signal.SIGTERM)
    assert simple.wait(20) == 0


# Frames across batches.


def test_answers_about_earlier_frames_do_not_depend_on_later_ones(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME, VLAC_MAX_BATCH="4")
    held, gate = hold(client, tmp_path)
    rng = np.random.default_rng(0)
    with client.episode("task") as episode:
        pendings, reds = [], rng.integers(0, 256, 30)
        for red in reds:
            episode.push(np.stack([frame(0), frame(int(red))]))
            pendings.append(episode.ask_done())
        pendings.append(episode.ask_value())
        gate.touch()
        client.wait([held, *pendings])
        assert [round(each.verdict().score * 255) for each in pendings[:-1]] == reds.tolist()
        expected = np.stack([np.zeros(30), reds], axis=1).ravel() / 255 * 100
        assert pendings[-1].verdict().values == pytest.approx(tuple(expected))
        # and once more, from a worker that has kept a later frame
        again = client.ask_again(pendings[:5])
        client.wait(again)
        assert [round(each.verdict().score * 255) for each in again] == reds[:5].tolist()


def test_time_is_redis_time() -> None:
    """Deadlines are on Redis' clock: a host whose clock is wrong by days asks and answers all the same."""
    from vlac_queue.connection import RedisClock

    class Server:
        def time(self) -> tuple[int, int]:
            return 1_000_000, 500_000

    clock = RedisClock(Server()).sync()  # type: ignore[arg-type]
    assert 1_000_000.5 <= clock.now() < 1_000_001.5
    assert abs(time.time() - clock.now()) > 1e6


def test_copies_of_a_job_that_come_while_it_is_answered_stop_nothing(
    client: CriticClient, workers: Workers, connection: redis.Redis
) -> None:
    """A job may come twice: given back after a death that was none, and again by RQ's own retry."""
    workers.start(NAME, VLAC_MAX_BATCH="2", VLAC_MAX_WAIT_MS="0")
    for red in range(60):
        pending = ask(client, "task", red)
        job_ids: list[bytes] = connection.lrange(f"vlac:vlac:claims:{client.ping()[0]}", 0, -1)  # type: ignore[assignment]
        connection.rpush("rq:queue:vlac", *(job_ids * 3 or [b"gone"]))
        assert round(pending.result().score * 255) == red
    until(lambda: not connection.llen("rq:queue:vlac"))
    assert ask(client, "task", 51).result().score == 0.2
    until(lambda: connection.llen(f"vlac:vlac:claims:{client.ping()[0]}") <= 1)


def test_odd_answers_fail_their_query_alone(client: CriticClient, workers: Workers) -> None:
    process = workers.start("tests.workers.critics:Odd")
    said = {
        "float": "ValueError: no number",
        "unspeakable": "Unspeakable: ",
        "raise": "Unspeakable: ",
        "escapes": r"ValueError: \?\[31m red",
    }
    asked = {task: (ask(client, task), ask(client, "fine")) for task in said}
    for task, (odd, beside) in asked.items():
        with pytest.raises(CriticFailed, match=said[task]) as failure:
            odd.result()
        assert "\x1b" not in str(failure.value)
        assert beside.result().score == 0.2
    until(lambda: workers.described()[0]["prompt"] == "?12")
    assert process.poll() is None
