"""How the critic compares with the simulator's truth. Nothing in here reaches training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rollouts:
    """What the audit looks at; arrays of one value an episode, as `rollout.batch_fields` describes them.

    Attributes:
        reward: 0..1, NaN where masked.
        done: whether the critic found it done.
        masked: whether it has no reward.
        finish_step: environment steps that count.
        env_success: the simulator's truth up to finish_step.
        env_success_step: environment step of it, or -1.
        contradicted: 1 where the critic's value contradicts its done, 0 where it does not; NaN where not known.
        queries, sent_bytes, waited_s, saved_s: what asking cost, and what overlap spared.
    """

    reward: NDArray[np.floating]
    done: NDArray[np.bool_]
    masked: NDArray[np.bool_]
    finish_step: NDArray[np.integer]
    env_success: NDArray[np.bool_]
    env_success_step: NDArray[np.integer]
    contradicted: NDArray[np.floating]
    queries: NDArray[np.integer]
    sent_bytes: NDArray[np.integer]
    waited_s: NDArray[np.floating]
    saved_s: NDArray[np.floating]


# Over 40 lines: one figure a line, by its name in upstream's tracking.
def audit(rollouts: Rollouts) -> dict[str, float]:
    """Return the metrics of one generated batch. The keys are always all there: upstream averages them by key.

    Episodes that are masked count only in `masked` and in what asking cost. NaN says that nothing of the kind
    happened (no done, no success).

    Returns:
        vlac/done_rate: share of episodes that the critic found done.
        vlac/env_success_rate: share that the simulator calls successful, up to where the critic ended them.
        vlac/precision: of what the critic found done, the share that the simulator calls successful.
        vlac/recall: of what the simulator calls successful, the share that the critic found done.
        vlac/false_done_rate: of what the simulator calls failed, the share that the critic found done.
        vlac/done_delay_steps: mean environment steps from true success to the end, where both agree.
        vlac/value_of_failures, vlac/value_of_successes: mean value (0..1) of what the critic never found done,
            by the simulator's truth.
        vlac/audited: episodes found done of which the value list was asked too (`audit_share`).
        vlac/contradiction_rate: share of these whose last value is below `audit_value`.
        vlac/masked: episodes without a reward.
        vlac/queries, vlac/sent_bytes: totals.
        vlac/waited_s: seconds that rollouts waited for the critic, summed over the ranks.
        vlac/overlap_saved_s: seconds that they would have waited more without overlap, summed likewise.
    """
    counted = ~rollouts.masked
    done, success = rollouts.done[counted], rollouts.env_success[counted]
    reward = rollouts.reward[counted]
    contradicted = rollouts.contradicted[~np.isnan(rollouts.contradicted)]
    delay = (rollouts.finish_step - rollouts.env_success_step)[counted]
    return {
        "vlac/done_rate": _mean(done),
        "vlac/env_success_rate": _mean(success),
        "vlac/precision": _mean(success[done]),
        "vlac/recall": _mean(done[success]),
        "vlac/false_done_rate": _mean(done[~success]),
        "vlac/done_delay_steps": _mean(delay[done & success]),
        "vlac/value_of_failures": _mean(reward[~done & ~success]),
        "vlac/value_of_successes": _mean(reward[~done & success]),
        "vlac/audited": float(contradicted.size),
        "vlac/contradiction_rate": _mean(contradicted),
        "vlac/masked": float(rollouts.masked.sum()),
        "vlac/queries": float(rollouts.queries.sum()),
        "vlac/sent_bytes": float(rollouts.sent_bytes.sum()),
        "vlac/waited_s": float(rollouts.waited_s.sum(dtype=np.float64)),
        "vlac/overlap_saved_s": float(rollouts.saved_s.sum(dtype=np.float64)),
    }


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.mean()) if values.size else float("nan")
