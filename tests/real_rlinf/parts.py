"""RLinf's workers for a CPU, and a policy for them; a module of its own, which Ray's processes import."""

# isort: skip_file
from __future__ import annotations

from typing import Any

import tests.real_rlinf.on_cpu  # noqa: F401  torchvision can be imported after it

import torch
from rlinf.data.schema.embodied_types import PolicyOutput
from rlinf.scheduler import Channel, Worker
from rlinf.workers.env.env_worker import EnvWorker
from rlinf.workers.reward.reward_worker import EmbodiedRewardWorker


class RewardWorker(EmbodiedRewardWorker):
    """RLinf's, with torch.cuda stood in for."""

    def __init__(self, cfg: Any) -> None:
        torch.cuda.set_device = lambda device: None
        torch.cuda.current_device = lambda: "cpu"
        super().__init__(cfg)


class Environments(EnvWorker):
    """RLinf's, which tells what it showed to the reward worker and what it gathered for training."""

    def get_reward_model_output(self, env_output: Any, *arguments: Any, **named: Any) -> Any:
        shown = env_output.final_obs
        self.__dict__.setdefault("shown", []).append(
            {
                "main_images": shown["main_images"].tolist(),
                "wrist_images": shown["wrist_images"].tolist(),
                "dones": env_output.dones[:, -1].tolist(),
            }
        )
        return super().get_reward_model_output(env_output, *arguments, **named)

    def gathered(self) -> dict[str, Any]:
        (builder,) = self.trajectory_builders
        return {"rewards": torch.stack(builder.rewards).tolist(), "shown": self.shown}


class Policy(Worker):
    """Answers each observation with actions that move."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg

    def act(self, input_channel: Channel, output_channel: Channel, rounds: int) -> None:
        batch = self.cfg.env.train.total_num_envs
        for _ in range(rounds):
            common = {"group_name": self.cfg.env.group_name, "tag": "train_rollout_results", "route_key": 0}
            self.recv_from(channel=input_channel, batch_size=batch, infer_batch_size_fn=lambda _: batch, **common)
            actions = torch.ones(batch, self.cfg.actor.model.num_action_chunks, 7)
            output = PolicyOutput(actions=actions, forward_inputs={"action": actions.flatten(1)})
            self.send_to(
                channel=output_channel,
                data=output,
                batch_size=batch,
                split_fn=lambda data, sizes: [data],
                **common,
            )
