"""Rewards, group filter and advantages of training (verl/trainer/main_ppo.py and ppo/ray_trainer.py)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from numpy.typing import NDArray
from verl.trainer import main_ppo
from verl.trainer.ppo import ray_trainer

from verl_adapter.audit import Rollouts, audit
from verl_adapter.groups import keep_groups, leave_groups
from verl_adapter.settings import read_node
from verl_adapter.updates import with_critics_asleep
from vlac_queue import CriticClient, VlacConfig, VlacQueueError

_log = logging.getLogger(__name__)


class VlacRewardManager(main_ppo.RobRewardManager):
    """Score with the critic's reward where the batch carries it, i.e. in training; else it is upstream's.

    Upstream's `__call__` puts what `verify` leaves in `acc` at the last token that counts.
    """

    # Made at the first training batch, so that validation opens no connection.
    _client: CriticClient | None = None

    def verify(self, data: Any) -> tuple[list[float], dict[str, float], dict[str, float], dict[str, float]]:
        """Return scores 0..1 and metrics.

        A masked episode scores 0.0 here, since upstream wants a number. Nothing uses it: the filter does not
        look at it, and its advantage is 0 (`with_masks`).
        """
        if "vlac_reward" not in data.batch:
            result: tuple[list[float], dict[str, float], dict[str, float], dict[str, float]]
            result = super().verify(data)
            return result
        rewards = data.batch["vlac_reward"].masked_fill(data.batch["vlac_masked"], 0.0)
        data.batch["acc"] = rewards
        data.batch["format_correctness"] = torch.ones_like(rewards)
        masked = _array(data, "vlac_masked")
        counted = rewards[~data.batch["vlac_masked"]]
        mean = counted.mean().item() if len(counted) else float("nan")
        critic, training = read_node(self.config.vlac)
        kept = keep_groups(_array(data, "vlac_reward"), masked, self.config.data.n_samples, training)
        figures = audit(_rollouts(data))
        self._publish(figures, critic)
        metrics = {"all": mean, "vlac/groups_kept": float(kept.mean()), **figures}
        return rewards.tolist(), metrics, {"all": 1.0}, {"all": mean}

    def _publish(self, figures: dict[str, float], critic: VlacConfig) -> None:
        """Show the audit on dashboards, which training does not need."""
        if self._client is None:
            self._client = CriticClient(critic)
        try:
            self._client.publish_audit({name.removeprefix("vlac/"): value for name, value in figures.items()})
        except VlacQueueError as error:
            _log.warning("the audit is missing on dashboards: %s", error)


class VlacTrainer(ray_trainer.RayTrainer):
    """Upstream's trainer, whose filter chooses groups by the critic's rewards where the batch carries them."""

    def init_workers(self) -> None:
        """Make upstream's workers, whose update has the critics asleep, if `sleep_during_update` says so."""
        super().init_workers()
        critic, training = read_node(self.config.vlac)
        if training.sleep_during_update:
            workers = self.actor_rollout_wg
            workers.update_actor = with_critics_asleep(workers.update_actor, CriticClient(critic))

    def filter(self, reward_tensor: Any, batch: Any, n_samples: int) -> Any:
        """Return the groups that `keep_groups` keeps, in place of upstream's bounds on accuracy."""
        if "vlac_reward" not in batch.batch:
            return super().filter(reward_tensor, batch, n_samples)
        _, training = read_node(self.config.vlac)
        kept = keep_groups(_array(batch, "vlac_reward"), _array(batch, "vlac_masked"), n_samples, training)
        return batch.slice(torch.from_numpy(kept.repeat(n_samples)))


def with_masks(compute_advantage: Callable[..., Any]) -> Callable[..., Any]:
    """Return upstream's `compute_advantage`, where masked episodes get no advantage and bend no other's."""

    @functools.wraps(compute_advantage)
    def compute(data: Any, *args: Any, **options: Any) -> Any:
        if "vlac_masked" not in data.batch:
            return compute_advantage(data, *args, **options)
        data.non_tensor_batch["uid"] = leave_groups(data.non_tensor_batch["uid"], _array(data, "vlac_masked"))
        data = compute_advantage(data, *args, **options)
        masked = data.batch["vlac_masked"]
        for name in ("advantages", "returns"):
            data.batch[name] = data.batch[name].masked_fill(masked.unsqueeze(-1), 0.0)
        return data

    return compute


def install() -> None:
    """Put these in the places where upstream's `main_task` looks for its own, in this process."""
    main_ppo.RobRewardManager = VlacRewardManager
    main_ppo.RayTrainer = VlacTrainer
    ray_trainer.compute_advantage = with_masks(ray_trainer.compute_advantage)


def _array(data: Any, name: str) -> NDArray[Any]:
    array: NDArray[Any] = data.batch[name].cpu().numpy()
    return array


def _rollouts(data: Any) -> Rollouts:
    ours = [spec.name for spec in fields(Rollouts) if spec.name not in ("done", "finish_step")]
    return Rollouts(
        done=_array(data, "complete").astype(bool),
        finish_step=_array(data, "finish_step"),
        **{name: _array(data, f"vlac_{name}") for name in ours},
    )
