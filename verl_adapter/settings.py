"""The hydra node `vlac`: every field of `VlacConfig`, and what training adds to them.

`python -m verl_adapter.settings` prints the hydra config that is checked in as config/ppo_vlac.yaml.
"""

from __future__ import annotations

import difflib
import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vlac_queue import ConfigError, VlacConfig
from vlac_queue.config import Settings, setting, within
from vlac_queue.credentials import with_credentials

#: Environment variable with the URL of Redis, for a config that names none. It goes this way to the workers too,
#: since upstream prints its whole config and sends it to its loggers.
REDIS_URL_VARIABLE = "VLAC_REDIS_URL"

#: Environment variable with the user's own external_lib, whose place in the config `verl_adapter.plugin` takes.
USER_MODULE_VARIABLE = "VERL_ADAPTER_EXTERNAL_LIB"

#: Environment variable with upstream's config folder, for hydra's search path.
UPSTREAM_CONFIG_VARIABLE = "VERL_ADAPTER_UPSTREAM_CONFIG"


@dataclass(frozen=True)
class Training(Settings):
    """Settings of training, and not of the queue: which groups are worth an update, and who has the GPU meanwhile.

    A group is the episodes of one prompt, whose rewards lie anywhere in 0..1. GRPO divides by the group's
    standard deviation, so a group without a signal is blown up to one of noise: .30, .301, .299, .30 becomes
    advantages of about +-1. That is what `min_group_spread` is against. A group of 0/1 rewards is never below it
    unless all are equal: of n = 64, one success has a deviation of 0.125.

    Raises:
        ConfigError: a value is out of range.
    """

    min_group_spread: float = within(0, 1).setting(
        0.05,
        "Standard deviation of a group's rewards below which it is dropped: five points of the critic's hundred, "
        "about what a value differs by for nothing. 0 keeps all but groups of equal rewards.",
    )
    reward_lower_bound: float = within(0, 1).setting(
        0.0,
        "Mean reward of a group below which it is dropped. Takes the place of data.accuracy_lower_bound, which is "
        "meant for 0/1 rewards.",
    )
    reward_upper_bound: float = within(0, 1).setting(
        1.0,
        "Mean reward of a group above which it is dropped. Takes the place of data.accuracy_upper_bound: a group "
        "of four solved with one .7 has mean .925 and a signal.",
    )
    sleep_during_update: bool = setting(
        False,
        "Whether all critics of the queue give their GPU memory back while the policy is updated; for workers on "
        "the GPUs of training.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward_lower_bound > self.reward_upper_bound:
            raise ConfigError(
                f"reward_lower_bound ({self.reward_lower_bound}) must not exceed reward_upper_bound "
                f"({self.reward_upper_bound})."
            )


#: Each setting of the node and its documentation.
SETTINGS = VlacConfig.describe() | Training.describe()


def check_name(name: str) -> None:
    """Raise a ConfigError that names the nearest right setting, if `name` is none."""
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.5)
        hint = f"did you mean vlac.{near[0]}?" if near else f"the settings are: {', '.join(SETTINGS)}."
        raise ConfigError(f"there is no setting vlac.{name}; {hint}")


def read_node(node: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> tuple[VlacConfig, Training]:
    """Return the settings of the queue and those of training.

    Args:
        node: the hydra node `vlac`.
        environ: where VLAC_REDIS_URL stands in for a redis_url that the node does not set, and where user and
            password come from (`vlac_queue.credentials`).

    Raises:
        ConfigError: a name is unknown or a value refused, or no Redis is named.
    """
    values = {str(name): node[name] for name in node}
    for name in values:
        check_name(name)
    training = Training(**{name: values.pop(name) for name in Training.describe() if name in values})
    url = values.get("redis_url") or environ.get(REDIS_URL_VARIABLE)
    if not url:
        raise ConfigError(
            "no Redis is named; set vlac.redis_url=redis://host:6379/0, or VLAC_REDIS_URL in the environment. "
            "To evaluate only, set trainer.val_only=True and trainer.val_before_train=True."
        )
    return VlacConfig(**{**values, "redis_url": with_credentials(url, environ)}), training


def render() -> str:
    """Return the hydra config that stands on top of upstream's, each setting under its documentation."""
    defaults = {spec.name: spec.default for spec in [*fields(VlacConfig), *fields(Training)]}
    # Named by the user: a run that trains on whatever listens on localhost is a mistake.
    defaults["redis_url"] = None
    node = []
    for name, doc in SETTINGS.items():
        node += [f"# {line}" for line in textwrap.wrap(doc, 105)]
        # JSON is YAML, and says null, true and quotes as hydra reads them.
        node.append(f"{name}: {json.dumps(defaults[name])}")
    help_lines = [f"  {name}: {doc}" for name, doc in SETTINGS.items()]
    return _TEMPLATE.format(
        config_variable=UPSTREAM_CONFIG_VARIABLE,
        node=textwrap.indent("\n".join(node), "  "),
        help=textwrap.indent("\n".join(help_lines), "      "),
    )


_TEMPLATE = """\
# SimpleVLA-RL's config with our node `vlac`. Made by `python -m verl_adapter.settings`; a test compares.
defaults:
  - ppo_trainer
  - _self_

vlac:
{node}

# Upstream's rollout sees only its own node.
actor_rollout_ref:
  rollout:
    vlac: ${{vlac}}

hydra:
  searchpath:
    # Upstream's, set by our entry point: hydra finds no folder in a package without an __init__.py.
    - file://${{oc.env:{config_variable}}}
  help:
    app_name: verl_adapter.main_ppo
    footer: |-
      The settings of the node vlac:

{help}
"""


if __name__ == "__main__":
    print(render(), end="")
