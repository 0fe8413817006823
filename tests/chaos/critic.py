"""`ChaosCritic`: scores by pixels, takes time, and does harm where a task says so; real workers load it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from tests.workers.critics import TaskCritic
from vlac_queue.config import VlacConfig
from workers.critics import AcceleratorLost, CriticAnswer, CriticQuery

CHAOS = "tests.chaos.critic:ChaosCritic"


class ChaosCritic(TaskCritic):
    """Scores as TaskCritic does; the environment and tasks say what goes wrong.

    CHAOS_BATCH_S  seconds that each batch takes
    "kill"         kills its process
    "hang FILE"    never comes back, unless FILE exists (and makes FILE.hangs)
    "lose FILE"    loses its accelerator, unless FILE exists (and makes it)
    "exit FILE"    raises SystemExit, unless FILE exists (and makes it)
    "vanish FILE"  ends its process at once, likewise
    "memory"       runs out of memory with more than one query
    """

    def __init__(self, config: VlacConfig) -> None:
        super().__init__(config)
        self._batch_s = float(os.environ.get("CHAOS_BATCH_S", 0))

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        time.sleep(self._batch_s)
        for query in queries:
            word, _, file = query.task.partition(" ")
            if word == "hang":
                while not os.path.exists(file):
                    open(f"{file}.hangs", "w").close()
                    time.sleep(3600)
            if word in ("lose", "exit", "vanish") and not os.path.exists(file):
                open(file, "w").close()
                self._end(word)
            if word == "memory" and len(queries) > 1:
                raise MemoryError("CUDA out of memory")
        return super().answer(queries)

    def _end(self, how: str) -> None:
        if how == "lose":
            raise AcceleratorLost("CUDA error: an illegal memory access was encountered")
        if how == "exit":
            sys.exit("the critic has had enough")
        os._exit(1)
