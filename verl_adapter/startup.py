"""What is looked at before training starts: a mistake should cost seconds, not a first rollout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from verl_adapter.settings import check_name, read_node
from vlac_queue import ConfigError, CriticClient, VlacConfig
from vlac_queue.client.decision_log import DecisionLog
from vlac_queue.config import redact_url
from vlac_queue.credentials import PASSWORD_FILE

_OVERRIDE = re.compile(r"(?:\+{1,2}|~)?vlac\.([^=.]*)")


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse misspelt `vlac.*` overrides, naming the nearest right one; hydra would only say "not in struct".

    Raises:
        ConfigError: there is no such setting, or a password stands on the command line.
    """
    for argument in arguments:
        if match := _OVERRIDE.match(argument):
            check_name(match[1])
            url = argument.partition("=")[2].strip("'\"")
            if match[1] == "redis_url" and redact_url(url) != url:
                raise ConfigError(
                    "vlac.redis_url holds a password, which `ps` shows and hydra writes to its output folder; "
                    f"take it out, write it to a file (mode 600), and export {PASSWORD_FILE}=FILE."
                )


def evaluates_only(config: Any) -> bool:
    """Return whether a run with this config never trains.

    Upstream reads `trainer.val_only` only where `trainer.val_before_train` is set; alone, it trains.
    """
    return bool(config.trainer.val_only and config.trainer.val_before_train)


def check_training(config: Any) -> VlacConfig:
    """Refuse what training with the critic would stumble over later.

    Args:
        config: the whole hydra config.

    Returns:
        The queue's settings.

    Raises:
        ConfigError: what to set instead.
    """
    critic, _ = read_node(config.vlac)
    if not config.data.filter_accuracy or config.data.filter_truncated:
        # Without either, upstream fails on a variable that was never set; the other counts text tokens.
        raise ConfigError(
            "set data.filter_accuracy=True and data.filter_truncated=False: groups are chosen there, by "
            "vlac.min_group_spread and vlac.reward_*_bound (widen these to keep more groups)."
        )
    if config.algorithm.adv_estimator != "grpo":
        raise ConfigError(
            f"set algorithm.adv_estimator=grpo, not {config.algorithm.adv_estimator}: masked episodes and the "
            "choice of groups are only right with it."
        )
    if config.data.n_samples < 2:
        raise ConfigError(
            f"set data.n_samples to 2 or more, not {config.data.n_samples}: GRPO compares the episodes of a group."
        )
    if critic.frame_stride and "robotwin" in config.data.task_suite_name:
        raise ConfigError("set vlac.frame_stride=0: RoboTwin shows no picture within an action chunk.")
    return critic


def check_queue(config: VlacConfig) -> None:
    """Ask the queue one question about a tiny picture, all the way to the critic and back.

    Raises:
        NoWorkers: nothing listens on the queue.
        RedisUnavailable, CriticFailed, CriticTimeout: as their messages say.
        DecisionLogError: there is to be a decision log, and it can't be written from here.
    """
    if config.decision_log:
        DecisionLog(config)  # better refused here than on the hosts of the rollouts, where it is checked again
    with CriticClient(replace(config, decision_log="")) as client:
        client.ping()
        with client.episode("answer whether anyone is there") as episode:
            episode.push(np.zeros((64, 64, 3), np.uint8))
            episode.ask_done().result()
