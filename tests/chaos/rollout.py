"""A rollout process of its own: `start` it anywhere, and have it `told` what became of its queries."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import asdict

import click

from tests.chaos.load import Account, Load
from tests.conftest import ROOT


def start(url: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Starts one; `prefix` stands before the command, e.g. ("ip", "netns", "exec", NAME)."""
    command = [*prefix, sys.executable, "-m", "tests.chaos.rollout", "--url", url, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def told(process: subprocess.Popen[str], seconds: float = 300) -> Account:
    """Has a rollout end after its round, and returns its account."""
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=seconds)
    return Account(**json.loads(out))


@click.command()
@click.option("--url", required=True)
@click.option("--timeout", default=60.0, help="Seconds for which queries are waited for.")
@click.option("--episodes", default=8)
@click.option("--ttl", default=3600, help="Seconds that its episodes outlive it.")
def main(url: str, timeout: float, episodes: int, ttl: int) -> None:
    """Rolls out until SIGTERM, then prints its account as JSON."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    load = Load(url, episodes=episodes, timeout_s=timeout, episode_ttl_s=ttl).start()
    stop.wait()
    print(json.dumps(asdict(load.finish().account)))


if __name__ == "__main__":
    main()
