"""Which jobs a worker takes where several wait, on a real server."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.conftest import Workers
from tests.vlac_queue.test_frames import make_frames
from tests.workers.critics import NAME
from vlac_queue import CriticClient
from vlac_queue.keys import Keys
from workers.claims import Claims

KEYS = Keys("vlac")


@pytest.fixture
def wait_in_queue(connection: redis.Redis) -> Callable[..., list[str]]:
    """Puts jobs into the queue, each given by the worker that it prefers; returns their ids."""

    def put(*preferred: str) -> list[str]:
        ids = [f"vlac_{index:032x}" for index in range(len(preferred))]
        for job_id, worker in zip(ids, preferred, strict=True):
            connection.hset(KEYS.rq_job(job_id), mapping={"data": "x", "prefers": worker})
            connection.rpush(KEYS.rq_queue, job_id)
        return ids

    return put


def take(connection: redis.Redis, worker: str, count: int = 1, others: int = 3) -> list[str]:
    return [job.id for job in Claims(connection, KEYS, worker).take(count, block_s=0, others=others)]


def test_a_worker_takes_first_what_it_knows_then_what_nobody_knows(connection, wait_in_queue) -> None:
    ids = wait_in_queue("other", "", "me", "other", "me")
    assert take(connection, "me", 2) == [ids[2], ids[4]]
    assert take(connection, "me") == [ids[1]]
    # It is never idle for the sake of another.
    assert take(connection, "me", 5) == [ids[0], ids[3]]
    assert connection.lrange(KEYS.claims("me"), 0, -1) == [ids[n].encode() for n in (2, 4, 1, 0, 3)]


def test_who_is_alone_takes_jobs_in_their_order(connection, wait_in_queue) -> None:
    ids = wait_in_queue("gone", "me", "")
    assert take(connection, "me", 3, others=0) == ids


def test_the_first_job_is_passed_over_a_few_times_only(connection, wait_in_queue) -> None:
    ids = wait_in_queue("dead", *["me"] * 20)
    taken = [take(connection, "me", others=3)[0] for _ in range(8)]
    assert taken == [*ids[1:7], ids[0], ids[7]]


def test_who_has_other_work_leaves_a_job_to_the_worker_that_knows_it_for_some_looks(
    connection, wait_in_queue
) -> None:
    ids = wait_in_queue("other", "gone", "me", "")
    connection.sadd(KEYS.workers, "other")
    mine = Claims(connection, KEYS, "me")

    def look() -> list[str]:
        return [job.id for job in mine.take(4, block_s=0, others=1, patience=3)]

    assert look() == [ids[2], ids[3]]
    assert [look() for _ in range(3)] == [[], [], ids[:2]]
    assert connection.lrange(KEYS.claims("me"), 0, -1)[-2:] == [each.encode() for each in ids[:2]]
    # Nobody waits for a worker that is gone.
    (again,) = wait_in_queue("gone")
    assert look() == [again]


def test_strange_entries_of_the_queue_are_taken_like_others_and_dropped(connection, wait_in_queue) -> None:
    connection.rpush(KEYS.rq_queue, "", "*", b"\xff", "a b", "vlac_gone", "vlac_list", "vlac_number")
    connection.rpush(KEYS.rq_job("vlac_list"), "x")
    connection.hset(KEYS.rq_job("vlac_number"), mapping={"data": "x", "prefers": "other", "passed": "many"})
    (job_id,) = wait_in_queue("me")
    taken = Claims(connection, KEYS, "me").take(20, block_s=0, others=3)
    assert taken[0].id == job_id
    assert sorted(job.id for job in taken if job.data and not job.unfit) == [job_id, "vlac_number"]
    assert not connection.llen(KEYS.rq_queue)
    # No keys were made of them.
    assert not connection.exists(KEYS.rq_job("vlac_gone"), KEYS.rq_job("a b"), KEYS.rq_job("*"))


def test_who_takes_a_job_is_found_when_it_dies_though_nobody_knew_it(connection, wait_in_queue) -> None:
    """Redis may have lost the list of workers, or others have taken it off: it was thought dead."""
    ids = wait_in_queue("", "")
    for job_id in ids:
        connection.hset(KEYS.rq_job(job_id), "retries_left", 3)
    assert take(connection, "lost", 2) == ids
    assert connection.smembers(KEYS.workers) == {b"lost"}
    assert Claims(connection, KEYS, "finder").recover("lost") == (2, [])


def test_a_job_prefers_the_worker_that_answered_last(
    client: CriticClient, workers: Workers, connection: redis.Redis
) -> None:
    process = workers.start(NAME)
    frames = make_frames("slow", 2, 8, 8)
    with client.episode("task") as episode:
        episode.observe(frames[0]).result()
        (name,) = client.ping()
        process.terminate()
        process.wait()
        # Nobody takes this one; the client saw a worker a moment ago.
        client._workers_seen = float("inf")
        episode.observe(frames[1])
        (job_id,) = connection.lrange(KEYS.rq_queue, 0, -1)
        assert connection.hget(KEYS.rq_job(job_id.decode()), "prefers").decode() == name


def test_no_job_is_dropped_while_rights_are_missing(server, connection, wait_in_queue) -> None:
    ids = wait_in_queue("", "")
    rights = ("on", "nopass", "~*", "&*", "+@all")
    connection.execute_command("ACL", "SETUSER", "narrow", *rights, "-hstrlen")
    with redis.Redis.from_url(server.url, username="narrow", password="x") as narrow:
        for work in (lambda c: c.take(2, block_s=0), lambda c: c.give_back(), lambda c: c.recover("me")):
            with pytest.raises(redis.ResponseError):
                work(Claims(narrow, KEYS, "me"))
            with pytest.raises(redis.ResponseError):
                Claims(narrow, KEYS, "other").recover("me")
    connection.execute_command("ACL", "DELUSER", "narrow")
    kept = connection.lrange(KEYS.rq_queue, 0, -1) + connection.lrange(KEYS.claims("me"), 0, -1)
    assert sorted(kept) == [job_id.encode() for job_id in ids]


def test_copies_of_a_job_wait_for_no_other_job_and_go_with_it(connection, wait_in_queue) -> None:
    claims, other = Claims(connection, KEYS, "me"), Claims(connection, KEYS, "other")
    (job,) = wait_in_queue("me")
    assert claims.share([job], 2) == [], "a job waits, which copies would hide"
    assert take(connection, "me") == [job]
    copies = [copy for copy, of in claims.share([job], 2) if of == job]
    assert len(copies) == 2
    assert take(connection, "me") == [], "who has the job needs no copy"
    assert [each.id for each in other.take(1, block_s=0, others=3, wants="no copies")] == []
    assert take(connection, "other", 2) == copies[:1], "one of a job is enough"
    claims.unshare(copies)
    assert connection.llen(KEYS.rq_queue) == 0
    assert connection.exists(*map(KEYS.rq_job, copies)) == 1, "the one that was taken is its worker's"
    # It is made again once nobody has it, and what workers died with is not copied.
    assert claims.share([job], 1) == []
    other.finish_now(copies[0])
    assert claims.share([job], 1) == [(copies[0], job)]
    claims.unshare(copies)
    connection.hset(KEYS.rq_job(job), "deaths", "other@1700000000 ")
    assert claims.share([job], 1) == []


def test_a_worker_may_want_done_queries_alone(connection, wait_in_queue) -> None:
    ids = wait_in_queue("me", "", "other")
    connection.hset(KEYS.rq_job(ids[2]), "ahead", "[]")
    claims = Claims(connection, KEYS, "me")
    assert [each.id for each in claims.take(3, block_s=0, others=0, wants="done")] == [ids[2]]
    assert take(connection, "me", 3) == ids[:2]
