"""What of SimpleVLA-RL we lean on, looked up in its source before anything starts."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from vlac_queue import ConfigError
from vlac_queue.upstream import Needed, misfits

REPOSITORY = "https://github.com/PRIME-RL/SimpleVLA-RL"
#: The commit that this adapter is written and tested against.
SUPPORTED_COMMIT = "7c51662df27b586f9e8a1ab35fcf849f2b8852f9"

_ROLLOUT = "workers/rollout/rob_rollout.py"
_TRAINER = "trainer/ppo/ray_trainer.py"
_MAIN = "trainer/main_ppo.py"

_NEEDED: Needed = {
    (_ROLLOUT, "env_worker"): (
        "task_name task_id trial_id config input_queue output_queue is_valid global_steps max_steps"
    ),
    (_ROLLOUT, "get_libero_env"): None,
    (_ROLLOUT, "RobotwinEnvWrapper.initialize"): "self",
    (_ROLLOUT, "RobotwinEnvWrapper.get_obs"): "self",
    (_ROLLOUT, "RobotwinEnvWrapper.step"): "self action",
    (_ROLLOUT, "RobHFRollout.__init__"): "self module config",
    (_ROLLOUT, "RobHFRollout._generate_minibatch"): "self prompts",
    (_ROLLOUT, "RobHFRollout._obs_to_input"): "self obs is_robotwin robotwin_version",
    (_ROLLOUT, "RobHFRollout.process_input"): "self inputs task_descriptions",
    (_ROLLOUT, "RobHFRollout._generate_one_step"): "self prompts",
    (_ROLLOUT, "RobHFRollout._prepare_output_batch"): "self vla_history task_records batch_size",
    ("workers/rollout/__init__.py", "RobHFRollout"): None,
    (_MAIN, "main"): "config",
    (_MAIN, "main_task"): "config",
    (_MAIN, "RayTrainer"): None,
    (_MAIN, "RobRewardManager.__init__"): "self num_examine config",
    (_MAIN, "RobRewardManager.verify"): "self data",
    (_TRAINER, "RayTrainer.filter"): "self reward_tensor batch n_samples",
    (_TRAINER, "RayTrainer.init_workers"): "self",
    (_TRAINER, "compute_advantage"): "data gamma lam adv_estimator config",
    ("utils/libero_utils.py", "get_libero_env"): "task model_family resolution",
}


def find_verl() -> Path:
    """Return the folder of the package `verl`, without importing it.

    Raises:
        ConfigError: it can't be imported.
    """
    spec = find_spec("verl")
    if spec is None or not spec.origin:
        raise ConfigError(
            f"SimpleVLA-RL's package verl can't be imported; run this in its checkout ({REPOSITORY}), or put the "
            "checkout on PYTHONPATH."
        )
    return Path(spec.origin).parent


def check_upstream(verl: Path | None = None) -> None:
    """Compare what is needed with what is there.

    Args:
        verl: folder of the package; None finds it.

    Raises:
        ConfigError: names are missing or have other parameters; the message lists all of them.
    """
    verl = verl or find_verl()
    wrong = misfits(verl, _NEEDED)
    if wrong:
        raise ConfigError(
            f"the package verl in {verl} is not the SimpleVLA-RL that this adapter knows; use commit "
            f"{SUPPORTED_COMMIT} of {REPOSITORY}, or another release of vlac-queue:\n  " + "\n  ".join(wrong)
        )
