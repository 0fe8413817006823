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
        common: dict[str, Any] = {"group_name": self.cfg.env.group_name, "tag": "train_rollout_results"}
        common |= {"route_key": 0, "batch_size": batch}
        for _ in range(rounds):
            self.recv_from(
                channel=input_channel,
                merge_fn=list,
                infer_batch_size_fn=lambda seen: len(seen["obs"]["states"]),
                **common,
            )
            self.send_to(channel=output_channel, data=None, split_fn=self._actions, **common)

    def _actions(self, _: None, sizes: list[int]) -> list[PolicyOutput]:
        """One output for each environment worker, which has so many rows."""
        shape = (self.cfg.actor.model.num_action_chunks, 7)
        moves = [torch.ones(size, *shape) for size in sizes]
        return [PolicyOutput(actions=move, forward_inputs={"action": move.flatten(1)}) for move in moves]
