"""Several hosts: one with Redis, two with workers, one with rollouts; delay, loss and a partition between them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import Table, harm
from tests.chaos.critic import CHAOS
from tests.chaos.hosts import Hosts
from tests.chaos.rollout import start, told
from tests.chaos.servers import Server
from tests.conftest import ROOT, Workers, until
from tests.tools import need


@harm(2, short=1)
def test_hosts_with_delay_loss_and_a_partition(tmp_path: Path, table: Table, times: int) -> None:
    need("ip")
    if os.geteuid():
        pytest.skip("network namespaces need root")
    with Hosts("redis", "gpu1", "gpu2", "rollout") as hosts:
        with hosts.inside("redis"):
            server = Server(tmp_path / "redis", host=hosts.address("redis"), prefix=hosts.command("redis")).start()
            connection = server.connection()
            connection.ping()
        # Everybody else reaches Redis by a way that is long and loses 2% of what it carries.
        way = ["--listen", f"{server.host}:7000", "--target", f"{server.host}:{server.port}"]
        far = [*hosts.command("redis"), sys.executable, "-m", "tests.chaos.proxy", *way]
        proxy = subprocess.Popen([*far, "--delay", "0.01", "--loss", "0.02", "--cut", "0.0005"], cwd=ROOT)
        url = f"redis://{server.host}:7000/0"
        workers = Workers(url, connection, tmp_path)
        rollouts = []
        try:
            for host in ("gpu1", "gpu2"):
                workers.start(CHAOS, prefix=hosts.command(host), CHAOS_BATCH_S="0.02")
            rollouts = [start(url, prefix=hosts.command("rollout")) for _ in range(2)]
            healed = []
            for number in range(times):
                for host in ("gpu1", "rollout") if times > 1 else ("gpu1",):
                    until(lambda: connection.llen("rq:queue:vlac") or connection.keys("vlac:vlac:claims:*"))
                    hosts.link(host, "down")
                    time.sleep(3 if times == 1 else 8 + 2 * number)
                    hosts.link(host, "up")
                    healed.append(time.monotonic())
                    time.sleep(2 if times == 1 else 4)
            accounts = [told(process) for process in rollouts]
            until(lambda: len(workers.described()) == 2)
        finally:
            for process in (*rollouts, proxy):
                process.kill()
                process.wait()
            workers.stop()
            server.kill()
        recovered = [max(account.recovered_s(t) for account in accounts) for t in healed]
        table.add("four hosts: delay, loss, a host cut off", len(healed), accounts, recovered)
