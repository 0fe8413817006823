"""What workers and clients say of themselves for people: latencies, failures and outcomes.

Counters only grow, so that a reader subtracts two looks and adds workers up; nothing here is read by the queue.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.client import Pipeline

from vlac_queue.keys import EVENTS_KEPT, EVENTS_TTL_S, Keys
from vlac_queue.rule import Outcome
from vlac_queue.texts import clean

#: Where a query's time goes. waiting: on Redis and in the worker until the critic takes it; decoding: reading and
#: decoding its frames; critic: the critic's call; answering: until the answer stands on Redis; total: their sum.
PHASES: Final = ("waiting", "decoding", "critic", "answering", "total")

#: Most characters kept of an error's first line.
MAX_ERROR_CHARS = 200

#: Buckets grow by this factor: a quantile is off by 10% at most.
_GROWTH = 1.2
#: Upper end of the first bucket, seconds.
_FIRST_S = 1e-5
#: The last bucket ends above 10 hours.
_BUCKETS = 122
_LOG_GROWTH = math.log(_GROWTH)


class Histogram:
    """How often durations fell into buckets that grow by 20%, from 10 us to 10 hours.

    Histograms of several workers add up, and two looks at one subtract, as quantiles do not.
    """

    def __init__(self, counts: Mapping[int, int] | None = None, sum_s: float = 0.0) -> None:
        self._counts: Counter[int] = Counter(counts or {})
        #: Sum of the durations, seconds.
        self.sum = sum_s

    @property
    def count(self) -> int:
        """Number of durations."""
        return sum(self._counts.values())

    def observe(self, seconds: float, count: int = 1) -> None:
        """Adds `count` durations of `seconds`; what is below 0 (clocks differ) counts as 0."""
        seconds = max(0.0, seconds)
        # Rounded up: a bucket ends at _FIRST_S * _GROWTH ** index.
        index = math.ceil(math.log(seconds / _FIRST_S) / _LOG_GROWTH) if seconds > _FIRST_S else 0
        self._counts[min(index, _BUCKETS - 1)] += count
        self.sum += seconds * count

    def quantile(self, q: float) -> float | None:
        """The duration (seconds) below which the part `q` (0..1) of all lie; None where there are none."""
        count = self.count
        if not count:
            return None
        left = q * count
        for index in sorted(self._counts):
            inside = self._counts[index]
            if inside and left <= inside:
                low = _FIRST_S * _GROWTH ** (index - 1) if index else 0.0
                return low + (_FIRST_S * _GROWTH**index - low) * left / inside
            left -= inside
        return _FIRST_S * _GROWTH ** max(self._counts)

    def encode(self) -> str:
        """A short text: the sum, then bucket:count of the buckets that hold any."""
        buckets = (f"{index}:{count}" for index, count in sorted(self._counts.items()) if count)
        return " ".join((f"{self.sum:.6f}", *buckets))

    @classmethod
    def decode(cls, text: str) -> Histogram:
        """The histogram of a text made by `encode`; "" is the empty one.

        Raises:
            ValueError: the text is not one.
        """
        if not text:
            return cls()
        total, *buckets = text.split(" ", _BUCKETS + 1)
        counts = {int(index): int(count) for index, _, count in (each.partition(":") for each in buckets)}
        if not math.isfinite(float(total)) or any(
            not 0 <= index < _BUCKETS or not 0 <= count < 2**63 for index, count in counts.items()
        ):
            raise ValueError("a histogram holds a bucket or a count out of range")
        return cls(counts, float(total))

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self._counts + other._counts, self.sum + other.sum)

    def __iadd__(self, other: Histogram) -> Histogram:
        """In place: a reader of many workers adds thousands of them."""
        self._counts.update(other._counts)
        self.sum += other.sum
        return self

    def __sub__(self, earlier: Histogram) -> Histogram:
        """What came since `earlier`, a look at the same histogram."""
        return Histogram(self._counts - earlier._counts, max(0.0, self.sum - earlier.sum))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.encode() == other.encode()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Histogram({self.encode()!r})"


def first_line(text: str) -> str:
    """The first line of an error, short and fit for a terminal."""
    return clean(text.strip().partition("\n")[0], MAX_ERROR_CHARS)


def publish_event(keys: Keys, event: Mapping[str, Any], pipeline: Pipeline) -> None:
    """Adds to `pipeline` an event for people, e.g. {"kind": "failure", ...} (docs/protocol.md)."""
    text = json.dumps(event, separators=(",", ":"))
    pipeline.xadd(keys.events, {"e": text}, maxlen=EVENTS_KEPT, approximate=True)
    pipeline.expire(keys.events, EVENTS_TTL_S)


def publish_outcomes(keys: Keys, outcomes: Sequence[tuple[str, str, Outcome]], pipeline: Pipeline) -> None:
    """Adds to `pipeline` how episodes (id, task, outcome) of training ended, one by one and summed up."""
    for episode, task, outcome in outcomes:
        event = {
            "kind": "outcome",
            "episode": episode,
            "task": task,
            "done": outcome.done,
            "reward": outcome.reward,
            "masked": outcome.masked,
            "finish_step": outcome.finish_step,
            "error": first_line(outcome.error),
            "contradicted": outcome.contradicted,
        }
        publish_event(keys, event, pipeline)
    values = [outcome.reward for _, _, outcome in outcomes if outcome.reward is not None and not outcome.done]
    pipeline.hincrby(keys.totals, "episodes", len(outcomes))
    pipeline.hincrby(keys.totals, "done", sum(outcome.done for _, _, outcome in outcomes))
    pipeline.hincrby(keys.totals, "masked", sum(outcome.masked for _, _, outcome in outcomes))
    audited = [outcome.contradicted for _, _, outcome in outcomes if outcome.contradicted is not None]
    pipeline.hincrby(keys.totals, "audited", len(audited))
    pipeline.hincrby(keys.totals, "contradicted", sum(audited))
    pipeline.hincrby(keys.totals, "values", len(values))
    pipeline.hincrbyfloat(keys.totals, "value_sum", sum(values))
    pipeline.hincrbyfloat(keys.totals, "reward_sum", sum(outcome.reward or 0.0 for _, _, outcome in outcomes))
    pipeline.expire(keys.totals, EVENTS_TTL_S)


def publish_audit(keys: Keys, figures: Mapping[str, float], now: float, pipeline: Pipeline) -> None:
    """Adds to `pipeline` the last figures of the audit against a simulator's truth; NaN where there are none."""
    pipeline.hset(
        keys.totals, mapping={**{f"audit/{name}": value for name, value in figures.items()}, "audit_at": now}
    )
    pipeline.expire(keys.totals, EVENTS_TTL_S)
