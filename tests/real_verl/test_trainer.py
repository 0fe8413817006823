"""The real reward manager, group filter and GRPO, on batches that carry the critic's rewards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl import DataProto
from verl.trainer import main_ppo
from verl.trainer.ppo import ray_trainer

from verl_adapter import trainer as ours
from verl_adapter.trainer import VlacRewardManager, VlacTrainer, with_masks

#: Chunks an episode, actions a chunk, tokens an action.
CHUNKS, CHUNK, TOKENS = 3, 8, 7
NAN = float("nan")


@pytest.fixture
def config(rollout_config: Callable[..., Any]) -> Any:
    return rollout_config(
        "data.n_samples=4",
        "data.filter_accuracy=True",
        "data.accuracy_lower_bound=0.1",
        "data.accuracy_upper_bound=0.9",
    )


def rollouts(rewards: list[float], env_success: list[bool] | None = None, group: int = 4) -> DataProto:
    """A batch as `generate_sequences` leaves it and the trainer gives it uids; NaN is masked."""
    count = len(rewards)
    reward = torch.tensor(rewards)
    done = reward == 1.0
    success = torch.tensor(env_success) if env_success else done
    batch = {
        "responses": torch.zeros(count, CHUNKS, CHUNK * TOKENS, dtype=torch.int64),
        "complete": done,
        "finish_step": torch.where(done, 2 * CHUNK, CHUNKS * CHUNK),
        "vlac_reward": reward,
        "vlac_masked": reward.isnan(),
        "vlac_env_success": success,
        "vlac_env_success_step": torch.where(success, 10, -1),
        "vlac_contradicted": torch.where(done, 0.0, NAN),
        "vlac_queries": torch.full((count,), 3),
        "vlac_sent_bytes": torch.full((count,), 1000),
        "vlac_waited_s": torch.full((count,), 0.5),
        "vlac_saved_s": torch.full((count,), 0.5),
    }
    uids = np.array([f"prompt {i // group}" for i in range(count)], dtype=object)
    return DataProto(batch=TensorDict(batch, batch_size=count), non_tensor_batch={"uid": uids}, meta_info={})


def advantages(
    data: DataProto, config: Any, compute: Callable[..., Any] | None = None, kl: float = 0.0
) -> torch.Tensor:
    """One advantage an episode, as `fit` computes them; `kl` is the penalty of each token."""
    manager = VlacRewardManager(num_examine=0, config=config)
    if "acc" not in data.batch:
        manager.verify(data)
    scores, _ = manager(data)
    data.batch["token_level_scores"] = scores["all"]
    data.batch["token_level_rewards"] = scores["all"] - kl
    compute = compute or with_masks(ray_trainer.compute_advantage)
    data = compute(data, 1.0, 1.0, adv_estimator="grpo", config=config)
    assert not data.batch["advantages"].isnan().any()
    return data.batch["advantages"][:, 0]


def filtered(data: DataProto, config: Any) -> list[float]:
    trainer = VlacTrainer.__new__(VlacTrainer)
    trainer.config = config
    VlacRewardManager(num_examine=0, config=config).verify(data)
    return trainer.filter(data.batch["acc"].unsqueeze(1), data, 4).batch["vlac_reward"].tolist()


def test_the_reward_sits_at_the_last_step_that_counts(config):
    data = rollouts([1.0, 0.25, 0.5, 0.75])
    manager = VlacRewardManager(num_examine=0, config=config)
    scores, _, _, _ = manager.verify(data)
    assert scores == [1.0, 0.25, 0.5, 0.75]
    tokens, _ = manager(data)
    coefficient = config.verifier.reward_coef
    assert tokens["all"].sum(-1).tolist() == [coefficient * score for score in scores]
    assert tokens["all"][0, 2 * CHUNK * TOKENS - 1] == coefficient
    assert tokens["all"][1, CHUNKS * CHUNK * TOKENS - 1] == coefficient * 0.25


def test_a_batch_without_the_critics_rewards_is_scored_as_upstream_does(config):
    def plain() -> DataProto:
        data = rollouts([1.0, 0.3, 0.2, 1.0])
        return DataProto(batch=data.batch.select("responses", "complete", "finish_step"))

    theirs = main_ppo.RobRewardManager(num_examine=1, config=config).verify(plain())
    assert VlacRewardManager(num_examine=1, config=config).verify(plain()) == theirs


def test_masked_episodes_do_not_bend_the_advantages_of_others(config):
    with_masked = advantages(rollouts([1.0, NAN, 0.2, 0.6]), config)
    of_three = copy.deepcopy(config)
    of_three.data.n_samples = 3
    without = advantages(rollouts([1.0, 0.2, 0.6], group=3), of_three)
    assert with_masked[1] == 0.0
    torch.testing.assert_close(with_masked[[0, 2, 3]], without)


def test_masked_episodes_get_no_advantage_from_a_kl_penalty_either(config):
    assert advantages(rollouts([1.0, NAN, 0.2, 0.6]), config, kl=0.01)[1] == 0.0


def test_upstreams_own_advantages_would_be_bent(config):
    """What the wrapper is for: left alone, the masked episode counts as a 0."""
    data = rollouts([1.0, NAN, 0.2, 0.6])
    alone = advantages(data, config, compute=ray_trainer.compute_advantage)
    assert alone[1] < 0


def test_unmasked_advantages_are_upstreams_own(config):
    rewards = [1.0, 0.3, 0.2, 0.6, 0.1, 0.9, 1.0, 1.0]
    theirs = advantages(rollouts(rewards), config, compute=ray_trainer.compute_advantage)
    assert torch.equal(advantages(rollouts(rewards), config), theirs)


def test_the_filter_drops_noise_and_keeps_signal(config):
    noise, solved_but_one = [0.30, 0.301, 0.299, 0.30], [1.0, 1.0, 1.0, 0.7]
    masked_out, equal = [0.2, NAN, NAN, NAN], [0.3, 0.3, 0.3, 0.3]
    assert filtered(rollouts(noise + solved_but_one + masked_out + equal), config) == pytest.approx(solved_but_one)


def test_upstreams_filter_does_the_opposite(config):
    """The trap that vlac.min_group_spread is the remedy for."""
    trainer = ray_trainer.RayTrainer.__new__(ray_trainer.RayTrainer)
    trainer.config = config
    data = rollouts([0.30, 0.301, 0.299, 0.30, 1.0, 1.0, 1.0, 0.7])
    VlacRewardManager(num_examine=0, config=config).verify(data)
    kept = trainer.filter(data.batch["acc"].unsqueeze(1), data, 4)
    assert kept.batch["vlac_reward"].tolist() == pytest.approx([0.30, 0.301, 0.299, 0.30])


def test_true_success_changes_only_the_audit(config):
    rewards = [1.0, 0.3, NAN, 0.6]
    truth, flipped = rollouts(rewards), rollouts(rewards, [False, True, True, True])
    manager = VlacRewardManager(num_examine=0, config=config)
    one, other = manager.verify(truth), manager.verify(flipped)
    assert one[0] == other[0] and one[1]["all"] == other[1]["all"]
    assert one[1]["vlac/precision"] != other[1]["vlac/precision"]
    assert torch.equal(advantages(truth, config), advantages(flipped, config))


def test_metrics_keep_their_names_whatever_happened(config):
    manager = VlacRewardManager(num_examine=0, config=config)
    usual = manager.verify(rollouts([1.0, 0.3, 0.2, 0.6]))[1]
    nothing = manager.verify(rollouts([NAN] * 4))[1]
    assert list(usual) == list(nothing)
    assert nothing["vlac/masked"] == 4 and np.isnan(nothing["all"])


def test_install_reaches_what_upstreams_main_task_uses(monkeypatch):
    # Put back by monkeypatch.
    monkeypatch.setattr(main_ppo, "RobRewardManager", main_ppo.RobRewardManager)
    monkeypatch.setattr(main_ppo, "RayTrainer", main_ppo.RayTrainer)
    monkeypatch.setattr(ray_trainer, "compute_advantage", ray_trainer.compute_advantage)
    ours.install()
    names = main_ppo.main_task._function.__globals__
    assert names["RobRewardManager"] is VlacRewardManager and names["RayTrainer"] is VlacTrainer
    assert VlacTrainer.fit.__globals__["compute_advantage"] is ray_trainer.compute_advantage
