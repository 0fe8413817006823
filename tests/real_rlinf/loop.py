"""RLinf's own loop on a CPU: its environment worker and its reward worker on Ray, with a policy that moves on.

    python -m tests.real_rlinf.loop CONFIG.json

CONFIG.json holds RLinf's config. Its last line is JSON: for each environment worker what it showed to the reward
worker, chunk by chunk, and the rewards that it got, (chunks, rows, steps).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from omegaconf import OmegaConf
from rlinf.scheduler import Channel, Cluster
from rlinf.utils.placement import HybridComponentPlacement

from tests.real_rlinf.parts import Environments, Policy, RewardWorker


def main() -> None:
    with open(sys.argv[1]) as file:
        cfg = OmegaConf.create(json.load(file))
    cluster = Cluster(cluster_cfg=cfg.cluster)
    placement = HybridComponentPlacement(cfg, cluster)

    def launch(kind: Any, component: str) -> Any:
        strategy = placement.get_strategy(component)
        name = cfg[component].group_name
        return kind.create_group(cfg).launch(cluster, name=name, placement_strategy=strategy)

    policy, environments, rewards = (
        launch(Policy, "rollout"),
        launch(Environments, "env"),
        launch(RewardWorker, "reward"),
    )
    to_env, to_policy, to_reward = (Channel.create(name) for name in ("Env", "Rollout", "Reward"))
    environments.init_worker().wait()
    rewards.init_worker().wait()
    chunks = cfg.env.train.max_steps_per_rollout_epoch // cfg.actor.model.num_action_chunks
    handles = [
        environments.interact(to_env, to_policy, to_reward, None),
        policy.act(to_policy, to_env, cfg.env.train.rollout_epoch * (chunks + 1)),
        rewards.compute_rewards(to_reward, to_env),
    ]
    for handle in handles:
        handle.wait()
    print(json.dumps(environments.gathered().wait()))


if __name__ == "__main__":
    main()
