"""`ShiftedCritic`: TaskCritic's scores, less 0.1; its values, less 10. Real workers load it by VLAC_CRITIC."""

from __future__ import annotations

from collections.abc import Sequence

from tests.workers.critics import TaskCritic
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery


class ShiftedCritic(TaskCritic):
    """What another version of a model might say."""

    prompt_hash = "5h1f7ed"

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        return [_shifted(answer, query) for answer, query in zip(super().answer(queries), queries, strict=True)]


def _shifted(answer: CriticAnswer, query: CriticQuery) -> CriticAnswer:
    if isinstance(answer, DoneVerdict):
        score = answer.score - 0.1
        return DoneVerdict(score > query.done_threshold, score, answer.frame)
    if isinstance(answer, ValueVerdict):
        return ValueVerdict(tuple(value - 10 for value in answer.values), answer.critics)
    return answer
