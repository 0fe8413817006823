"""Where the time of client and worker goes: flame graphs and a summary, sampled by py-spy."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from subprocess import DEVNULL, PIPE

import click
import psutil

from benchmarks.peers import Asker, ours
from benchmarks.workloads import simulator
from vlac_queue.server import RedisServer

EPISODES = 64
#: Samples a second.
_RATE = 200
#: Lines of each list of the summary.
_SHOWN = 15
#: Functions in which threads do nothing but wait, for others or for Redis.
_WAITS = ("Condition.wait", "_socket_can_read", "_HiredisParser.read_from_socket", "wait (threading")
_OURS = re.compile(r"\((vlac_queue|workers)/(?!cli\.py)")


def find_py_spy() -> str:
    """Return the path of py-spy.

    Raises:
        ImportError: it is not installed; the message says how to get it.
    """
    beside = Path(sys.executable).parent / "py-spy"
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise ImportError("profiles need py-spy: pip install py-spy, or run it by `make bench-peers`")
    return found


def profile(folder: Path, seconds: float) -> str:
    """Sample client and worker while 64 episodes ask, the critic at zero cost.

    Writes client.svg, worker.svg (flame graphs), client.txt, worker.txt (collapsed stacks) and profile.txt.

    Returns:
        The summary: the functions that the time is spent in.

    Raises:
        ImportError: py-spy is missing.
        ClickException: py-spy failed; it may not look into other processes here.
    """
    spy = find_py_spy()
    folder.mkdir(parents=True, exist_ok=True)
    with RedisServer() as server, ours.start(server.url, EPISODES) as asker:
        sampled = {"client": os.getpid(), "worker": _worker_pid()}
        for form, ending in (("flamegraph", "svg"), ("raw", "txt")):
            spies = []
            for name, pid in sampled.items():
                command = [spy, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds)))]
                command += ["--rate", str(_RATE), "--format", form, "--threads", "--function"]
                command += ["--output", str(folder / f"{name}.{ending}")]
                spies.append(psutil.Popen(command, stdout=DEVNULL, stderr=PIPE, text=True))
            _ask_while(asker, spies)
    text = "\n".join(summary(name, (folder / f"{name}.txt").read_text().splitlines()) for name in sampled)
    (folder / "profile.txt").write_text(text)
    return text


def _ask_while(asker: Asker, spies: Sequence[psutil.Popen]) -> None:
    """Keep the queue busy until all of `spies` have ended."""
    for step in count():
        asker.ask(simulator().step(step, EPISODES))
        if all(each.poll() is not None for each in spies):
            break
    for each in spies:
        _, said = each.communicate()
        if each.returncode:
            raise click.ClickException(f"py-spy failed: {said.strip()}")


def summary(title: str, stacks: Sequence[str]) -> str:
    """Return the functions in which most samples were, by themselves and (ours alone) with what they call.

    Args:
        title: what was sampled.
        stacks: collapsed stacks, "thread;caller;...;function count" each.
    """
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    waiting = 0
    for stack in stacks:
        frames, _, text = stack.rpartition(" ")
        functions, samples = frames.split(";"), int(text)
        if functions[-1].startswith(_WAITS):
            waiting += samples
            continue
        alone[functions[-1]] += samples
        for function in {each for each in functions if _OURS.search(each)}:
            within[function] += samples
    working = sum(alone.values())
    lines = [f"{title}: {working} samples at work, {waiting} waiting"]
    for name, counted in (("itself", alone), ("with what it calls", within)):
        lines.append(f"  {name}")
        lines += [f"    {samples / working:6.1%}  {function}" for function, samples in counted.most_common(_SHOWN)]
    return "\n".join(lines) + "\n"


def _worker_pid() -> int:
    for child in psutil.Process().children():
        if "worker" in child.cmdline():
            return int(child.pid)
    raise RuntimeError("there is no worker to sample")
