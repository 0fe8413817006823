"""The training rule as the rollout meets it: real Redis, a real worker, a critic that reads pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import redis

from tests.conftest import until
from tests.verl_adapter.pixel_critic import picture
from verl_adapter.environments import Chunk, EnvironmentFailed
from verl_adapter.watch import Ending, RolloutWatch
from vlac_queue import CriticClient, CriticFailed, FrameError, VlacConfig
from vlac_queue.commands.episodes.log import read_log
from vlac_queue.keys import Keys

#: One chunk of an episode as (score, value), a failure of the critic, or one of the simulator.
Shown = tuple[int, int] | str

DONE = (255, 0)


@pytest.fixture(params=[True, False], ids=["overlapped", "blocking"])
def run(request: pytest.FixtureRequest, redis_url: str) -> Callable[..., list[Ending]]:
    """Plays episodes of equal length through a watch, 8 steps a chunk, as upstream's loop does."""

    def play(
        *episodes: list[Shown],
        on_failure: str = "raise",
        success_steps: dict[int, int] | None = None,
        decision_log: str = "",
        done_confirm: int = 1,
    ) -> list[Ending]:
        config = VlacConfig(
            redis_url=redis_url,
            overlap=request.param,
            on_failure=on_failure,
            timeout_s=30,
            decision_log=decision_log,
            done_confirm=done_confirm,
        )
        tasks = [f"task {index}" for index in range(len(episodes))]
        stopped: frozenset[int] = frozenset()
        with CriticClient(config) as client, RolloutWatch(client) as watch:
            for index in range(len(episodes)):
                watch.see(Chunk(f"e{index}", 0, picture()[None]))
            for turn in range(len(episodes[0])):
                watch.advance(tasks)
                stopped |= watch.over()
                for index, shown in enumerate(episodes):
                    if index not in stopped:
                        success = (success_steps or {}).get(index)
                        watch.see(_chunk(f"e{index}", 8 * (turn + 1), shown[turn], success))
            watch.advance(tasks)
            return watch.settle()

    return play


def _chunk(key: str, step: int, shown: Shown, success_step: int | None) -> Chunk:
    known = success_step if success_step is not None and success_step <= step else None
    if shown == "simulator fails":
        return Chunk(key, step, picture()[None], known, error="Traceback: mujoco gave up")
    frame = picture(fails=True) if isinstance(shown, str) else picture(score=shown[0], value=shown[1])
    return Chunk(key, step, frame[None], known)


def test_done_ends_the_episode_with_reward_1(run):
    (ending,) = run([(0, 10), DONE, (0, 30), (0, 40)])
    assert (ending.finish_step, ending.reward, ending.done, ending.masked) == (16, 1.0, True, False)


def test_done_may_have_to_be_said_twice_in_a_row(run):
    first, second = run([DONE, (0, 20), DONE, DONE, DONE], [DONE, (0, 20), DONE, (0, 30), (0, 40)], done_confirm=2)
    assert (first.finish_step, first.reward, first.done) == (32, 1.0, True)
    assert (second.finish_step, second.reward, second.done) == (40, pytest.approx(0.4), False)


def test_an_episode_that_is_never_done_gets_its_last_value(run):
    first, second = run([(0, 10), (0, 30)], [(0, 10), (100, 70)])
    assert (first.finish_step, first.done) == (16, False)
    assert first.reward == pytest.approx(0.3) and second.reward == pytest.approx(0.7)


def test_a_failure_of_the_critic_is_raised(run):
    with pytest.raises(CriticFailed, match="the picture says so"):
        run(["critic fails", (0, 50)])


def test_a_failure_of_the_critic_masks_its_episode_alone(run):
    failed, other = run([(0, 10), "critic fails", (0, 50)], [(0, 10), (0, 20), (0, 50)], on_failure="mask")
    assert failed.masked and math.isnan(failed.reward) and failed.finish_step == 16
    assert not other.masked and other.reward == pytest.approx(0.5)


def test_the_decision_log_has_the_simulators_word(run, tmp_path):
    run(
        [(0, 10), DONE, (0, 30)], [(0, 10), (0, 20), (0, 30)], [(0, 10), (0, 20), (0, 30)],
        success_steps={0: 5, 1: 18}, decision_log=str(tmp_path / "log"),
    )  # fmt: skip
    truths = {record.task: record.truth for record in read_log(tmp_path / "log", print)}
    # Frame 0 came before the first chunk; success within a chunk shows in its last frame.
    assert truths == {"task 0": 1, "task 1": 3, "task 2": None}


def test_a_simulator_that_breaks_after_done_does_not_matter(run):
    (ending,) = run([(0, 10), DONE, "simulator fails"])
    assert (ending.finish_step, ending.reward, ending.masked) == (16, 1.0, False)


def test_a_simulator_that_breaks_before_done_is_raised(run):
    with pytest.raises(EnvironmentFailed, match=r"step 16(.|\n)*mujoco gave up"):
        run([(0, 10), "simulator fails"])


def test_a_simulator_that_breaks_before_done_masks_its_episode(run):
    failed, other = run([(0, 10), "simulator fails"], [(0, 10), (0, 20)], on_failure="mask")
    assert failed.masked and failed.finish_step == 16
    assert other.reward == pytest.approx(0.2)


def test_a_simulator_that_breaks_in_the_first_chunk_leaves_a_step_to_divide_by(run):
    (ending,) = run(["simulator fails"], on_failure="mask")
    assert ending.masked and ending.finish_step >= 1


def test_success_counts_only_up_to_where_the_critic_ended_the_episode(run):
    before, after = run([(0, 0), DONE, (0, 0)], [(0, 0), DONE, (0, 0)], success_steps={0: 13, 1: 20})
    assert before.success_step == 13 and after.success_step is None


def test_success_changes_nothing_but_the_audit(run):
    episodes = [(0, 10), DONE, (0, 30)], [(0, 10), (0, 20), (0, 30)]
    without, with_success = run(*episodes), run(*episodes, success_steps={0: 3, 1: 3})
    for one, other in zip(without, with_success, strict=True):
        assert (one.finish_step, one.reward, one.done, one.masked) == (
            other.finish_step,
            other.reward,
            other.done,
            other.masked,
        )
    assert [e.success_step for e in with_success] == [3, 3]


def _open_queries(url: str) -> list[bytes]:
    with redis.Redis.from_url(url) as connection:
        keys = connection.keys("vlac:vlac:episode:*:queries")
        return [kind for key in keys for kind in connection.hvals(key) if kind in (b"done", b"value")]


def test_dones_that_the_value_contradicts_are_told_apart(redis_url):
    config = VlacConfig(redis_url=redis_url, audit_share=1.0, audit_value=50.0)
    with CriticClient(config) as client, RolloutWatch(client) as watch:
        for index in range(3):
            watch.see(Chunk(f"e{index}", 0, picture()[None]))
        watch.advance(["task"] * 3)
        for index, shown in enumerate([(255, 20), (255, 80), (0, 20)]):
            watch.see(_chunk(f"e{index}", 8, shown, None))
        watch.advance(["task"] * 3)
        until(lambda: {0, 1} <= watch.over())
        # Nothing waits for the audit but this test.
        until(lambda: client.stats.queries == 3 + 2 and not _open_queries(redis_url))
        endings = watch.settle()
    assert [ending.contradicted for ending in endings] == [True, False, None]


def test_what_is_shown_again_after_the_end_is_passed_over(redis_url):
    config = VlacConfig(redis_url=redis_url, overlap=False, audit_share=0.0)
    with CriticClient(config) as client, RolloutWatch(client) as watch:
        watch.see(Chunk("e", 0, picture()[None]))
        watch.advance(["task"])
        for _ in range(2):
            watch.see(_chunk("e", 8, DONE, None))
            watch.advance(["task"])
        assert watch.over() == {0}
        (ending,) = watch.settle()
    assert ending.queries == 1 and ending.finish_step == 8


def test_nothing_stays_on_redis(redis_url):
    client = CriticClient(VlacConfig(redis_url=redis_url))
    with client, RolloutWatch(client) as watch:
        watch.see(Chunk("e", 0, picture()[None]))
        watch.advance(["task"])
        assert not watch.over()
        open_episodes: Any = lambda: client._connection.zrange(Keys("vlac").open, 0, -1)  # noqa: E731
        (episode,) = open_episodes()
        meta = Keys("vlac").episode(episode.decode()).meta
        assert client._connection.exists(meta)
        watch.close()
        assert not client._connection.exists(meta) and not open_episodes()


def test_every_frame_inside_a_chunk_is_sent(redis_url):
    config = VlacConfig(redis_url=redis_url)
    frames = np.stack([picture(value=value) for value in (10, 20, 90)])
    with CriticClient(config) as client, RolloutWatch(client) as watch:
        watch.see(Chunk("e", 0, picture()[None]))
        watch.advance(["task"])
        watch.see(Chunk("e", 8, frames))
        watch.advance(["task"])
        (ending,) = watch.settle()
        assert ending.reward == pytest.approx(0.9)
        assert watch._gate is not None and watch._gate.episodes[0].frames == 4


def test_what_overlap_saves_is_what_the_critic_took_while_nobody_waited(redis_url):
    with CriticClient(VlacConfig(redis_url=redis_url)) as client, RolloutWatch(client) as watch:
        watch.see(Chunk("e", 0, picture()[None]))
        watch.advance(["task"])
        for step in (8, 16):
            watch.see(_chunk("e", step, (0, 50), None))
            watch.advance(["task"])
            # over() takes in the answer, whether it came before this look or comes before a later one.
            until(lambda step=step: not watch.over() and step in watch._gate._runs[0].answers)
        assert watch._gate is not None
        waited_before = client.stats.waited_s
        (ending,) = watch.settle()
        critic_s = watch._gate.critic_s
    # The value alone was waited for.
    assert waited_before == 0 and ending.waited_s > 0
    assert 0 < ending.saved_s < critic_s


def test_what_goes_wrong_while_sending_is_raised(redis_url):
    """In overlap frames are sent by a thread; its errors are not lost."""
    with CriticClient(VlacConfig(redis_url=redis_url)) as client, RolloutWatch(client) as watch:
        watch.see(Chunk("e", 0, picture()[None].astype(float)))
        watch.advance(["task"])
        with pytest.raises(FrameError):
            watch.over()
