"""In place of upstream's FSDP workers: the real rollout around a fake policy, on CPU, and no update.

Follows upstream's `RobActorRolloutRefWorker` in what the trainer calls of it.
"""

import os
from types import SimpleNamespace
from typing import Any

import torch
from verl import DataProto
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.import_utils import import_external_libs

from tests.real_verl.fake_policy import FakePolicy, FakeProcessor

MAX_STEPS = 24


class RobActorRolloutRefWorker(Worker):
    def __init__(self, config: Any, role: str) -> None:
        super().__init__()
        self.config = config

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        import_external_libs(self.config.model.get("external_lib", None))
        from verl.workers import rollout as package
        from verl.workers.rollout import rob_rollout

        class TorchOnCpu:
            def __getattr__(self, name: str) -> Any:
                return getattr(torch, name)

            @staticmethod
            def device(name: str) -> torch.device:
                return torch.device("cpu")

        rob_rollout.torch = TorchOnCpu()
        rob_rollout.AutoProcessor = SimpleNamespace(from_pretrained=lambda *_, **__: FakeProcessor())
        rob_rollout.save_rollout_video = lambda *_: None
        torch.manual_seed(self.rank)
        self.rollout = package.RobHFRollout(module=FakePolicy(), config=self.config.rollout)
        self.rollout.max_steps = {"libero_10": MAX_STEPS}
        print(f"rank {self.rank} built {type(self.rollout).__name__}", flush=True)

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO)
    def generate_sequences(self, prompts: DataProto) -> DataProto:
        output = self.rollout.generate_sequences(prompts=prompts)
        if prompts.meta_info.get("recompute_log_prob", True):
            tokens = output.batch["responses"].flatten(1)
            output.batch["old_log_probs"] = torch.zeros(tokens.shape)
        return output

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO)
    def update_actor(self, data: DataProto) -> DataProto:
        """Leaves what it would have learned from in the folder that the test reads."""
        names = ("advantages", "vlac_reward", "vlac_masked", "finish_step", "token_level_rewards")
        batch = {name: data.batch[name] for name in names}
        batch["uid"] = data.non_tensor_batch["uid"].tolist()
        torch.save(batch, os.path.join(os.environ["FAKE_WORKERS_OUT"], f"update_of_rank_{self.rank}.pt"))
        return DataProto(meta_info={"metrics": {"actor/pg_loss": [0.0]}})

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO)
    def compute_entropy(self, data: DataProto) -> DataProto:
        return DataProto(meta_info={"metrics": {"actor/entropy": [0.0]}})


class ActorRolloutRefWorker(Worker):
    """Imported by upstream, and not used."""


class CriticWorker(Worker):
    """Imported by upstream, and not used with GRPO."""
