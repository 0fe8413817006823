"""Which groups go into an update: pure arithmetic on rewards, without torch and without upstream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from verl_adapter.settings import Training


def keep_groups(
    rewards: NDArray[np.floating], masked: NDArray[np.bool_], group_size: int, rule: Training
) -> NDArray[np.bool_]:
    """Return for each group whether its rewards hold a signal.

    Masked episodes are not looked at. A group needs two others that differ: GRPO compares.

    Args:
        rewards: (B,), 0..1; anything where masked. Groups stand one after another.
        masked: (B,).
        group_size: episodes of a group, `data.n_samples`; divides B.
        rule: the thresholds.

    Returns:
        (B / group_size,).

    Raises:
        ValueError: B is not a multiple of the group's size, or a reward that counts is not within 0..1.
    """
    if len(rewards) != len(masked) or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards and {len(masked)} masks make no groups of {group_size}.")
    if not np.all((rewards[~masked] >= 0) & (rewards[~masked] <= 1)):
        raise ValueError("a reward that is not masked lies outside 0..1.")
    kept = []
    for group, out in zip(rewards.reshape(-1, group_size), masked.reshape(-1, group_size), strict=True):
        counted = group[~out].astype(np.float64)
        kept.append(
            len(counted) >= 2
            and np.ptp(counted) > 0
            # The same deviation that GRPO divides by.
            and counted.std(ddof=1) >= rule.min_group_spread
            and rule.reward_lower_bound <= counted.mean() <= rule.reward_upper_bound
        )
    return np.array(kept, dtype=bool)


def leave_groups(uids: NDArray[np.object_], masked: NDArray[np.bool_]) -> NDArray[np.object_]:
    """Return the group of each episode, where every masked one has a group of its own.

    GRPO takes mean and deviation over equal uids, so the others are compared as if it had not been there.
    """
    return np.array(
        [f"{uid}/masked-{i}" if out else uid for i, (uid, out) in enumerate(zip(uids, masked, strict=True))],
        dtype=object,
    )
