"""Critics that cost nothing or a known time, so that a benchmark measures the queue."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vlac_queue.config import VlacConfig
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery


class InstantCritic:
    """Answers "not done" at once. `VLAC_CRITIC=benchmarks.critics:InstantCritic`"""

    #: Seconds that each batch takes.
    batch_s = 0.0

    def __init__(self, config: VlacConfig) -> None:
        pass

    def load(self) -> None:
        pass

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        if self.batch_s:
            time.sleep(self.batch_s)
        return [
            DoneVerdict(False, 0.0, query.frame) if query.kind == "done" else ValueVerdict((0.0,), ())
            for query in queries
        ]

    def offload(self) -> None:
        pass

    def close(self) -> None:
        pass


class Steady50Critic(InstantCritic):
    """Takes 50 ms a batch, as a GPU might."""

    batch_s = 0.05
