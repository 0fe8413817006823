"""The short version: one fleet, and harm after harm done to it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.chaos.critic import CHAOS
from tests.chaos.load import Load, check
from tests.chaos.proxy import Proxy
from tests.chaos.servers import Server
from tests.conftest import Workers, until

Fleets = Callable[[str, redis.Redis], Workers]


@pytest.mark.slow
def test_one_fault_after_another(tmp_path: Path, fleets: Fleets) -> None:
    with Server(tmp_path / "redis", "--appendonly", "yes") as server, Proxy((server.host, server.port)) as proxy:
        control = server.connection()
        workers = fleets(proxy.url, control)

        def start() -> subprocess.Popen[bytes]:
            return workers.start(CHAOS, CHAOS_BATCH_S="0.02")

        first, second = start(), start()
        load = Load(proxy.url, rollouts=2).start()

        load.asks()
        first.kill()
        load.rounds_pass()

        load.asks()
        second.send_signal(signal.SIGSTOP)
        third = start()
        load.rounds_pass()
        second.send_signal(signal.SIGCONT)
        until(lambda: len(workers.described()) == 2)
        second.terminate()
        assert second.wait(60) == 0

        load.asks()
        proxy.cut_chance = 0.03
        until(lambda: proxy.cuts >= 5, 60)
        proxy.cut_chance = 0.0
        load.rounds_pass()

        load.asks()
        proxy.refuse()
        server.kill()
        server.start()
        proxy.accept()
        load.rounds_pass()

        load.asks()
        control.flushall()  # all data lost
        load.rounds_pass()

        load.asks()
        control.config_set("maxmemory", 1)  # full
        until(lambda: control.info("errorstats").get("errorstat_OOM"))
        control.config_set("maxmemory", 0)
        load.rounds_pass()

        load.asks()
        control.config_set("maxmemory-policy", "allkeys-lru")
        evicted = control.info("stats")["evicted_keys"]
        control.config_set("maxmemory", control.info("memory")["used_memory_overhead"])
        until(lambda: control.info("stats")["evicted_keys"] > evicted)
        control.config_set("maxmemory", 0)
        load.rounds_pass()

        load.finish()
        check([load.account], wire=False)
        assert third.poll() is None
