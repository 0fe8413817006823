"""RLinf's own environment worker, LiberoEnv and reward worker, on Ray and a CPU, with a real queue behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from tests.conftest import ROOT
from vlac_queue import CriticClient, RolloutGate, VlacConfig

CHUNK = 2
#: A plan a trial, a task each; the reward worker sees every second letter.
PLANS = [["...d....", "........", ".d.....d"], ["s......w", ".......d", "...s...."]]


def config(mode: str, views: list[str], *, workers: tuple[int, int], **train: Any) -> dict[str, Any]:
    """RLinf's config, as little of it as its environment and reward workers read; `workers`: how many of each."""
    env = {
        "env_type": "libero",
        "task_suite_name": "plans",
        "total_num_envs": 4,
        "group_size": 1,
        "rollout_epoch": 2,
        "auto_reset": False,
        "ignore_terminations": True,
        "max_episode_steps": 8,
        "max_steps_per_rollout_epoch": 8,
        "use_rel_reward": True,
        "reward_coef": 1.0,
        "reset_gripper_open": True,
        "is_eval": False,
        "seed": 0,
        "use_fixed_reset_state_ids": True,
        "use_ordered_reset_state_ids": True,
        "video_cfg": {"save_video": False},
        "init_params": {},
        **train,
    }
    model = {
        "model_type": "vlac",
        "views": views,
        "reward_mode": "${reward.reward_mode}",
        "policy": "${actor.model}",
        "env": "${env.train}",
        "runner": "${runner}",
    }
    return {
        "cluster": {
            "num_nodes": 1,
            "component_placement": {
                "actor,rollout": "0",
                **{part: f"0:0-{count - 1}" for part, count in zip(("env", "reward"), workers, strict=True)},
            },
        },
        "runner": {"only_eval": False, "val_check_interval": -1},
        "algorithm": {"gamma": 0.99},
        "env": {"group_name": "EnvGroup", "train": env},
        "rollout": {"group_name": "RolloutGroup", "pipeline_stage_num": 1},
        "actor": {"model": {"model_type": "openvla_oft", "num_action_chunks": CHUNK, "action_dim": 7}},
        "reward": {
            "use_reward_model": True,
            "group_name": "RewardGroup",
            "reward_mode": mode,
            "reward_weight": 1.0,
            "env_reward_weight": 0.0,
            "model": model,
        },
    }


def run(
    cfg: dict[str, Any], redis_url: str, folder: Path, plans: list[list[str]]
) -> subprocess.CompletedProcess[str]:
    """RLinf's loop on these plans; RLINF_EXT_MODULE is all that RLinf is told."""
    (folder / "config.json").write_text(json.dumps(cfg))
    site = ROOT / "tests" / "real_rlinf" / "site"
    environ = {
        **os.environ,
        "RLINF_EXT_MODULE": "vlac_queue.integrations.rlinf",
        "VLAC_REDIS_URL": redis_url,
        "FAKE_LIBERO_PLANS": json.dumps(plans),
        "PYTHONPATH": os.pathsep.join([os.environ["RLINF_HOME"], str(ROOT), str(site)]),
        "RAY_ADDRESS": "local",  # or RLinf joins any cluster of this host
        "RAY_AUTH_MODE": "disabled",
    }
    command = [sys.executable, "-m", "tests.real_rlinf.loop", str(folder / "config.json")]
    with open(folder / "log", "w") as log:
        return subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True, timeout=500)


def roll_out(cfg: dict[str, Any], redis_url: str, folder: Path) -> list[dict[str, Any]]:
    """What each environment worker showed and was given."""
    done = run(cfg, redis_url, folder, PLANS)
    assert done.returncode == 0, (folder / "log").read_text()[-5000:] + done.stdout[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def open_episodes(redis_url: str) -> int:
    with redis.Redis.from_url(redis_url) as connection:
        return connection.zcard("vlac:vlac:open")


def episodes(told: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Row, first chunk and the chunk after the last of each episode that ended."""
    dones = np.array([shown["dones"] for shown in told["shown"]])
    return [
        (row, first, last)
        for row in range(dones.shape[1])
        for first, last in pairwise([0, *(np.flatnonzero(dones[:, row]) + 1)])
    ]


def by_the_gate(redis_url: str, told: dict[str, Any], view: str) -> list[float | None]:
    """The gate's reward of each episode on the frames that its row showed."""
    spans = episodes(told)
    with (
        CriticClient(VlacConfig(redis_url=redis_url, timeout_s=30)) as client,
        RolloutGate(client, ["t"] * len(spans)) as gate,
    ):
        for index, (row, first, last) in enumerate(spans):
            for shown in told["shown"][first:last]:
                gate.observe(None, {index: np.array(shown[view][row], np.uint8)})
        return [outcome.reward for outcome in gate.settle()]


@pytest.mark.timeout(600)
def test_terminal_rewards_are_the_gates_at_the_end_of_each_episode(redis_url: str, tmp_path: Path) -> None:
    # Rows of both environment workers come to the one reward worker in one batch.
    workers = roll_out(config("terminal", ["main_images"], workers=(2, 1)), redis_url, tmp_path)
    assert len(workers) == 2 and open_episodes(redis_url) == 0
    given = set()
    for told in workers:
        rewards = np.array(told["rewards"])
        assert rewards.shape == (8, 2, CHUNK)
        expected = np.zeros_like(rewards)
        for (row, _, last), reward in zip(
            episodes(told), by_the_gate(redis_url, told, "main_images"), strict=True
        ):
            expected[last - 1, row, -1] = reward
            given.add(reward)
        np.testing.assert_allclose(rewards, expected, rtol=1e-6)
        assert len(episodes(told)) == 4
    assert 1.0 in given and len(given) > 1


@pytest.mark.timeout(600)
def test_rows_that_reset_at_different_steps_are_rewarded_by_both_cameras(redis_url: str, tmp_path: Path) -> None:
    """RLinf resets a row when the simulator calls it done, which the reward model would refuse: it isn't told."""
    views = ["main_images", "wrist_images"]
    # As many of each: one reward worker can't merge what several send when rows of one alone were reset.
    train = {"auto_reset": True, "ignore_terminations": False, "rollout_epoch": 3}
    cfg = config("per_step", views, workers=(2, 2), **train)
    cfg["reward"]["model"]["env"] = {"auto_reset": True, "ignore_terminations": True}
    lengths = set()
    for told in roll_out(cfg, redis_url, tmp_path):
        rewards = np.array(told["rewards"])
        assert rewards.shape == (12, 2, CHUNK) and not rewards[..., :-1].any()
        of_views = [by_the_gate(redis_url, told, view) for view in views]
        for (row, first, last), *of_episode in zip(episodes(told), *of_views, strict=True):
            assert rewards[first:last, row].sum() == pytest.approx(min(of_episode))
            lengths.add(last - first)
    assert len(lengths) > 1


@pytest.mark.timeout(600)
def test_a_failure_of_the_critic_ends_the_run_and_leaves_no_episode_open(redis_url: str, tmp_path: Path) -> None:
    cfg = config("terminal", ["main_images"], workers=(1, 1), total_num_envs=2)
    before = open_episodes(redis_url)
    done = run(cfg, redis_url, tmp_path, [["...x....", "........"]])
    assert done.returncode != 0
    assert "CriticFailed: the picture says so" in done.stdout + (tmp_path / "log").read_text()
    assert open_episodes(redis_url) == before
