"""The gymnasium wrapper: real vector environments, a real Redis and a real worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from tests.vlac_queue.integrations.painted import Painted
from vlac_queue import (
    ConfigError,
    CriticClient,
    CriticFailed,
    FrameError,
    ProtocolError,
    RedisUnavailable,
    RolloutGate,
    VlacConfig,
)
from vlac_queue.integrations.gymnasium import CriticReward, HiddenEnds

NAN = float("nan")
BOTH = pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])


@pytest.fixture
def config(redis_url: str) -> VlacConfig:
    return VlacConfig(redis_url=redis_url, timeout_s=30)


def painted(*plans: tuple[str, ...], vector: Any = SyncVectorEnv, mode: str = "NEXT_STEP", **options: Any) -> Any:
    """A vector environment with one `Painted` for each tuple of plans."""
    return vector(
        [lambda texts=texts: HiddenEnds(Painted(*texts, **options)) for texts in plans],
        autoreset_mode=AutoresetMode[mode],
    )


def steps(envs: Any, count: int) -> Iterator[tuple[Any, list[float], list[bool], list[bool], Any]]:
    """Resets, then takes steps; observations, rewards, terminated, truncated and info of each."""
    envs.reset()
    for action in range(count):
        observations, rewards, terminated, truncated, info = envs.step(np.full(envs.num_envs, action % 3))
        yield observations, rewards.tolist(), terminated.tolist(), truncated.tolist(), info


@BOTH
def test_done_terminates_and_the_time_limit_truncates_with_the_last_value(config: VlacConfig, vector: Any) -> None:
    with closing(CriticReward(painted((".d..", "..."), ("...",), vector=vector), "t", config=config)) as envs:
        played = list(steps(envs, 6))
    assert [(rewards, terminated, truncated) for _, rewards, terminated, truncated, _ in played] == [
        ([0.0, 0.0], [False, False], [False, False]),
        ([1.0, 0.0], [True, False], [False, False]),
        ([0.0, 0.4], [False, False], [False, True]),  # the first begins anew
        ([0.0, 0.0], [False, False], [False, False]),  # the second begins anew
        ([0.0, 0.0], [False, False], [False, False]),
        ([0.4, 0.0], [False, False], [True, False]),
    ]
    places = [observations.tolist() for observations, *_ in played]
    assert places == [
        [[0, 1], [0, 1]],
        [[0, 2], [0, 2]],
        [[1, 0], [0, 3]],
        [[1, 1], [1, 0]],
        [[1, 2], [1, 1]],
        [[1, 3], [1, 2]],
    ]


@BOTH
def test_info_has_scores_values_and_what_the_environment_said(config: VlacConfig, vector: Any) -> None:
    with closing(CriticReward(painted((".d",), ("t..",), vector=vector), "t", config=config)) as envs:
        first, second, third = (info for *_, info in steps(envs, 3))
    assert first["_vlac"].tolist() == [True, True]
    assert first["vlac"]["score"].tolist() == [0.0, 0.0] and first["vlac"]["_score"].tolist() == [True, True]
    # Its own termination ended nothing, and its reward is not the reward.
    assert first["vlac"]["env_terminated"].tolist() == [False, True]
    assert first["vlac"]["env_reward"].tolist() == [0.25, 0.25]
    assert not first["vlac"]["_value"].any() and not first["vlac"]["_masked"].any()
    assert second["vlac"]["score"].tolist() == [1.0, 0.0]
    assert second["vlac"]["_masked"].tolist() == [True, False] and not second["vlac"]["masked"].any()
    assert second["vlac"]["env_truncated"].tolist() == [True, False]
    # The first was reset in the third step: nothing was asked about it, and its info is the reset's.
    assert third["_vlac"].tolist() == third["vlac"]["_score"].tolist() == [False, True]
    assert third["vlac"]["value"][1] == 40.0 and third["vlac"]["_value"].tolist() == [False, True]
    assert third["_began"].tolist() == [True, False] and third["_action"].tolist() == [False, True]
    assert third["action"][1] == 2


@BOTH
def test_same_step_resets_at_once_and_keeps_what_was_last(config: VlacConfig, vector: Any) -> None:
    envs = painted((".d", "..."), ("...",), vector=vector, mode="SAME_STEP", pixels=True)
    with closing(CriticReward(envs, "t", frames="pixels", config=config)) as envs:
        played = list(steps(envs, 4))
    assert [(rewards, terminated, truncated) for _, rewards, terminated, truncated, _ in played] == [
        ([0.0, 0.0], [False, False], [False, False]),
        ([1.0, 0.0], [True, False], [False, False]),
        ([0.0, 0.4], [False, False], [False, True]),
        ([0.0, 0.0], [False, False], [False, False]),
    ]
    assert [observations["place"].tolist() for observations, *_ in played] == [
        [[0, 1], [0, 1]],
        [[1, 0], [0, 2]],
        [[1, 1], [1, 0]],
        [[1, 2], [1, 1]],
    ]
    _, second, third, fourth = (info for *_, info in played)
    assert second["_final_obs"].tolist() == second["_final_info"].tolist() == [True, False]
    assert second["final_obs"][0]["place"].tolist() == [0, 2] and second["final_obs"][1] is None
    final = second["final_info"]
    assert final["vlac"]["score"][0] == 1.0 and final["vlac"]["_score"].tolist() == [True, False]
    assert final["action"][0] == 1 and final["_action"].tolist() == [True, False]
    # The other's info stands where it always does, and so does the reset's.
    assert second["vlac"]["_score"].tolist() == second["_action"].tolist() == [False, True]
    assert second["began"][0] == 1 and second["_began"].tolist() == [True, False]
    assert third["final_info"]["vlac"]["value"][1] == 40.0
    assert "final_obs" not in fourth and fourth["_vlac"].all()


def test_without_autoreset_the_loop_resets(config: VlacConfig) -> None:
    envs = CriticReward(painted(("d", "..."), ("..",), mode="DISABLED"), "t", config=config)
    with closing(envs):
        *_, (_, rewards, terminated, truncated, _) = steps(envs, 1)
        assert (rewards, terminated, truncated) == ([1.0, 0.0], [True, False], [False, False])
        with pytest.raises(ProtocolError, match=r"environments \[0\] have ended; reset them .*reset_mask"):
            envs.step([0, 0])
        observations, _ = envs.reset(options={"reset_mask": np.array([True, False])})
        assert observations.tolist() == [[1, 0], [0, 1]]
        _, rewards, terminated, truncated, _ = envs.step([0, 0])
        assert (rewards.tolist(), truncated.tolist()) == ([0.0, 0.3], [False, True])
        envs.reset()  # all anew
        assert not envs.step([0, 0])[4]["vlac"]["_value"].any()


def test_a_failed_query_is_raised_or_masks_its_episode_and_is_never_a_reward(config: VlacConfig) -> None:
    with closing(CriticReward(painted((".x", ".d"), ("..",)), "t", config=config)) as envs:
        played = steps(envs, 2)
        next(played)
        with pytest.raises(CriticFailed, match="the picture says so"):
            next(played)
        assert [rewards for _, rewards, *_ in steps(envs, 2)] == [[0.0, 0.0], [1.0, 0.3]]  # after a reset
    mask = replace(config, on_failure="mask")
    with closing(CriticReward(painted((".x", "d"), ("...",)), "t", config=mask)) as envs:
        _, (_, rewards, terminated, truncated, info), _, after = steps(envs, 4)
    np.testing.assert_array_equal(rewards, [NAN, 0.0])
    assert (terminated, truncated) == ([False, False], [True, False])
    assert info["vlac"]["masked"].tolist() == [True, False]
    assert info["vlac"]["_score"].tolist() == [False, True]
    assert after[1] == [1.0, 0.0] and after[2] == [True, False]


def test_done_may_have_to_be_confirmed(config: VlacConfig) -> None:
    twice = replace(config, done_confirm=2)
    with closing(CriticReward(painted(("d.dd.",), ("d....",)), "t", config=twice)) as envs:
        ends = [(rewards, terminated) for _, rewards, terminated, *_ in steps(envs, 5)]
    assert ends[:3] == [([0.0, 0.0], [False, False])] * 3
    assert ends[3:] == [([1.0, 0.0], [True, False]), ([0.0, 0.6], [False, False])]


def test_rewards_are_those_of_the_gate_on_the_same_frames(config: VlacConfig) -> None:
    plans = [("..d.",), ("....",), (".....",), ("d",), ("t...",)]
    shown: dict[int, list[Any]] = {index: [] for index in range(len(plans))}
    envs = CriticReward(painted(*plans, mode="DISABLED"), [f"task {index}" for index in shown], config=config)
    given = {}
    with closing(envs):
        envs.reset()
        while len(given) < len(plans):
            for index in shown.keys() - given.keys():
                shown[index].append(envs.render()[index])
            ended = np.isin(range(len(plans)), list(given))
            if ended.any():
                envs.reset(options={"reset_mask": ended})
            _, rewards, terminated, truncated, _ = envs.step(np.zeros(len(plans), int))
            for index in np.flatnonzero(terminated | truncated):
                if index not in given:
                    shown[index].append(envs.render()[index])
                    given[index] = rewards[index]
    with CriticClient(config) as client, RolloutGate(client, ["t"] * len(plans)) as gate:
        gate.push({index: frames[0] for index, frames in shown.items()})
        for step in range(1, 6):
            gate.observe(step, {i: frames[step] for i, frames in shown.items() if step < len(frames)})
        outcomes = gate.settle()
    assert [given[index] for index in range(len(plans))] == [outcome.reward for outcome in outcomes]


@BOTH
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_evaluation_is_as_without_the_wrapper_and_makes_no_client(
    vector: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CriticClient, "__init__", lambda *_: pytest.fail("a client was made"))
    plans = (("..t.", "..."), (".dx.",))
    with closing(painted(*plans, vector=vector, mode=mode)) as bare:
        without = list(steps(bare, 7))
    with closing(CriticReward(painted(*plans, vector=vector, mode=mode), "t", evaluation=True)) as envs:
        assert data_equivalence(list(steps(envs, 7)), without, exact=True)
    native = CriticReward(gymnasium.make_vec("CartPole-v1", 2), "t", evaluation=True)
    assert native.reset()[0].shape == (2, 4)
    native.close()


def test_environments_that_trained_evaluate_with_their_own_ends(config: VlacConfig) -> None:
    with closing(painted(("t...",))) as envs:
        training = CriticReward(envs, "t", config=config)
        assert next(steps(training, 1))[2] == [False]
        assert next(steps(CriticReward(envs, "t", evaluation=True), 1))[2] == [True]


# Gymnasium's own checks.


class Alone(gymnasium.Env):
    """One environment out of a vector of one, which gymnasium's checker takes."""

    def __init__(self, envs: CriticReward) -> None:
        self.envs = envs
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space
        self.render_mode = envs.render_mode
        self.metadata = Painted.metadata
        self.spec = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observations, info = self.envs.reset(seed=seed, options=options)
        return observations[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observations, rewards, terminated, truncated, info = self.envs.step(np.array([action]))
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Any:
        return self.envs.render()[0]

    def close(self) -> None:
        self.envs.close()


@pytest.mark.filterwarnings("ignore:.*most likely has a wrapper", "ignore:.*not having a spec")
def test_gymnasiums_checkers_find_nothing(config: VlacConfig) -> None:
    check_env(HiddenEnds(Painted("..t.")))
    check_env(Alone(CriticReward(painted((".d..", "...")), "t", config=config)))


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_gymnasiums_wrappers_read_what_it_gives(config: VlacConfig, mode: str) -> None:
    def make() -> CriticReward:
        return CriticReward(painted((".d", "..."), ("...",), mode=mode), "t", config=config)

    with closing(DictInfoToList(make())) as listed:
        observations, _ = listed.reset(seed=3)
        for _ in range(2):
            assert observations in listed.observation_space
            observations, rewards, *_, (ended, other) = listed.step(np.zeros(2, int))
    assert rewards.dtype == np.float64
    assert other["vlac"] == {"score": 0.0, "env_reward": 0.25, "env_terminated": False, "env_truncated": False}
    final = ended["vlac"] if mode == "NEXT_STEP" else ended["final_info"]["vlac"]
    assert final["score"] == 1.0 and not final["masked"]

    with closing(RecordEpisodeStatistics(make())) as counted:
        *_, (*_, info) = steps(counted, 2)
    assert info["_episode"].tolist() == [True, False]
    assert (info["episode"]["r"][0], info["episode"]["l"][0]) == (1.0, 2)


# What is refused, and with what advice.


@pytest.mark.parametrize(
    ("make", "options", "advice"),
    [
        (lambda: gymnasium.make_vec("CartPole-v1", 2), {}, "CartPoleVectorEnv may reset .*vectorization_mode"),
        (lambda: gymnasium.make("CartPole-v1"), {}, "takes a SyncVectorEnv"),
        (lambda: SyncVectorEnv([lambda: Painted("..")]), {}, r"wrappers=\[HiddenEnds\]"),
        (lambda: AsyncVectorEnv([lambda: Painted("..")]), {}, r"wrappers=\[HiddenEnds\]"),
        (lambda: painted(("..",), render_mode=None), {}, "render_mode is None; .*frames='observation'"),
        (lambda: painted(("..",), pixels=True), {"frames": "pixel"}, r"one of \['pixels', 'place'\], not 'pixel'"),
        (lambda: painted(("..",)), {"frames": "pixels"}, r"one of \['observation'\], not 'pixels'"),
        (lambda: painted(("..",), ("..",)), {"tasks": ["one"]}, "1 tasks were given for 2 environments"),
        (lambda: painted(("..",)), {"config": VlacConfig(), "references": "x", "tasks": []}, "0 tasks"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_do(make: Any, options: dict[str, Any], advice: str) -> None:
    with closing(make()) as envs, pytest.raises(ConfigError, match=advice):
        CriticReward(envs, **{"tasks": "t", **options})


def test_other_modes_are_refused_by_name() -> None:
    envs = painted(("..",))
    envs.metadata = {"autoreset_mode": "sometimes"}
    with pytest.raises(ConfigError, match="'sometimes'; CriticReward knows NEXT_STEP, SAME_STEP, DISABLED"):
        CriticReward(envs, "t")


def test_frames_that_are_no_frames_are_refused(config: VlacConfig) -> None:
    envs = CriticReward(painted(("..",)), "t", frames="observation", config=config)
    with closing(envs), pytest.raises(FrameError, match="must be uint8"):
        envs.reset()


def test_a_step_comes_after_a_reset(config: VlacConfig) -> None:
    with (
        closing(CriticReward(painted(("..",)), "t", config=config)) as envs,
        pytest.raises(gymnasium.error.ResetNeeded, match="reset"),
    ):
        envs.step([0])


def test_without_redis_a_reset_says_so_and_environments_close() -> None:
    nowhere = VlacConfig(redis_url="redis://127.0.0.1:1/0", patience_s=0)
    envs = CriticReward(painted(("..",)), "t", config=nowhere)
    with pytest.raises(RedisUnavailable):
        envs.reset()
    envs.close()
    assert envs.closed
