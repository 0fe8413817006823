"""Redis restarts, forgets, is away, fills up, evicts; a replica takes over; connections break in mid-reply."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import redis

from tests.chaos.conftest import Table, harm
from tests.chaos.critic import CHAOS
from tests.chaos.load import Load
from tests.chaos.proxy import Proxy
from tests.chaos.servers import Sentinels, Server
from tests.conftest import Workers, until
from tests.workers.critics import frame
from vlac_queue import CriticClient, CriticFailed, QueueFull, VlacConfig

Fleets = Callable[[str, redis.Redis], Workers]


@harm(5)
def test_redis_restarted_with_its_data(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    with Server(tmp_path / "redis", "--appendonly", "yes") as server:
        workers = fleets(server.url, server.connection())
        for _ in range(2):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02")
        load = Load(server.url, rollouts=2).start()
        back = []
        for _ in range(times):
            load.asks()
            server.kill()
            server.start()
            back.append(time.monotonic())
            load.rounds_pass()
        load.finish()
        table.add("Redis killed, restarted with its data (AOF)", times, load, [load.recovered_s(t) for t in back])


@harm(5)
def test_redis_restarted_without_its_data(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    with Server(tmp_path / "redis") as server:
        workers = fleets(server.url, server.connection())
        for _ in range(2):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02")
        load = Load(server.url, rollouts=2).start()
        back = []
        for _ in range(times):
            load.asks()
            server.kill()
            server.start()
            back.append(time.monotonic())
            load.rounds_pass()
        load.finish()
        table.add("Redis killed, all data lost", times, load, [load.recovered_s(t) for t in back])


@harm(1)
def test_redis_unreachable(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    with Server(tmp_path / "redis") as server, Proxy((server.host, server.port)) as proxy:
        workers = fleets(proxy.url, server.connection())
        for _ in range(2):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02")
        load = Load(proxy.url, rollouts=2).start()
        back = []
        for away, again, seconds in ((proxy.refuse, proxy.accept, 30), (proxy.hold, proxy.release, 12)):
            load.asks()
            away()
            time.sleep(seconds)
            again()
            back.append(time.monotonic())
            load.rounds_pass()
        load.finish()
        recovered = [load.recovered_s(t) for t in back]
        table.add("Redis unreachable: refuses for 30 s, is silent for 12 s", 2, load, recovered)


@harm(5)
def test_replies_cut_in_the_middle(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    with Server(tmp_path / "redis") as server, Proxy((server.host, server.port)) as proxy:
        workers = fleets(proxy.url, server.connection())
        for _ in range(2):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02")
        load = Load(proxy.url, rollouts=2).start()
        load.rounds_pass()
        proxy.cut_chance = 0.03
        until(lambda: proxy.cuts >= 10 * times, 240)
        proxy.cut_chance = 0.0
        over = time.monotonic()
        load.finish()
        table.add("connection reset in the middle of a reply", proxy.cuts, load, [load.recovered_s(over)])


@harm(3)
def test_a_replica_promoted(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    """The address moves: clients keep their URL, and find the promoted server behind it."""
    with ExitStack() as stack:
        master = stack.enter_context(Server(tmp_path / "0"))
        proxy = stack.enter_context(Proxy((master.host, master.port)))
        workers = fleets(proxy.url, master.connection())
        load, back = None, []
        for number in range(1, times + 1):
            arguments = ("--replicaof", master.host, str(master.port), "--repl-diskless-sync-delay", "0")
            replica = stack.enter_context(Server(tmp_path / str(number), *arguments))
            until(lambda r=replica: r.connection().info("replication")["master_link_status"] == "up")
            if load is None:
                for _ in range(2):
                    workers.start(CHAOS, CHAOS_BATCH_S="0.02")
                load = Load(proxy.url, rollouts=2).start()
            load.rounds_pass()
            load.asks()
            proxy.refuse()
            master.kill()
            replica.connection().replicaof("NO", "ONE")
            proxy.target = (replica.host, replica.port)
            proxy.accept()
            back.append(time.monotonic())
            master = replica
            load.rounds_pass()
        assert load is not None
        load.finish()
        # What the old master had not sent on is forgotten, a "this is answered" among it.
        table.add("master killed, replica promoted", times, load, [load.recovered_s(t) for t in back], wire=False)


@harm(2, short=1)
def test_sentinel_fails_over(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(tmp_path / "0"))]
        for name in range(1, times + 1):
            arguments = ("--replicaof", servers[0].host, str(servers[0].port), "--repl-diskless-sync-delay", "0")
            servers.append(stack.enter_context(Server(tmp_path / str(name), *arguments)))
        sentinels = stack.enter_context(Sentinels(tmp_path, servers[0]))
        until(sentinels.ready, 120)
        workers = fleets(sentinels.url, servers[0].connection())
        for _ in range(2):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02", RQ_CONNECTION_CLASS="vlac_queue.connection.AnyRedis")
        load = Load(sentinels.url, rollouts=2).start()
        killed = []
        for _ in range(times):
            load.rounds_pass()
            load.asks()
            port = sentinels.master_port()
            (master,) = (server for server in servers if server.port == port)
            killed.append(time.monotonic())
            master.kill()
            load.rounds_pass()
        load.finish()
        table.add(
            "master killed, Sentinel fails over", times, load, [load.recovered_s(t) for t in killed], wire=False
        )


@harm(5)
def test_redis_full(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    """noeviction: pushes wait for room, everything else goes on, and what waits too long is told why."""
    with Server(tmp_path / "redis", "--maxmemory-policy", "noeviction") as server:
        workers = fleets(server.url, server.connection())
        for _ in range(2):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02")
        load = Load(server.url, rollouts=2).start()
        control = server.connection()
        room = []
        for _ in range(times):
            load.asks()
            control.config_set("maxmemory", 1)  # whatever the rollouts close meanwhile
            with CriticClient(VlacConfig(redis_url=server.url, patience_s=1)) as client:
                client.ping()
                with pytest.raises(QueueFull, match="maxmemory"):
                    client.episode("task")
            control.config_set("maxmemory", 0)
            room.append(time.monotonic())
            load.rounds_pass()
        load.finish()
        assert all(process.poll() is None for process in workers.processes)
        table.add("Redis full (noeviction)", times, load, [load.recovered_s(t) for t in room])


def test_a_full_redis_empties(tmp_path: Path, fleets: Fleets) -> None:
    """Frames that are there are asked about, answered and closed, though nothing more fits."""
    with Server(tmp_path / "redis", "--maxmemory-policy", "noeviction") as server:
        control = server.connection()
        workers = fleets(server.url, control)
        workers.start(CHAOS, VLAC_MAX_BATCH="1")
        until(workers.described)
        with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as client:
            episodes = [client.episode(task) for task in ("task", "refuse", "task")]
            client.push_many([(episode, frame(51)) for episode in episodes])
            control.config_set("maxmemory", 1)
            pendings = [*client.ask_done_many(episodes), *client.ask_value_many(episodes)]
            client.wait(pendings)
            for pending in pendings[1::3]:
                with pytest.raises(CriticFailed, match="banana"):
                    pending.verdict()
            assert all(pending.verdict() for pending in pendings if pending not in pendings[1::3])
            client.close_many(episodes)
        assert not control.keys("vlac:vlac:episode:*")


@harm(5)
def test_keys_evicted(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    """allkeys-lru: whatever is evicted is noticed, pushed and asked again; never a wrong answer."""
    with Server(tmp_path / "redis", "--maxmemory-policy", "allkeys-lru") as server:
        workers = fleets(server.url, server.connection())
        for _ in range(2):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02")
        load = Load(server.url, rollouts=2).start()
        control = server.connection()
        room = []
        for _ in range(times):
            load.asks()
            evicted = control.info("stats")["evicted_keys"]
            # What no server needs: for a moment, it must evict almost all that it has.
            control.config_set("maxmemory", control.info("memory")["used_memory_overhead"])
            until(lambda before=evicted: control.info("stats")["evicted_keys"] > before + 20)
            control.config_set("maxmemory", 0)
            room.append(time.monotonic())
            load.rounds_pass()
        load.finish()
        table.add("keys evicted (allkeys-lru)", times, load, [load.recovered_s(t) for t in room], wire=False)


@harm(2)
def test_each_evicted_key_is_noticed(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    """Frames, meta, queries, reference, job: each gone alone, while its query waits."""
    with Server(tmp_path / "redis") as server:
        connection = server.connection()
        workers = fleets(server.url, connection)
        worker = workers.start(CHAOS)
        reference = np.stack([frame(0), frame(255)])
        queries, recovered = 0, []
        with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as client:
            for _ in range(times):
                for gone in ("", ":frames", ":queries", "reference", "job"):
                    with client.episode("task", reference) as episode:
                        episode.push(frame(0))
                        episode.push(frame(102))
                        worker.send_signal(signal.SIGSTOP)  # it has seen none of this
                        pending = episode.ask_done()
                        key = {
                            "job": f"rq:job:{pending.job}",
                            "reference": f"vlac:vlac:reference:{episode.meta.reference}",
                        }.get(gone, f"vlac:vlac:episode:{episode.id}{gone}")
                        assert connection.delete(key) == 1
                        began = time.monotonic()
                        worker.send_signal(signal.SIGCONT)
                        assert pending.result().score == 0.4
                        assert episode.ask_value().result().values[-1] == pytest.approx(40.0)
                        recovered.append(time.monotonic() - began)
                        queries += 2
        table.note("one key of an episode evicted", len(recovered), queries, recovered)
