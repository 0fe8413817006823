"""Signs that a policy has learned to fool the critic: pure functions of what training shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Share of all episodes by which doubtful dones must have risen: of 32 episodes a tenth of which is doubtful by
#: chance, hardly ever that many more are.
RISE = 0.25


@dataclass(frozen=True)
class Signs:
    """What a stretch of training shows of the critic; each is a share, 0..1.

    Attributes:
        done: of the episodes, found done by the critic.
        contradicted: of the dones that were audited, those whose value was low; NaN where none was.
        denied: of the dones, those that the simulator calls failed; NaN without a simulator's truth.
    """

    done: float
    contradicted: float = math.nan
    denied: float = math.nan


def fooled(stretches: Sequence[Signs]) -> str:
    """Return by what the last stretch shows that the critic is fooled, in words; "" where it does not.

    It does if, beside an earlier one, no fewer episodes are found done, and of all episodes `RISE` more are found
    done though the critic's own value, or the simulator, says otherwise.
    """
    if not stretches:
        return ""
    now = stretches[-1]
    for name, words in (
        ("contradicted", "contradicted by the critic's own value"),
        ("denied", "false by the simulator"),
    ):
        for before in stretches[:-1]:
            doubtful, earlier = now.done * getattr(now, name), before.done * getattr(before, name)
            # A comparison with NaN is false.
            if now.done >= before.done and doubtful - earlier >= RISE:
                return (
                    f"{now.done:.0%} of the episodes are found done (before: {before.done:.0%}), and "
                    f"{getattr(now, name):.0%} of these are {words} (before: {getattr(before, name):.0%})"
                )
    return ""


def fooled_from(stretches: Sequence[Signs]) -> int | None:
    """Return the index of the stretch from which on the critic was fooled, to the last one; None: it was not."""
    first = None
    for index in range(len(stretches)):
        if not fooled(stretches[: index + 1]):
            first = None
        elif first is None:
            first = index
    return first
