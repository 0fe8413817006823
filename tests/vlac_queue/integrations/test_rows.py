"""Rewards of rows, with a real Redis and a real worker: those of the gate on the same frames."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Workers, until
from tests.verl_adapter.pixel_critic import picture
from tests.workers.critics import frame
from vlac_queue import CriticClient, CriticFailed, ProtocolError, RolloutGate, VlacConfig
from vlac_queue.integrations.rows import RowRewards

WAITS = pytest.mark.parametrize("wait", [False, True])


@pytest.fixture
def config(redis_url: str) -> VlacConfig:
    return VlacConfig(redis_url=redis_url, timeout_s=30)


def episode(plan: str) -> list[np.ndarray]:
    """A picture for each letter: "d" the critic finds it done, "x" it fails; the value grows by 10 a step."""
    return [
        picture(score=255 * (letter == "d"), value=10 * step, fails=letter == "x")
        for step, letter in enumerate(plan, start=1)
    ]


def play(client: CriticClient, rows: list[list[str]], *, wait: bool, steps: int) -> np.ndarray:
    """Each row plays its plans one after another; rewards (steps, rows)."""
    shown = [[frame for plan in plans for frame in episode(plan)] for plans in rows]
    ends = [np.cumsum([len(plan) for plan in plans]) for plans in rows]
    judge = RowRewards(client, rows=len(rows), wait=wait)
    given = []
    for step in range(steps):
        ended = np.array([step + 1 in of_row for of_row in ends])
        given.append(judge.step(["t"] * len(rows), [[of_row[step] for of_row in shown]], ended))
    return np.array(given)


def by_the_gate(client: CriticClient, plans: list[str]) -> list[float | None]:
    with RolloutGate(client, ["t"] * len(plans)) as gate:
        for step in range(max(map(len, plans))):
            gate.observe(step + 1, {i: episode(plan)[step] for i, plan in enumerate(plans) if step < len(plan)})
        return [outcome.reward for outcome in gate.settle()]


ROWS = [["....", ".d..", ".."], ["d", ".....", ".."], ["...d", ".d..x", "."], ["..d...", "...."]]


@WAITS
def test_rows_that_reset_at_different_steps_get_the_gates_rewards(config: VlacConfig, wait: bool) -> None:
    with CriticClient(config) as client:
        rewards = play(client, ROWS, wait=wait, steps=8)
        for row, plans in enumerate(ROWS):
            ends = np.cumsum([len(plan) for plan in plans])
            whole = [plan for plan, end in zip(plans, ends, strict=True) if end <= 8]
            bounds = [0, *ends[: len(whole)]]
            sums = [rewards[a:b, row].sum() for a, b in pairwise(bounds)]
            assert sums == by_the_gate(client, whole)


@settings(max_examples=12)
@given(
    wait=st.booleans(),
    confirm=st.integers(1, 2),
    views=st.lists(
        st.lists(st.text(alphabet="..d", min_size=6, max_size=6), min_size=3, max_size=3), min_size=1, max_size=2
    ),
    ended=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=6, max_size=6),
)
def test_whatever_ends_when_rewards_are_the_gates(
    redis_url: str, wait: bool, confirm: int, views: list[list[str]], ended: list[list[bool]]
) -> None:
    """Three rows, six steps: letters of each view and row, and rows that end at each step, are drawn."""
    ends = np.array(ended)
    frames = [[episode(row) for row in rows] for rows in views]
    config = VlacConfig(redis_url=redis_url, timeout_s=30, done_confirm=confirm)
    with CriticClient(config) as client:
        judge = RowRewards(client, rows=3, views=len(views), wait=wait)
        steps = range(len(ends))
        rewards = np.array(
            [judge.step(["t"] * 3, [[row[t] for row in view] for view in frames], ends[t]) for t in steps]
        )
        for row in range(3):
            bounds = [0, *(np.flatnonzero(ends[:, row]) + 1)]
            for first, last in pairwise(bounds):
                with RolloutGate(client, ["t"] * len(views)) as gate:
                    for step in range(first, last):
                        gate.observe(None, {index: view[row][step] for index, view in enumerate(frames)})
                    outcomes = gate.settle()
                expected = np.zeros(last - first)
                at = max(outcome.finish_step for outcome in outcomes) if wait else last - first
                expected[at - 1] = min(outcome.reward for outcome in outcomes if outcome.reward is not None)
                assert rewards[first:last, row].tolist() == expected.tolist()
            assert wait or not rewards[bounds[-1] :, row].any()


def test_a_reward_comes_at_the_step_of_its_done_or_at_the_end(config: VlacConfig) -> None:
    with CriticClient(config) as client:
        assert play(client, [[".d..", "..."]], wait=True, steps=7)[:, 0].tolist() == [0, 1, 0, 0, 0, 0, 0.3]
        assert play(client, [[".d..", "..."]], wait=False, steps=7)[:, 0].tolist() == [0, 0, 0, 1, 0, 0, 0.3]


def test_done_may_have_to_be_confirmed(config: VlacConfig) -> None:
    with CriticClient(replace(config, done_confirm=2)) as client:
        assert play(client, [["d.dd."], ["d...."]], wait=True, steps=5).tolist() == [
            *[[0.0, 0.0]] * 3,
            [1.0, 0.0],
            [0.0, 0.5],
        ]


def test_only_the_end_of_an_episode_waits_for_the_critic(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    """The critic holds its answers until a file is there; the steps before the end return all the same."""
    workers.start("tests.workers.critics:TaskCritic")
    answers = tmp_path / "answers"
    judge = RowRewards(client, rows=1)
    for _ in range(3):
        assert judge.step([f"hold {answers}"], [[frame(60)]], np.array([False])) == [0.0]
    assert client.stats.waited_s < 1
    until((tmp_path / "answers.begun").exists)
    answers.touch()
    assert judge.step([f"hold {answers}"], [[frame(60)]], np.array([True])) == [pytest.approx(60 / 255)]


@WAITS
def test_of_several_views_all_must_find_it_done(config: VlacConfig, wait: bool) -> None:
    with CriticClient(config) as client:
        judge = RowRewards(client, rows=2, views=2, wait=wait)
        views = [[episode(".d.."), episode("d...")], [episode("..d."), episode("....")]]
        given = [
            judge.step(["a", "b"], [[row[step] for row in view] for view in views], np.array([step == 3] * 2))
            for step in range(4)
        ]
    at = 2 if wait else 3
    assert np.array(given)[:, 0].tolist() == [float(step == at) for step in range(4)]
    assert np.array(given)[:, 1].tolist() == [0, 0, 0, 0.4]  # the second view's value: the first has found it done


def test_a_new_episode_has_the_task_that_its_first_step_names(config: VlacConfig, redis_url: str) -> None:
    with CriticClient(config) as client, redis.Redis.from_url(redis_url, decode_responses=True) as connection:

        def tasks() -> list[str]:
            keys = [key for key in connection.scan_iter("vlac:vlac:episode:*") if key.count(":") == 3]
            found = {str(connection.hget(key, "task")) for key in keys}  # of other tests too
            return sorted(found & {"lift", "lower", "turn", "ignored"})

        judge = RowRewards(client, rows=2)
        frames = [[picture(), picture()]]
        judge.step(["lift", "lower"], frames, np.array([True, False]))
        assert tasks() == ["lower"]  # an episode that ended leaves Redis
        judge.step(["turn", "ignored"], frames, np.array([False, False]))
        assert tasks() == ["lower", "turn"]


@WAITS
def test_after_a_failure_nothing_stays_on_redis_and_no_step_is_taken(
    client: CriticClient, workers: Workers, connection: redis.Redis, wait: bool
) -> None:
    workers.start("tests.verl_adapter.pixel_critic:PixelCritic")
    judge = RowRewards(client, rows=2, wait=wait)
    judge.step(["t"] * 2, [[picture(), picture()]], np.array([False, False]))
    assert connection.zcard("vlac:vlac:open") == 2
    with pytest.raises(CriticFailed, match="the picture says so"):
        judge.step(["t"] * 2, [[picture(), picture(fails=True)]], np.array([True, True]))
    assert not connection.keys("vlac:vlac:episode:*") and not connection.zcard("vlac:vlac:open")
    with pytest.raises(ProtocolError, match="an earlier step failed"):
        judge.step(["t"] * 2, [[picture(), picture()]], np.array([False, False]))


def test_a_failure_is_raised_or_nan_and_never_a_reward(config: VlacConfig) -> None:
    with CriticClient(config) as client, pytest.raises(CriticFailed, match="the picture says so"):
        play(client, [[".x.."], ["...."]], wait=False, steps=4)
    with CriticClient(replace(config, on_failure="mask")) as client:
        rewards: Any = play(client, [[".x.."], ["...."]], wait=False, steps=4)
    assert np.isnan(rewards[-1, 0]) and rewards[:, 1].tolist() == [0, 0, 0, 0.4]
