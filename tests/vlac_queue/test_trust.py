"""The signs of a critic that is fooled, on what a training might show."""

from __future__ import annotations

import math

import pytest

from vlac_queue.trust import Signs, fooled, fooled_from

NAN = math.nan
LEARNING = [Signs(0.1, 0.1, 0.2), Signs(0.5, 0.1, 0.1), Signs(0.9, 0.05, 0.02), Signs(1.0, 0.05, 0.0)]


def test_a_policy_that_learns_is_not_suspected() -> None:
    assert fooled(LEARNING) == "" and fooled_from(LEARNING) is None
    assert fooled([]) == "" and fooled_from([]) is None


@pytest.mark.parametrize(
    ("name", "now", "words"),
    [
        (
            "done rate jumps, values contradict",
            Signs(0.97, 0.8),
            "80% of these are contradicted by the critic's own",
        ),
        (
            "done rate jumps, the simulator denies",
            Signs(0.97, NAN, 1.0),
            "100% of these are false by the simulator",
        ),
        ("both", Signs(0.97, 0.8, 1.0), "contradicted by the critic's own"),
        ("done rate holds, the simulator denies", Signs(0.4, NAN, 0.9), "90% of these are false by the simulator"),
    ],
)
def test_more_doubtful_dones_are_a_sign(name: str, now: Signs, words: str) -> None:
    assert words in fooled([Signs(0.4, 0.1, 0.1), now])


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("done rate jumps alone", Signs(1.0)),
        ("few more are doubtful", Signs(0.6, 0.3, 0.3)),
        ("fewer are found done", Signs(0.35, 1.0, 1.0)),
    ],
)
def test_anything_else_is_none(name: str, now: Signs) -> None:
    assert fooled([Signs(0.4, 0.1, 0.1), now]) == ""


def test_before_the_first_done_nothing_was_doubtful() -> None:
    words = "97% of the episodes are found done, and 100% of these are false by the simulator (before: 0%, 0%)"
    assert fooled([Signs(0.0), Signs(0.97, NAN, 1.0)]) == words
    assert fooled([Signs(0.0), Signs(0.97)]) == ""


def test_it_began_where_it_never_ended() -> None:
    bad = Signs(1.0, NAN, 0.9)
    assert fooled_from([*LEARNING, bad, *LEARNING, bad, bad]) == 9
    assert fooled_from([*LEARNING, bad, LEARNING[-1]]) is None
