"""Rollouts that die, work that nobody waits for any more, and versions side by side."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import redis
from rq.job import Job

from tests.chaos.conftest import Table, harm
from tests.chaos.critic import CHAOS
from tests.chaos.load import Load
from tests.conftest import Workers, until
from tests.workers.critics import frame
from vlac_queue import CriticClient, ProtocolError, VlacConfig
from vlac_queue.keys import Keys
from vlac_queue.messages import JOB_FUNCTION, PROTOCOL_VERSION
from vlac_queue.server import RedisServer


def _roll_until_killed(url: str) -> None:
    client = CriticClient(VlacConfig(redis_url=url))
    episodes = [client.episode("task") for _ in range(8)]
    while True:
        client.observe_many(
            [(episode, np.random.default_rng().integers(0, 256, (64, 64, 3), np.uint8)) for episode in episodes]
        )


@harm(3, short=1)
def test_rollouts_killed(
    server: RedisServer, workers: Workers, connection: redis.Redis, table: Table, times: int
) -> None:
    """What they leave holds nobody up: their work is dropped, and their room is given to who needs it."""
    keys = Keys("vlac")
    workers.start(CHAOS, CHAOS_BATCH_S="0.02")
    load = Load(server.url).start()
    killed = []
    for _ in range(times):
        dying = multiprocessing.get_context("spawn").Process(target=_roll_until_killed, args=(server.url,))
        dying.start()
        strangers = until(lambda: _clients(connection) - load.clients)
        until(lambda: int(connection.hget(keys.sizes, ":total") or 0) > 100_000)  # the load holds some 10,000
        assert dying.pid is not None
        os.kill(dying.pid, signal.SIGKILL)
        dying.join()
        killed.append(time.monotonic())
        load.rounds_pass()
        # Nobody has heard of it for a while: what CLIENT_TTL_S is for.
        connection.delete(*map(keys.client, strangers))
        held = int(connection.hget(keys.sizes, ":total") or 0)
        config = VlacConfig(redis_url=server.url, max_pending_bytes=held + 1000)
        with CriticClient(config) as client, client.episode("task") as episode:
            episode.push(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
            assert episode.ask_done().result()
        until(lambda: connection.llen(keys.rq_queue) < 5)
    load.finish()
    table.add("rollout killed (-9)", times, load, [load.recovered_s(t) for t in killed])


def test_work_of_closed_episodes_never_reaches_the_critic(
    server: RedisServer, workers: Workers, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    workers.start(CHAOS, VLAC_MAX_BATCH="4")
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as client:
        with client.episode(f"hold {gate}") as holding:
            holding.push(frame(51))
            held = holding.ask_done()
            until(Path(f"{gate}.begun").exists)
            with client.episode(f"hold {tmp_path / 'never'}") as closing:
                closing.push(frame(51))
                closing.ask_done()
                until(lambda: _claimed(server) == 2)
            # What has waited for less than a second is not looked at again; a busy machine begins to count late.
            (said,) = workers.described()
            until(lambda: float(workers.described()[0]["time"]) > float(said["time"]) + 3)
            gate.touch()
            assert held.result().score == 0.2
        until(lambda: not _claimed(server))
        assert not (tmp_path / "never.begun").exists()


def _clients(connection: redis.Redis) -> set[str]:
    """Ids of the rollouts that are there."""
    found: list[bytes] = connection.keys("vlac:vlac:client:*")  # type: ignore[assignment]
    return {key.decode().rpartition(":")[2] for key in found if not key.endswith(b":answers")}


def _claimed(server: RedisServer) -> int:
    with redis.Redis.from_url(server.url) as connection:
        return sum(connection.llen(key) for key in connection.keys("vlac:vlac:claims:*"))


def test_an_older_protocol_is_refused_with_its_reason(
    server: RedisServer, workers: Workers, connection: redis.Redis
) -> None:
    """A worker of ours does not guess at an older job; a rollout of ours learns that an older worker refused."""
    keys = Keys("vlac")
    workers.start(CHAOS)
    old = json.dumps({"v": 1, "queries": [{"id": "a-1", "episode": "E", "kind": "done", "frame": 0, "batch": 0}]})
    job = Job.create(JOB_FUNCTION, args=(old,), connection=connection, id="old", origin="vlac")
    job.save()
    connection.rpush(keys.rq_queue, job.id)
    until(lambda: connection.hget(job.key, "status") == b"failed")
    told = str(Job.fetch("old", connection=connection).latest_result().exc_string)
    assert "this worker speaks protocol version 2" in told and '"v": 1' in told
    workers.stop()
    # Until Redis has noticed, it may give a job to the dead.
    until(lambda: connection.info("clients")["blocked_clients"] == 0)  # type: ignore[index]
    connection.delete(*connection.keys("rq:worker*"))

    # An older worker: it refuses what it can't read, as ours does.
    connection.sadd(keys.rq_workers, "rq:worker:old")
    connection.hset("rq:worker:old", "birth", "2020-01-01T00:00:00Z")
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as client, client.episode("task") as episode:
        episode.push(frame(51))
        pending = episode.ask_done()
        (taken,) = until(lambda: connection.lpop(keys.rq_queue, 1))
        sent = pickle.loads(connection.hget(keys.rq_job(taken.decode()), "data"))  # noqa: S301
        assert json.loads(sent[2][0])["v"] == PROTOCOL_VERSION
        reason = zlib.compress(b"the job is of protocol version 2, this worker speaks 1")
        connection.hset(keys.rq_job(taken.decode()), mapping={"status": "failed", "exc_info": reason})
        with pytest.raises(ProtocolError, match="this worker speaks 1"):
            pending.result()
