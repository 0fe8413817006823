"""A critic that reads its answers off a frame's first pixel: red is the score, green the value, blue fails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlac_queue import CriticFailed, DoneVerdict, ValueVerdict, VlacConfig
from workers.critics import CriticAnswer, CriticQuery


def picture(*, score: int = 0, value: int = 0, fails: bool = False) -> np.ndarray:
    """uint8 (4,4,3) that `PixelCritic` answers with score / 255 and value (0..100), or fails on."""
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[0, 0] = score, value, 255 * fails
    return frame


class PixelCritic:
    """Answers what the picture says."""

    def __init__(self, config: VlacConfig) -> None:
        pass

    def load(self) -> None:
        pass

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        return [self._answer(query) for query in queries]

    def offload(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _answer(self, query: CriticQuery) -> CriticAnswer:
        score, _, fails = (int(number) for number in query.frames[-1, 0, 0])
        if query.kind == "value":
            values = tuple(float(frame[0, 0, 1]) for frame in query.frames)
            return ValueVerdict(values, tuple(np.diff(values).tolist()))
        if fails:
            return CriticFailed("the picture says so")
        return DoneVerdict(done=score / 255 > query.done_threshold, score=score / 255, frame=query.frame)
