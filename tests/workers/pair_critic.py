"""`PairsCritic`: a stand-in whose value lists are made of pair scores; it writes down what it is asked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlac_queue.config import VlacConfig
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery, Pair

PAIRS = "tests.workers.pair_critic:PairsCritic"


class Mute(Exception):
    """An error that can't be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


#: Scores that are none, by the task for which they are given.
NONSENSE: dict[str, Any] = {"huge": 10**6000, "mute": Mute(), "object": object()}


class PairsCritic:
    """Finds frames done whose top left red is 255; a pair scores its indices' difference plus that of its second.

    What it does is a line in the file "asked": "PID done RED", or "PID pair TASK SECOND". With the task "kill 5"
    it kills its process at the pair of frame 5, the first time; with "poison 5" each time; with "fail 5" it fails.
    With a task of `NONSENSE` scores are none, and with "none" the value list is None.
    """

    scored_by = "stand-in"

    def __init__(self, config: VlacConfig) -> None:
        self._pause_s = float(os.environ.get("PAIR_SECONDS", "0"))
        self._at_once = os.environ.get("PAIRS_AT_ONCE", "4")

    def load(self) -> None:
        pass

    offload = wake = close = load

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        return [self._done(query) for query in queries]

    def pairs_at_once(self, query: CriticQuery) -> int:
        return int(self._at_once)

    def score(self, pairs: Sequence[Pair]) -> list[float | Exception]:
        return [self._score(pair) for pair in pairs]

    def value(self, scores: Sequence[float]) -> Any:
        if 404.0 in scores:
            return None
        return ValueVerdict((0.0, *scores), tuple(scores))

    def _done(self, query: CriticQuery) -> DoneVerdict:
        assert query.kind == "done"
        red = int(query.frames[-1, 0, 0, 0])
        _note(f"done {red}")
        return DoneVerdict(red == 255, red / 255, query.frame)

    def _score(self, pair: Pair) -> float | Exception:
        _note(f"pair {pair.query.task} {pair.second}")
        while Path("hold").exists():
            time.sleep(0.005)
        time.sleep(self._pause_s)
        if pair.query.task == f"kill {pair.second}" and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if pair.query.task == f"poison {pair.second}":
            os.kill(os.getpid(), signal.SIGKILL)
        if pair.query.task == f"fail {pair.second}":
            return ValueError("it is blurred")
        if pair.query.task in NONSENSE:
            return NONSENSE[pair.query.task]
        if pair.query.task == "none":
            return 404.0
        return pair.second - pair.first + float(pair.query.frames[pair.second, 0, 0, 0])


def _note(words: str) -> None:
    with open("asked", "a") as file:
        file.write(f"{os.getpid()} {words}\n")
