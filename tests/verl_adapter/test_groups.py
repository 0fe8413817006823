"""Which groups are kept, and what a masked episode leaves of its group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_adapter.groups import keep_groups, leave_groups
from verl_adapter.settings import Training

NAN = float("nan")


def keep(*groups: list[float], **rule: float) -> list[bool]:
    rewards = np.array(groups, np.float32).ravel()
    return keep_groups(rewards, np.isnan(rewards), len(groups[0]), Training(**rule)).tolist()


def test_noise_is_dropped_and_signal_kept():
    assert keep([0.30, 0.301, 0.299, 0.30], [1.0, 1.0, 1.0, 0.7]) == [False, True]


def test_equal_rewards_are_dropped_even_without_a_threshold():
    assert keep([0.3] * 4, [1.0] * 4, [0.3, 0.3, 0.3, 0.31], min_group_spread=0.0) == [False, False, True]


def test_the_spread_is_the_deviation_that_grpo_divides_by():
    """Of 0 and .08: .0566 with n - 1, .04 with n."""
    assert keep([0.0, 0.08], [0.0, 0.06], min_group_spread=0.05) == [True, False]


def test_masked_episodes_are_not_looked_at():
    assert keep([0.2, 0.8, NAN], [0.2, 0.2, NAN], [0.2, NAN, NAN], [NAN] * 3) == [True, False, False, False]


def test_bounds_are_on_the_mean_of_what_counts():
    groups = [0.0, 0.1, NAN], [0.2, 0.6, NAN], [0.9, 1.0, NAN]
    assert keep(*groups, reward_lower_bound=0.1, reward_upper_bound=0.9) == [False, True, False]


@given(st.integers(2, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))))
def test_the_default_keeps_every_mixed_group_of_0_and_1(case):
    size, solved = case
    assert keep([1.0] * solved + [0.0] * (size - solved)) == [True]


@pytest.mark.parametrize("reward", [-0.1, 1.1, NAN])
def test_a_reward_out_of_range_is_a_mistake(reward):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        keep_groups(np.array([0.5, reward]), np.array([False, False]), 2, Training())


def test_groups_must_be_whole():
    with pytest.raises(ValueError, match="groups of 2"):
        keep_groups(np.zeros(3), np.zeros(3, bool), 2, Training())


def test_masked_episodes_get_groups_of_their_own():
    uids = np.array(["a", "a", "a", "b"], dtype=object)
    left = leave_groups(uids, np.array([False, True, True, False]))
    assert left[[0, 3]].tolist() == ["a", "b"]
    assert len(set(left.tolist())) == 4
    assert uids.tolist() == ["a", "a", "a", "b"]
