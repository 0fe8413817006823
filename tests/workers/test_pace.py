"""How long a batch is waited for: learned from arrivals and from what the critic takes."""

from __future__ import annotations

import pytest

from workers.pace import Pace


def paced(gap_s: float, *calls: tuple[float, float]) -> Pace:
    """After arrivals every `gap_s` seconds until 0.0, and calls of (images, seconds)."""
    pace = Pace()
    for index in range(-20, 1):
        pace.arrive(index * gap_s, longest_s=0.01)
    for images, seconds in calls:
        pace.serve(images, seconds)
    return pace


def test_before_anything_is_known_a_batch_waits_as_long_as_it_may() -> None:
    assert Pace().wait_until(1, oldest=5.0, max_wait_s=0.005) == 5.005


def test_a_critic_with_a_fixed_cost_is_worth_waiting_for() -> None:
    pace = paced(0.001, (1, 0.052), (16, 0.082))
    assert pace.fit == pytest.approx((0.002, 0.05))
    # Twice the gap after the last arrival, and no longer than the oldest may wait.
    assert pace.wait_until(4, oldest=-0.001, max_wait_s=0.005) == pytest.approx(0.002)
    assert pace.wait_until(4, oldest=-0.004, max_wait_s=0.005) == pytest.approx(0.001)


def test_a_critic_without_fixed_cost_is_not_waited_for() -> None:
    pace = paced(0.001, (1, 0.005), (16, 0.080))
    assert pace.wait_until(1, oldest=0.0, max_wait_s=0.005) == 0.0


def test_nobody_waits_for_what_comes_later_than_he_may_wait() -> None:
    assert paced(0.02, (1, 0.05)).wait_until(1, oldest=0.0, max_wait_s=0.005) == 0.0


def test_many_who_wait_weigh_more_than_one_call_saved() -> None:
    pace = paced(0.001, (1, 0.012), (11, 0.022))
    assert pace.fit == pytest.approx((0.001, 0.011))
    assert pace.wait_until(10, oldest=0.0, max_wait_s=0.005) > 0.0
    assert pace.wait_until(11, oldest=0.0, max_wait_s=0.005) == 0.0


def test_old_measurements_fade() -> None:
    pace = paced(0.001, (1, 1.0), (2, 2.0))
    for _ in range(200):
        pace.serve(1, 0.051)
        pace.serve(2, 0.052)
    assert pace.fit == pytest.approx((0.001, 0.05), rel=1e-3)
