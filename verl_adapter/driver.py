"""Starts upstream's training with our parts in it, or its evaluation without."""

from __future__ import annotations

import inspect
import os
from typing import Any

import ray
from omegaconf import open_dict

from verl_adapter.settings import REDIS_URL_VARIABLE, USER_MODULE_VARIABLE
from verl_adapter.startup import check_queue, check_training, evaluates_only
from verl_adapter.upstream import check_upstream
from vlac_queue.config import redact_url
from vlac_queue.credentials import VARIABLES as CREDENTIALS


def start(config: Any) -> None:
    """Run upstream's `main` on the composed config.

    Evaluation only is upstream's own, untouched: no part of ours is in it and Redis may be down.

    Raises:
        VlacQueueError: a check failed; the message says what to do.
    """
    evaluates = evaluates_only(config)
    if not evaluates:
        check_upstream()
    # After the check, which says more than an import that fails.
    from verl.trainer import main_ppo

    if evaluates:
        main_ppo.main(config)
        return
    check_queue(check_training(config))
    rule = config.vlac
    print(
        f"Groups are chosen by vlac.min_group_spread={rule.min_group_spread} and mean rewards within "
        f"vlac.reward_lower_bound={rule.reward_lower_bound} .. vlac.reward_upper_bound={rule.reward_upper_bound}; "
        "data.accuracy_lower_bound and data.accuracy_upper_bound, meant for 0/1 rewards, are not used."
    )
    variables = _variables(config)
    with open_dict(config):
        config.actor_rollout_ref.model.external_lib = "verl_adapter.plugin"
        # Upstream prints its config and sends it to its loggers. Workers get the variable.
        if config.vlac.redis_url and redact_url(config.vlac.redis_url) != config.vlac.redis_url:
            config.vlac.redis_url = None
    # Upstream's main looks it up when it is called. Actors inherit the environment of the task that makes them.
    main_ppo.main_task = _train.options(runtime_env={"env_vars": variables})
    main_ppo.main(config)


def _variables(config: Any) -> dict[str, str]:
    """Return the task's environment. Ray keeps records of it: of a password in a file only the file's name."""
    return {
        **{name: os.environ[name] for name in CREDENTIALS if name in os.environ},
        REDIS_URL_VARIABLE: config.vlac.redis_url or os.environ[REDIS_URL_VARIABLE],
        USER_MODULE_VARIABLE: config.actor_rollout_ref.model.external_lib or "",
    }


@ray.remote
def _train(config: Any) -> None:
    """Run upstream's `main_task`, in its own process, with our reward manager and trainer in upstream's places."""
    from verl.trainer import main_ppo

    from verl_adapter.trainer import install

    install()
    # The function itself: it is decorated for Ray, and this is its task already.
    inspect.unwrap(main_ppo.main_task.remote)(config)
