"""A second look at the critic's dones: of a share of them the value list is asked too, beside the rule."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from vlac_queue.client import CriticClient, Episode, Pending
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
        # None: not drawn, or not asked.
        self._asked: dict[Episode, Pending[ValueVerdict] | None] = {}

    def ask(self, found: Sequence[Pending[DoneVerdict]]) -> None:
        """Ask about some of the episodes that are new here.

        Args:
            found: the queries by which episodes were found done.
        """
        new = [pending for pending in found if pending.episode not in self._asked]
        if not new:
            return
        # A gate that opens episodes in the places of others goes on for ever.
        self._asked = {episode: asked for episode, asked in self._asked.items() if not episode.closed}
        self._asked.update({pending.episode: None for pending in new})
        drawn = [pending for pending in new if self._random.random() < self._client.config.audit_share]
        if drawn:
            try:
                for asked in self._client.ask_value_up_to(drawn):
                    self._asked[asked.episode] = asked
            except VlacQueueError as error:
                _log.warning("%d of the critic's dones are not audited: %s", len(drawn), error)

    def contradicted(self, episodes: Sequence[Episode]) -> list[bool | None]:
        """Return whether the value of each episode is below `audit_value`; None where it is not here by now."""
        audits = [self._asked.get(episode) for episode in episodes]
        if late := [audit for audit in audits if audit is not None and not audit.answered]:
            try:
                self._client.poll(late)
            except VlacQueueError as error:
                _log.warning("%d values for the audit of the critic's dones were not read: %s", len(late), error)
        return [self._judge(audit) for audit in audits]

    def _judge(self, audit: Pending[ValueVerdict] | None) -> bool | None:
        if audit is None or not audit.answered:
            return None
        try:
            return audit.verdict().values[-1] < self._client.config.audit_value
        except VlacQueueError:
            return None
