"""A second look at the critic's dones: of a share of them the value list is asked too, beside the rule."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping

from vlac_queue.client import CriticClient, Pending
from vlac_queue.errors import VlacQueueError
from vlac_queue.messages import DoneVerdict, ValueVerdict

_log = logging.getLogger(__name__)


class DoneAudit:
    """Asks the values of a share (`audit_share`) of the episodes found done: does the critic contradict itself?

    An episode that was found done asks no more, and done queries go first, so idle critics answer. Nothing waits
    for it, no outcome depends on it, and a failure is told to the log alone.

    Args:
        client: asks the critic, by its own configuration.
    """

    def __init__(self, client: CriticClient) -> None:
        self._client = client
        # Of its own: what a training draws at random stays the same.
        self._random = random.Random()
        self._seen: set[str] = set()
        self._asked: dict[str, Pending[ValueVerdict]] = {}

    def ask(self, found: Mapping[str, Pending[DoneVerdict]]) -> None:
        """Ask about some of the episodes that are new here.

        Args:
            found: id of the episode -> the query by which it was found done.
        """
        new = found.keys() - self._seen
        self._seen |= new
        drawn = [name for name in sorted(new) if self._random.random() < self._client.config.audit_share]
        if drawn:
            try:
                asked = self._client.ask_value_up_to([found[name] for name in drawn])
                self._asked.update(zip(drawn, asked, strict=True))
            except VlacQueueError as error:
                _log.warning("%d of the critic's dones are not audited: %s", len(drawn), error)

    def forget(self, episodes: Iterable[str]) -> None:
        """Drop episodes that were closed."""
        for name in episodes:
            self._seen.discard(name)
            self._asked.pop(name, None)

    def contradicted(self) -> dict[str, bool]:
        """Return the episodes whose value is here by now, and whether it is below `audit_value`."""
        known = {}
        if left := [pending for pending in self._asked.values() if not pending.answered]:
            try:
                self._client.poll(left)
            except VlacQueueError as error:
                _log.warning("%d values for the audit of the critic's dones were not read: %s", len(left), error)
        for name, pending in self._asked.items():
            try:
                known[name] = pending.verdict().values[-1] < self._client.config.audit_value
            except VlacQueueError:  # not answered, or failed
                continue
        return known
