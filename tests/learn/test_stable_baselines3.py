"""Stable-Baselines3's PPO on the gymnasium wrapper: examples/ppo_stable_baselines3.py, as a user runs it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor

from tests.conftest import ROOT, Workers
from vlac_queue.server import RedisServer

EXAMPLE = ROOT / "examples" / "ppo_stable_baselines3.py"


@pytest.fixture
def example(server: RedisServer, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module, with a worker that answers."""
    workers.start()
    monkeypatch.setenv("VLAC_REDIS_URL", server.url)
    spec = importlib.util.spec_from_file_location("ppo_stable_baselines3", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ppo_runs_some_hundred_steps_and_sees_the_critics_rewards(example: Any) -> None:
    envs = VecMonitor(VecCheckNan(example.Vectorized(example.make(4)), raise_exception=True))
    model = PPO("MlpPolicy", envs, n_steps=64, batch_size=64, seed=0, device="cpu")
    model.learn(512)
    assert model.num_timesteps == 512
    returns = [episode["r"] for episode in model.ep_info_buffer]
    lengths = [episode["l"] for episode in model.ep_info_buffer]
    assert len(returns) >= 512 // 20 - 4 and max(lengths) <= 20
    # By the rule: 1.0 where it was found done, else a value below.
    assert all(0.0 <= reward <= 1.0 for reward in returns) and any(0.0 < reward < 1.0 for reward in returns)
    envs.close()


def test_the_last_observation_is_of_the_episode_that_ended(example: Any) -> None:
    envs = example.Vectorized(example.make(1))
    envs.seed(3)
    envs.reset()
    for _ in range(example.PLACES):
        observations, rewards, ended, (info,) = envs.step(np.array([2]))
        if ended[0]:
            break
    # The reference's score passes 0.9 at the place before the last.
    assert rewards[0] == 1.0 and info["terminal_observation"] >= 0.9 and observations[0] < 0.5
    assert info["TimeLimit.truncated"] is False
    envs.close()


@pytest.mark.timeout(600)
def test_the_example_learns(example: Any, server: RedisServer) -> None:
    environ = {**os.environ, "VLAC_REDIS_URL": server.url}
    done = subprocess.run([sys.executable, EXAMPLE], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = (float(rate) for rate in re.findall(r"(\d\.\d\d) of the dots arrive", done.stdout))
    assert before <= 0.5 and after >= 0.9, done.stdout
