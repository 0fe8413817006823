"""RLinf's reward model without RLinf: what its config and observations must be. `make test-rlinf` has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.verl_adapter.pixel_critic import picture
from vlac_queue import ConfigError, CriticFailed, FrameError, ProtocolError, VlacQueueError
from vlac_queue.integrations import rlinf
from vlac_queue.integrations.rlinf import Judge, check_upstream

NOWHERE = "redis://127.0.0.1:1/0"


def node(**changes: Any) -> dict[str, Any]:
    """RLinf's node `reward.model`, with what it copies; changes of `env`, `policy` and `vlac` are merged."""
    env = {"ignore_terminations": True, "auto_reset": False}
    env |= {"max_episode_steps": 8, "max_steps_per_rollout_epoch": 8, **changes.pop("env", {})}
    vlac = {"redis_url": NOWHERE, "timeout_s": 30, **changes.pop("vlac", {})}
    policy = {"num_action_chunks": 2, "add_value_head": False, **changes.pop("policy", {})}
    made = {
        "reward_mode": "terminal",
        "policy": policy,
        "num_envs": 2,
        "runner": {},
        "env": env,
        "vlac": vlac,
    }
    return {**made, **changes}


def observations(*pictures: np.ndarray, dones: tuple[bool, ...] = (False, False), **more: Any) -> dict[str, Any]:
    frames = np.stack(pictures)
    return {"main_images": frames, "task_descriptions": ["open", "close"], "dones": np.array(dones), **more}


def test_terminal_rewards_come_at_the_end_and_per_step_ones_in_the_chunks_last_step(redis_url: str) -> None:
    given = {}
    for mode in ("terminal", "per_step"):
        judge = Judge(node(reward_mode=mode, vlac={"redis_url": redis_url}))
        given[mode] = [
            judge.rewards(observations(picture(score=255, value=9), picture(value=20))).tolist(),
            judge.rewards(observations(picture(), picture(value=30), dones=(True, True))).tolist(),
        ]
    first, second = given["terminal"]
    assert second == [1.0, np.float32(0.3)]
    assert given["per_step"] == [[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, np.float32(0.3)]]]
    assert first == [0.0, 0.0]


def test_a_view_may_be_one_of_several_cameras(redis_url: str) -> None:
    views = ["main_images", "extra_view_images.1"]
    judge = Judge(node(views=views, vlac={"redis_url": redis_url}))
    done, not_done = picture(score=255), picture(value=70)
    extra = np.array([[not_done, done], [done, not_done]])
    rewards = judge.rewards(observations(done, done, dones=(True, True), extra_view_images=extra))
    assert rewards.tolist() == [1.0, np.float32(0.7)]


@pytest.mark.parametrize(
    "view", ["extra_view_images", *(f"extra_view_images.{camera}" for camera in ("2", "-1", "left"))]
)
def test_a_camera_that_is_not_there_is_refused_with_those_that_are(view: str) -> None:
    seen = observations(picture(), picture(), extra_view_images=np.zeros((2, 2, 4, 4, 3), np.uint8))
    with pytest.raises(ConfigError, match=rf"no camera {view}; .*'extra_view_images.0', 'extra_view_images.1'"):
        Judge(node(views=[view])).rewards(seen)
    with pytest.raises(ConfigError, match=r"no camera main_images.1; .* \['main_images'\]"):
        Judge(node(views="main_images.1")).rewards(seen)


def test_frames_may_be_views_of_larger_arrays_and_differ_in_size_between_cameras(redis_url: str) -> None:
    judge = Judge(node(views=["main_images", "wrist_images"], vlac={"redis_url": redis_url}))
    large = np.zeros((2, 16, 8, 6), np.uint8)
    large[:, 15, 0, :] = [0, 0, 0, 30, 0, 0]  # the first pixel of what is seen: its value, in the middle
    wrist = np.stack([np.pad(picture(value=value), [(0, 3), (0, 1), (0, 0)]) for value in (40, 20)])
    seen = observations(picture(), picture(), dones=(True, True), wrist_images=wrist)
    rewards = judge.rewards({**seen, "main_images": large[:, ::-1, :, 2:5]})
    assert rewards.tolist() == [np.float32(0.3), np.float32(0.2)]


def test_after_a_failure_no_episode_stays_open_and_no_reward_is_given(redis_url: str) -> None:
    judge = Judge(node(reward_mode="per_step", vlac={"redis_url": redis_url}))
    seen = observations(picture(value=9), picture(fails=True), dones=(True, True))
    with pytest.raises(CriticFailed, match="the picture says so"):
        judge.rewards(seen)
    with pytest.raises(ProtocolError, match="an earlier step failed"):
        judge.rewards(observations(picture(), picture()))


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"reward_mode": None}, r"write reward_mode: \$\{reward.reward_mode\}"),
        ({"num_envs": None}, "nothing to train"),
        ({"runner": None}, r"write runner: \$\{runner\}"),
        ({"reward_mode": "history_buffer"}, "terminal or per_step, not 'history_buffer'"),
        ({"runner": {"enable_decoupled_mode": True}}, "enable_decoupled_mode.*set it to False"),
        ({"env": {"ignore_terminations": False}}, "env.train.ignore_terminations=True"),
        ({"env": {"ignore_terminations": None}}, "env.train.ignore_terminations=True"),
        ({"env": {"auto_reset": True}, "policy": {"add_value_head": True}}, "set env.train.auto_reset=False"),
        ({"env": {"auto_reset": True}, "policy": {"add_q_head": True}}, "set env.train.auto_reset=False"),
        ({"env": {"max_steps_per_rollout_epoch": 4}}, r"max_steps_per_rollout_epoch to max_episode_steps \(8\)"),
        ({"vlac": {"redis_url": None}}, "set reward.model.vlac.redis_url, or VLAC_REDIS_URL"),
        ({"vlac": {"on_failure": "mask"}}, "to raise or retry"),
        ({"vlac": {"done_treshold": 0.5}}, "did you mean 'done_threshold'"),
    ],
)
def test_a_config_that_cannot_work_is_refused_with_what_to_write(changes: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        Judge(node(**changes))


def test_with_auto_reset_a_rollout_may_be_shorter_than_an_episode() -> None:
    Judge(node(env={"max_steps_per_rollout_epoch": 4, "auto_reset": True}))


@pytest.mark.parametrize(
    ("change", "error", "advice"),
    [
        ({"dones": None}, ProtocolError, "no dones, which tell one episode from the next"),
        ({"task_descriptions": None}, ProtocolError, "no task_descriptions"),
        ({"main_images": None}, ConfigError, r"no main_images .*may name \['wrist_images'\]"),
        (
            {"main_images": np.zeros((3, 4, 4, 3), np.uint8)},
            ProtocolError,
            "main_images has 3 rows .* 2 environments",
        ),
        ({"dones": np.zeros(1, bool)}, ProtocolError, "dones has 1 rows"),
        ({"task_descriptions": ["open"]}, ProtocolError, "task_descriptions has 1 rows"),
        ({"task_descriptions": ["open", "close", "lift"]}, ProtocolError, "task_descriptions has 3 rows"),
        ({"task_descriptions": "it"}, ProtocolError, "task_descriptions has 1 rows"),
        ({"task_descriptions": ["open", None]}, ProtocolError, "a task must be a text"),
        ({"main_images": np.zeros((2, 3, 8, 8), np.uint8)}, FrameError, "np.moveaxis"),
        ({"main_images": np.zeros((2, 4, 4, 3), np.float32)}, FrameError, "must be uint8"),
    ],
)
def test_observations_that_cannot_be_used_are_refused(
    redis_url: str, change: dict[str, Any], error: type[VlacQueueError], advice: str
) -> None:
    seen = observations(picture(), picture(), wrist_images=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(error, match=advice):
        Judge(node(vlac={"redis_url": redis_url})).rewards({**seen, **change})


def test_an_rlinf_without_the_names_is_refused_with_all_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        check_upstream(tmp_path)
    message = str(refused.value)
    assert rlinf.SUPPORTED_COMMIT in message and message.count("is missing") == len(rlinf._NEEDED)
    for file, text in (
        (rlinf._REWARD_WORKER, "class EmbodiedRewardWorker:\n    async def compute_reward(self, batch): pass"),
        (rlinf._SEEN, "class EnvOutput:\n    dones: Tensor | None = None"),
    ):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError) as refused:
        check_upstream(tmp_path)
    message = str(refused.value)
    assert "compute_reward takes (self batch), not (self observations)" in message
    assert "EnvOutput.final_obs is missing" in message and "EnvOutput.dones" not in message
