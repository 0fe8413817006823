"""Stretches of training, as dashboards see them go by, and whether the critic is fooled in the last one."""

from __future__ import annotations

import math
from collections import deque

from dashboards.snapshot import Training
from vlac_queue.trust import Signs, fooled

#: Audited dones that make a stretch: of fewer, the share that contradicts says little.
_AUDITED = 8
#: Stretches that are remembered.
_KEPT = 500


class Stretches:
    """Takes what training has published so far, look by look.

    A stretch of the critic's own values goes on until enough dones were audited; one of the simulator's truth is a
    batch that the audit tells of.
    """

    def __init__(self) -> None:
        self._by_values: deque[Signs] = deque(maxlen=_KEPT)
        self._by_truth: deque[Signs] = deque(maxlen=_KEPT)
        self._begin: Training | None = None
        self._audit_at = 0.0

    def add(self, training: Training) -> str:
        """Return in words by what the critic is fooled; "" where it does not seem so."""
        begin = self._begin
        if begin is None or training.episodes < begin.episodes:  # the first look, or another Redis
            self._begin = begin = training
        audited = training.audited - begin.audited
        counted = training.episodes - begin.episodes - (training.masked - begin.masked)
        if audited >= _AUDITED and counted > 0:
            share = (training.contradicted - begin.contradicted) / audited
            self._by_values.append(Signs((training.done - begin.done) / counted, contradicted=share))
            self._begin = training
        if training.audit_at > self._audit_at:
            self._audit_at = training.audit_at
            done, precision = training.audit.get("done_rate"), training.audit.get("precision")
            if done is not None:
                self._by_truth.append(Signs(done, denied=math.nan if precision is None else 1 - precision))
        return fooled(self._by_values) or fooled(self._by_truth)
