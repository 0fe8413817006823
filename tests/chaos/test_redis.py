"""Redis restarts, forgets, is away, fills up, evicts; a replica takes over; connections break in mid-reply."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from tests.chaos.conftest import Table, harm
from tests.chaos.critic import CHAOS
from tests.chaos.load import Load
from tests.chaos.proxy import Proxy
from tests.chaos.servers import Sentinels, Server
from tests.conftest import Workers, until

Fleets = Callable[[str, redis.Redis], Workers]


@harm(short=1, full=5)
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


@harm(short=1, full=5)
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


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        pytest.param(1, 3, id="short"),
        pytest.param(1, 30, id="full", marks=[pytest.mark.chaos, pytest.mark.timeout(240)]),
    ],
)
def test_redis_unreachable(tmp_path: Path, fleets: Fleets, table: Table, times: int, seconds: float) -> None:
    with Server(tmp_path / "redis") as server, Proxy((server.host, server.port)) as proxy:
        workers = fleets(proxy.url, server.connection())
        for _ in range(2):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02")
        load = Load(proxy.url, rollouts=2).start()
        back = []
        for away, again in ((proxy.refuse, proxy.accept), (proxy.hold, proxy.release)):
            load.asks()
            away()
            time.sleep(seconds)
            again()
            back.append(time.monotonic())
            load.rounds_pass()
        load.finish()
        recovered = [load.recovered_s(t) for t in back]
        table.add(f"Redis unreachable for {seconds:.0f} s: refused, then silent", 2, load, recovered)


@harm(short=1, full=5)
def test_replies_cut_in_the_middle(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    with Server(tmp_path / "redis") as server, Proxy((server.host, server.port)) as proxy:
        workers = fleets(proxy.url, server.connection())
        for _ in range(2):
            workers.start(CHAOS, CHAOS_BATCH_S="0.02")
        load = Load(proxy.url, rollouts=2).start()
        load.rounds_pass()
        proxy.cut_chance = 0.03
        until(lambda: proxy.cuts >= 10 * times, 60)
        proxy.cut_chance = 0.0
        over = time.monotonic()
        load.finish()
        table.add("connection reset in the middle of a reply", proxy.cuts, load, [load.recovered_s(over)])


@harm(short=1, full=3)
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


@harm(short=1, full=2)
def test_sentinel_fails_over(tmp_path: Path, fleets: Fleets, table: Table, times: int) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(tmp_path / "0"))]
        for name in range(1, times + 1):
            arguments = ("--replicaof", servers[0].host, str(servers[0].port), "--repl-diskless-sync-delay", "0")
            servers.append(stack.enter_context(Server(tmp_path / str(name), *arguments)))
        sentinels = stack.enter_context(Sentinels(tmp_path, servers[0]))
        until(sentinels.ready, 30)
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
