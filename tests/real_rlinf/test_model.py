"""The reward model in RLinf's own hands: its registry, configs, reward worker's class and Meta-World."""

# isort: skip_file
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.real_rlinf.on_cpu  # noqa: F401  torchvision can be imported after it

import torch
from omegaconf import OmegaConf
from rlinf.envs.metaworld.metaworld_env import MetaWorldEnv
from rlinf.models.embodiment.reward import BaseRewardModel, get_reward_model_class, reward_model_registry
from rlinf.scheduler.cluster import load_user_extension_module
from rlinf.scheduler.worker.routing import merge_batches
from rlinf.workers.env.env_worker import EnvWorker
from rlinf.workers.reward.reward_worker import EmbodiedRewardWorker

from tests.conftest import ROOT, Workers
from tests.real_rlinf.configs import composed
from vlac_queue import ConfigError, CriticClient, RolloutGate, VlacConfig
from vlac_queue.integrations import rlinf
from vlac_queue.integrations.rlinf import check_upstream
from vlac_queue.server import RedisServer
from vlac_queue.upstream import misfits

#: Those of LIBERO and Meta-World, by GRPO and PPO; the last but one has auto_reset and a value head.
NAMES = [
    "libero_spatial_grpo_openvlaoft",
    "libero_10_grpo_openpi",
    "libero_10_ppo_openpi",
    "libero_spatial_ppo_gr00t_n1d6",
    "metaworld_50_grpo_openvlaoft",
]
PYTHONPATH = os.pathsep.join([os.environ["RLINF_HOME"], str(ROOT)])


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry as RLinf's own loader leaves it."""
    monkeypatch.delitem(reward_model_registry, "vlac", raising=False)
    monkeypatch.setenv("RLINF_EXT_MODULE", "vlac_queue.integrations.rlinf")
    load_user_extension_module()


def reward_worker(cfg: Any, envs: int) -> EmbodiedRewardWorker:
    """RLinf's, past its constructor, which wants Ray and a GPU."""
    worker = object.__new__(EmbodiedRewardWorker)
    worker.cfg, worker.local_num_train_envs = cfg, envs
    worker.model = worker.model_provider_func()
    return worker


def test_the_extension_module_puts_the_model_into_rlinfs_registry() -> None:
    check_upstream()
    assert issubclass(get_reward_model_class("vlac"), BaseRewardModel)


@pytest.mark.parametrize("name", NAMES)
def test_our_block_goes_on_top_of_rlinfs_own_configs(name: str) -> None:
    cfg = composed(name, "reward.model.vlac.redis_url=redis://127.0.0.1:1/0")
    model = reward_worker(cfg, 4).model
    assert model.judge.views == ["main_images"] and cfg.reward.reward_mode == "terminal"
    assert cfg.reward.reward_weight > 0 == cfg.env.train.reward_coef
    assert OmegaConf.to_container(cfg, resolve=True)["cluster"]["component_placement"]["reward"] == 0
    with pytest.raises(NotImplementedError, match="not trained here"):
        model(torch.zeros(1))


@pytest.mark.timeout(300)
def test_rlinfs_own_check_of_configs_finds_nothing() -> None:
    """In a process of its own: RLinf makes a Ray cluster for it, and ends its process as it likes."""
    environ = {**os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-m", "tests.real_rlinf.validate", *NAMES]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=250)
    assert done.stdout.splitlines()[-1:] == [f"valid: {' '.join(NAMES)}"], done.stdout + done.stderr


def test_each_name_that_is_relied_on_is_missed(tmp_path: Path) -> None:
    """Each is renamed in a copy of its file."""
    package = Path(os.environ["RLINF_HOME"]) / "rlinf"
    for (file, name), parameters in rlinf._NEEDED.items():
        renamed = re.sub(rf"\b{name.rpartition('.')[2]}\b", "renamed", (package / file).read_text())
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(renamed)
        assert misfits(tmp_path, {(file, name): parameters}) == [f"{file}: {name} is missing"]


def test_rlinf_itself_cannot_merge_what_two_environment_workers_send_when_one_has_reset_rows() -> None:
    """docs/rlinf.md tells of it; where this fails, RLinf has mended it."""
    went_on: dict[str, Any] = {"main_images": torch.zeros(1), "env_infos": {"episode": {}}}
    has_reset = {**went_on, "env_infos": {"final_info": {}}}
    with pytest.raises(KeyError, match="final_info"):
        merge_batches([has_reset, went_on])


def test_what_the_config_must_not_say_is_refused_when_the_worker_begins() -> None:
    for override, advice in (
        ("env.train.ignore_terminations=False", "env.train.ignore_terminations=True"),
        ("reward.reward_mode=history_buffer", "terminal or per_step"),
        ("reward.model.vlac.redis_url=null", "no Redis is named"),
    ):
        url = "reward.model.vlac.redis_url=redis://127.0.0.1:1/0"
        with pytest.raises(ConfigError, match=advice):
            reward_worker(composed("libero_spatial_grpo_openvlaoft", url, override), 4)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["terminal", "per_step"])
def test_meta_worlds_rewards_are_the_gates_on_the_same_frames(
    mode: str, server: RedisServer, workers: Workers
) -> None:
    workers.start("tests.workers.critics:TaskCritic")  # values by the red of a corner
    rows, limit, chunk = 2, 4, 2
    cfg = composed(
        "metaworld_50_grpo_openvlaoft",
        f"reward.model.vlac.redis_url={server.url}",
        f"reward.reward_mode={mode}",
        f"actor.model.num_action_chunks={chunk}",
        *(
            f"env.train.{line}"
            for line in ("auto_reset=True", f"max_episode_steps={limit}", "group_size=1", "seed=0")
        ),
    )
    worker = reward_worker(cfg, rows)
    envs = MetaWorldEnv(cfg.env.train, rows, 0, 1, None)
    shown, given = [], []
    try:
        envs.reset()
        for _ in range(4):
            actions = np.full((rows, chunk, 4), 0.5, np.float32)
            seen, _, terminated, truncated, infos = envs.chunk_step(actions)
            final = EnvWorker._build_chunk_final_obs(None, seen, infos)
            shown.append(final["main_images"].numpy())
            rewards = worker.model.compute_reward({**final, "dones": (terminated | truncated)[:, -1]})
            given.append(worker._format_reward_output(rewards).numpy())
    finally:
        envs.env.close()
    with CriticClient(VlacConfig(redis_url=server.url, timeout_s=30)) as client:
        gate = RolloutGate(client, ["t"] * 2 * rows)
        for step, frames in enumerate(shown):
            gate.observe(None, {row + rows * (step // 2): frames[row] for row in range(rows)})
        outcomes = [outcome.reward for outcome in gate.settle()]
        gate.close()
    assert len({frame.tobytes() for frames in shown for frame in frames}) == 4 * rows
    sums = [np.reshape(given[a] + given[a + 1], (rows, -1)).sum(axis=1) for a in (0, 2)]
    np.testing.assert_allclose(np.concatenate(sums), outcomes, rtol=1e-6)
