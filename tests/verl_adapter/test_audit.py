"""The audit's numbers, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from verl_adapter.audit import Rollouts, audit

NAN = float("nan")


def rollouts(*episodes: tuple[bool, bool, float, int, int]) -> Rollouts:
    """From (done, env_success, reward, finish_step, env_success_step) each; a NaN reward is masked."""
    done, success, reward, finish, success_step = (np.array(column) for column in zip(*episodes, strict=True))
    count = len(episodes)
    return Rollouts(
        reward=reward,
        done=done,
        masked=np.isnan(reward),
        finish_step=finish,
        env_success=success,
        env_success_step=success_step,
        contradicted=np.where(done, np.resize([0.0, NAN, 1.0], count), NAN),
        queries=np.full(count, 2),
        sent_bytes=np.full(count, 100),
        waited_s=np.full(count, 0.25),
        saved_s=np.full(count, 0.5),
    )


def test_agreement_with_the_simulator():
    metrics = audit(
        rollouts(
            (True, True, 1.0, 16, 10),
            (True, True, 1.0, 32, 30),
            (True, False, 1.0, 8, -1),
            (False, True, 0.8, 64, 50),
            (False, False, 0.2, 64, -1),
            (False, False, 0.4, 64, -1),
            (False, True, NAN, 24, 20),
        )
    )
    assert metrics["vlac/done_rate"] == pytest.approx(3 / 6)
    assert metrics["vlac/env_success_rate"] == pytest.approx(3 / 6)
    assert metrics["vlac/precision"] == pytest.approx(2 / 3)
    assert metrics["vlac/recall"] == pytest.approx(2 / 3)
    assert metrics["vlac/false_done_rate"] == pytest.approx(1 / 3)
    assert metrics["vlac/done_delay_steps"] == pytest.approx((6 + 2) / 2)
    assert metrics["vlac/value_of_failures"] == pytest.approx(0.3)
    assert metrics["vlac/value_of_successes"] == pytest.approx(0.8)
    assert metrics["vlac/audited"] == 2  # the first and the third
    assert metrics["vlac/contradiction_rate"] == pytest.approx(1 / 2)
    assert metrics["vlac/masked"] == 1
    assert metrics["vlac/queries"] == 14
    assert metrics["vlac/sent_bytes"] == 700
    assert metrics["vlac/waited_s"] == pytest.approx(1.75)
    assert metrics["vlac/overlap_saved_s"] == pytest.approx(3.5)


def test_what_did_not_happen_is_nan_under_the_same_names():
    usual = audit(rollouts((True, True, 1.0, 16, 10), (False, False, 0.2, 64, -1)))
    nothing = audit(rollouts((False, False, 0.2, 64, -1)))
    assert list(usual) == list(nothing)
    assert math.isnan(nothing["vlac/precision"]) and math.isnan(nothing["vlac/recall"])
    assert nothing["vlac/false_done_rate"] == 0.0
    assert nothing["vlac/audited"] == 0.0 and math.isnan(nothing["vlac/contradiction_rate"])
