"""How long a batch is worth waiting for: learned from when queries come and what the critic takes."""

from __future__ import annotations

#: Weight of what was measured before, in each further measurement.
_MEMORY = 0.9


class Pace:
    """The time between arrivals, and a fit `duration = a * images + b` of the critic's calls.

    Waiting for one more arrival delays each query that waits by the time until it comes, and saves the critic
    one fixed cost `b`. So it is worth it while the first is less than the second. A critic without fixed cost,
    or queries that come one after another's answer, are never waited for.
    """

    def __init__(self) -> None:
        self._arrived: float | None = None
        self._gap_s: float | None = None
        # Sums over calls, older ones fading: weights, images, images squared, seconds, images times seconds.
        self._sums = [0.0] * 5

    def arrive(self, now: float, longest_s: float) -> None:
        """Queries came, all together; a pause counts for `longest_s` at most."""
        if self._arrived is not None:
            gap_s = min(now - self._arrived, longest_s)
            self._gap_s = gap_s if self._gap_s is None else _MEMORY * self._gap_s + (1 - _MEMORY) * gap_s
        self._arrived = now

    def serve(self, images: float, seconds: float) -> None:
        """The critic took `seconds` for a call with so many images."""
        new = (1.0, images, images * images, seconds, images * seconds)
        self._sums = [_MEMORY * old + each for old, each in zip(self._sums, new, strict=True)]

    @property
    def fit(self) -> tuple[float, float]:
        """(a, b): seconds for each image, and for each call; all of it for the call where sizes never differed."""
        count, images, squares, seconds, products = self._sums
        if not count:
            return 0.0, 0.0
        spread = count * squares - images * images
        if spread < 1e-6 * count * squares:
            return 0.0, seconds / count
        slope = max(0.0, (count * products - images * seconds) / spread)
        return slope, max(0.0, (seconds - slope * images) / count)

    def wait_until(self, waiting: int, oldest: float, max_wait_s: float) -> float:
        """When to stop waiting for more.

        Args:
            waiting: queries that wait.
            oldest: when the first of them came.
            max_wait_s: seconds that it waits at most.
        """
        if self._gap_s is None or self._arrived is None or not self._sums[0]:
            return oldest + max_wait_s
        if self._gap_s >= max_wait_s or waiting * self._gap_s >= self.fit[1]:
            return oldest
        # What is twice as late as expected is not coming.
        return min(oldest + max_wait_s, self._arrived + 2 * self._gap_s)
