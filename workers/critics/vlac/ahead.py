"""Pair scores asked ahead: while nobody waits, for the value lists that open episodes may ask for."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence

from workers.critics import CriticQuery
from workers.critics.vlac.calls import Reading
from workers.critics.vlac.rows import Row

#: Bytes of frames of waiting episodes; beyond, the episode that waits longest is asked at the end as usual.
_WAITING_BYTES = 512 << 20
#: Episodes whose scores are kept.
_KEPT_EPISODES = 4096


class PairsAhead:
    """Keeps the scores of an episode's pairs. Pair i stands for row i of the episode's value query.

    An episode is known by the token of its opening: its frames only grow, and its task, reference and
    stride stay, so a pair's row, and with it the score, is the same whenever it is asked.

    Args:
        rows: the rows of a value query; none where it has no pair yet.
        ask: asks rows.
    """

    def __init__(
        self, rows: Callable[[CriticQuery], list[Row]], ask: Callable[[Sequence[Row]], list[Reading]]
    ) -> None:
        self._rows = rows
        self._ask = ask
        self._waiting: OrderedDict[str, CriticQuery] = OrderedDict()
        self._bytes = 0
        self._scores: OrderedDict[str, dict[int, Reading]] = OrderedDict()

    def scores(self, query: CriticQuery) -> dict[int, float]:
        """Return the scores known of an episode: pair -> score."""
        known = self._scores.get(query.token, {})
        return {pair: score for pair, score in known.items() if isinstance(score, float)}

    def add(self, query: CriticQuery) -> None:
        """Note the frames that an episode has by now."""
        waiting = self._waiting.get(query.token)
        if waiting is not None and len(waiting.frames) > len(query.frames):
            return  # queries may come out of order
        self.drop(query.token)
        self._waiting[query.token] = query
        self._bytes += query.frames.nbytes
        while self._bytes > _WAITING_BYTES and len(self._waiting) > 1:
            self.drop(next(iter(self._waiting)))

    def drop(self, token: str) -> None:
        """Forget the frames of an episode, not its scores."""
        if query := self._waiting.pop(token, None):
            self._bytes -= query.frames.nbytes

    def work(self, max_images: int) -> bool:
        """Ask pairs whose rows have about `max_images` images in all.

        A pair that fails stays with the value query, which asks it again and reports it.

        Returns:
            Whether any was asked.
        """
        chosen: list[tuple[str, int, Row]] = []
        images = 0
        for token, query in list(self._waiting.items()):
            known = self._scores.get(token, {})
            for pair, row in enumerate(self._rows(query)):
                if pair not in known and images < max_images:
                    chosen.append((token, pair, row))
                    images += len(row.images)
            if images >= max_images:
                break  # some of its pairs may be left
            self.drop(token)
        readings = self._ask([row for _, _, row in chosen])
        found: dict[str, dict[int, Reading]] = defaultdict(dict)
        for (token, pair, _), reading in zip(chosen, readings, strict=True):
            found[token][pair] = reading
        for token, scores in found.items():
            self._scores.setdefault(token, {}).update(scores)
            self._scores.move_to_end(token)
        while len(self._scores) > _KEPT_EPISODES:
            self._scores.popitem(last=False)
        return bool(chosen)
