"""RLinf: a reward model that asks the queue's critic. Set RLINF_EXT_MODULE to this module (docs/rlinf.md).

`python -m vlac_queue.integrations.rlinf` tells whether the installed RLinf is one that this module knows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vlac_queue import ConfigError, CriticClient, ProtocolError, VlacConfig
from vlac_queue.frames import Frames
from vlac_queue.integrations.rows import RowRewards
from vlac_queue.upstream import Needed, misfits

REPOSITORY = "https://github.com/RLinf/RLinf"
#: The commit that this module is written and tested against.
SUPPORTED_COMMIT = "a3816b596478dcd8a5c69a6ec1468c9519f77b5b"

#: `reward.model.model_type` in RLinf's config.
MODEL_TYPE = "vlac"

_REGISTRY = "models/embodiment/reward/__init__.py"
_BASE = "models/embodiment/reward/base_reward_model.py"
_REWARD_WORKER = "workers/reward/reward_worker.py"
_ENV_WORKER = "workers/env/env_worker.py"
_SEEN = "data/schema/embodied_types.py"

_NEEDED: Needed = {
    ("scheduler/cluster/cluster.py", "ClusterEnvVar.EXT_MODULE"): None,
    ("scheduler/cluster/utils.py", "load_user_extension_module"): "logger",
    ("scheduler/worker/worker.py", "Worker._load_user_extensions"): "self",
    (_REGISTRY, "BaseRewardModel"): None,
    (_REGISTRY, "reward_model_registry"): None,
    (_REGISTRY, "get_reward_model_class"): "reward_model_type",
    (_BASE, "BaseRewardModel.__init__"): "self cfg",
    (_BASE, "BaseRewardModel.forward"): "self input_data labels",
    (_BASE, "BaseRewardModel.compute_reward"): "self observations",
    (_REWARD_WORKER, "EmbodiedRewardWorker.init_worker"): "self",
    (_REWARD_WORKER, "EmbodiedRewardWorker.model_provider_func"): "self",
    (_REWARD_WORKER, "EmbodiedRewardWorker.compute_rewards"): "self input_channel output_channel",
    (_REWARD_WORKER, "EmbodiedRewardWorker.compute_reward"): "self observations",
    (_REWARD_WORKER, "EmbodiedRewardWorker._format_reward_output"): "rewards",
    (_SEEN, "EnvOutput.dones"): None,
    (_SEEN, "EnvOutput.final_obs"): None,
    (_ENV_WORKER, "EnvWorker._run_interact_once"): (
        "self input_channel rollout_channel reward_channel actor_channel cooperative_yield"
    ),
    (_ENV_WORKER, "EnvWorker.bootstrap_step"): "self",
    (_ENV_WORKER, "EnvWorker.env_interact_step"): "self chunk_actions stage_id",
    (_ENV_WORKER, "EnvWorker.get_reward_model_output"): (
        "self env_output send_channel recv_channel stage_id last_run"
    ),
    (_ENV_WORKER, "EnvWorker._build_chunk_final_obs"): "self obs_list infos_list",
    (_ENV_WORKER, "EnvWorker._scatter_terminal_reward_output"): "self env_output reward_output",
    (_ENV_WORKER, "EnvWorker.compute_bootstrap_rewards"): ("self env_output bootstrap_values reward_model_output"),
}

#: Lines of the block `reward.model` that copy what RLinf keeps elsewhere in its config.
_COPIED = {
    "reward_mode": "${reward.reward_mode}",
    "policy": "${actor.model}",
    "env": "${env.train}",
    "runner": "${runner}",
}


def register() -> None:
    """Add the reward model to RLinf's registry; each of RLinf's workers calls it.

    Raises:
        ConfigError: this RLinf is not one that the module knows. RLinf logs it, and goes on.
    """
    check_upstream()
    from rlinf.models.embodiment.reward import reward_model_registry

    reward_model_registry[MODEL_TYPE] = reward_model_class()


def check_upstream(package: Path | None = None) -> None:
    """Compare what is needed of RLinf with what is there, without importing it.

    Args:
        package: folder of the package `rlinf`; None finds it.

    Raises:
        ConfigError: names are missing or have other parameters; the message lists all of them.
    """
    if package is None:
        spec = find_spec("rlinf")
        if spec is None or not spec.origin:
            raise ConfigError(
                f"the package rlinf can't be imported; put a checkout of {REPOSITORY} on PYTHONPATH."
            )
        package = Path(spec.origin).parent
    if wrong := misfits(package, _NEEDED):
        raise ConfigError(
            f"the package rlinf in {package} is not the RLinf that this module knows; use commit "
            f"{SUPPORTED_COMMIT} of {REPOSITORY}, or another release of vlac-queue:\n  " + "\n  ".join(wrong)
        )


class Judge:
    """What the reward model does: RLinf's observations in, its rewards out.

    Args:
        cfg: RLinf's node `reward.model`, with `num_envs`, which RLinf adds.

    Raises:
        ConfigError: the node is not usable; the message holds the line to write.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        for name, line in _COPIED.items():
            if cfg.get(name) is None:
                raise ConfigError(f"reward.model.{name} is missing; write {name}: {line}")
        if cfg.get("num_envs") is None:
            raise ConfigError(
                "RLinf gave no num_envs: it does so in its EmbodiedRewardWorker alone. There is nothing to train."
            )
        _check_mode(cfg["reward_mode"], cfg["runner"])
        _check_ends(cfg["env"], cfg["policy"])
        node = cfg.get("vlac") or {}
        if not (node.get("redis_url") or os.environ.get("VLAC_REDIS_URL")):
            raise ConfigError(
                "no Redis is named; set reward.model.vlac.redis_url, or VLAC_REDIS_URL where Ray starts."
            )
        config = VlacConfig.from_env(**node)
        if config.on_failure == "mask":
            raise ConfigError(
                "RLinf can't leave single episodes out of training; set reward.model.vlac.on_failure to raise or "
                "retry, and patience_s to the seconds that an outage may last."
            )
        views = cfg.get("views") or "main_images"
        self.views = [views] if isinstance(views, str) else [str(view) for view in views]
        self._per_step = cfg["reward_mode"] == "per_step"
        self._chunk = int(cfg["policy"]["num_action_chunks"])
        self._rows = int(cfg["num_envs"])
        self._rewards = RowRewards(
            CriticClient(config), rows=self._rows, views=len(self.views), wait=self._per_step
        )

    def rewards(self, observations: Mapping[str, Any]) -> np.ndarray:
        """Return the rewards of RLinf's observations after an action chunk.

        Args:
            observations: `task_descriptions`, `dones` (B,) and the views, uint8 (B,H,W,3), RGB, as tensors or
                arrays.

        Returns:
            float32: (B,) in the mode terminal, of which RLinf uses those of rows that are done; (B, T) in the
            mode per_step, the reward in the last of the chunk's T steps.

        Raises:
            VlacQueueError: critic or queue failed, or observations are not usable; the episodes are closed then.
        """
        for name in ("dones", "task_descriptions"):
            if observations.get(name) is None:
                raise ProtocolError(
                    f"RLinf's observations have no {name}, which tell one episode from the next; they have "
                    f"{sorted(observations)}. With reward.standalone_realworld there are none: leave it out."
                )
        ended = _array(observations["dones"]).astype(bool).reshape(-1)
        described = observations["task_descriptions"]
        tasks = [described] if isinstance(described, str) else list(described)
        frames = [self._view(observations, view) for view in self.views]
        rows = {"dones": len(ended), "task_descriptions": len(tasks)}
        for name, count in (rows | dict(zip(self.views, map(len, frames), strict=True))).items():
            if count != self._rows:
                raise ProtocolError(
                    f"{name} has {count} rows and this reward worker has {self._rows} environments."
                )
        given = self._rewards.step(tasks, frames, ended).astype(np.float32)
        if not self._per_step:
            return given
        chunk = np.zeros((self._rows, self._chunk), np.float32)
        chunk[:, -1] = given
        return chunk

    def _view(self, observations: Mapping[str, Any], view: str) -> Frames:
        """Return the frames of a view, uint8 (B,H,W,3): "NAME", or "NAME.2" of several cameras under one name."""
        name, _, index = view.partition(".")
        if observations.get(name) is None:
            cameras = [key for key, value in observations.items() if getattr(value, "ndim", 0) >= 4]
            raise ConfigError(
                f"there are no {name} in RLinf's observations; reward.model.views may name {cameras}."
            )
        frames = _array(observations[name])
        cameras = [f"{name}.{camera}" for camera in range(frames.shape[1])] if frames.ndim == 5 else [name]
        if view not in cameras:
            raise ConfigError(f"there is no camera {view}; reward.model.views may name {cameras}.")
        return frames[:, int(index)] if index else frames


def reward_model_class() -> type:
    """Return the reward model, a class of RLinf's kind; RLinf and torch are imported here."""
    import torch
    from rlinf.models.embodiment.reward import BaseRewardModel

    class VlacRewardModel(BaseRewardModel):
        """Rewards by the critic that workers serve; it has no weights and trains nothing."""

        def __init__(self, cfg: Any) -> None:
            check_upstream()
            super().__init__(cfg)
            self.judge = Judge(cfg)

        def forward(self, input_data: Any, labels: Any = None) -> dict[str, Any]:
            """Refuse: there is nothing to train here."""
            raise NotImplementedError("the critic is not trained here; it runs in the workers of vlac-queue.")

        def compute_reward(self, observations: Any) -> Any:
            """Return the rewards of RLinf's observations after an action chunk, as `Judge.rewards`."""
            return torch.from_numpy(self.judge.rewards(observations))

    return VlacRewardModel


def _check_mode(mode: str, runner: Mapping[str, Any]) -> None:
    """Raise ConfigError where RLinf would not ask row by row, or would ask with what the queue has already."""
    if runner.get("enable_decoupled_mode"):
        raise ConfigError(
            "rows of several environment workers come in any order with runner.enable_decoupled_mode, and would "
            "be taken for one another; set it to False."
        )
    if mode not in ("per_step", "terminal"):
        raise ConfigError(
            f"reward.reward_mode must be terminal or per_step, not {mode!r}. The queue keeps each episode's "
            "frames, so it needs no history_buffer, which sends them again with every window."
        )


def _check_ends(env: Mapping[str, Any], policy: Mapping[str, Any]) -> None:
    """Raise ConfigError where others than the critic would decide over episodes' ends or rewards."""
    if not env.get("ignore_terminations"):
        raise ConfigError(
            "the simulator's own success would end episodes; set env.train.ignore_terminations=True, so that only "
            "the critic judges, and the time limit ends them."
        )
    if env.get("auto_reset") and (policy.get("add_value_head") or policy.get("add_q_head")):
        raise ConfigError(
            "with auto_reset RLinf adds the policy's own value of the last picture to the critic's reward; set "
            "env.train.auto_reset=False, or use a policy without a value head."
        )
    limit, rollout = env.get("max_episode_steps"), env.get("max_steps_per_rollout_epoch")
    if not env.get("auto_reset") and limit != rollout:
        raise ConfigError(
            f"without auto_reset, environments are reset after max_steps_per_rollout_epoch ({rollout}) without a "
            f"word to the reward model; set env.train.max_steps_per_rollout_epoch to max_episode_steps ({limit})."
        )


def _array(values: Any) -> np.ndarray:
    """Return a tensor, on whichever device, or an array as an array."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


if __name__ == "__main__":
    try:
        check_upstream()
    except ConfigError as error:
        sys.exit(str(error))
    print(f"The installed RLinf has all that the reward model {MODEL_TYPE!r} needs.")
