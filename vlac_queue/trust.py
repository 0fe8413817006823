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

    def doubtful(self, name: str) -> float:
        """Return the share of all episodes that were found done and are `contradicted` or `denied`."""
        share: float = getattr(self, name)
        return self.done * share if self.done else 0.0


def fooled(stretches: Sequence[Signs]) -> str:
    """Return by what the last stretch shows that the critic is fooled, in words; "" where it does not.

    It does if, beside an earlier one, no fewer episodes are found done, and of all episodes `RISE` more are found
    done though the critic's own value, or the simulator, says otherwise.
    """
    *earlier, now = stretches or [Signs(0.0)]
    for name, words in (
        ("contradicted", "contradicted by the critic's own value"),
        ("denied", "false by the simulator"),
    ):
        for before in earlier:
            # A comparison with NaN is false.
            if now.done >= before.done and now.doubtful(name) - before.doubtful(name) >= RISE:
                was = f"before: {before.done:.0%}, {before.doubtful(name) / max(before.done, 1e-9):.0%}"
                return (
                    f"{now.done:.0%} of the episodes are found done, and {getattr(now, name):.0%} of these are "
                    f"{words} ({was})"
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
