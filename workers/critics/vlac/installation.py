"""What the critic `vlac` needs on this machine: the doctor's checks, made before the weights are loaded."""

from __future__ import annotations

from collections.abc import Callable

from vlac_queue.config import VlacConfig
from vlac_queue.control import TRY_OUT
from vlac_queue.errors import ConfigError
from vlac_queue.finding import Finding
from vlac_queue.packages import check_engine, check_evo_vlac, check_swift, check_torch, check_transformers
from vlac_queue.weights import check_weights

Check = Callable[[VlacConfig], Finding]

#: Whether the versions of packages fit together; what lacks ms-swift is told the command that installs all.
VERSION_CHECKS: tuple[Check, ...] = (check_swift, check_torch, check_engine, check_transformers)


def check_installation(config: VlacConfig) -> None:
    """Look at packages and weights, without importing torch.

    Raises:
        ConfigError: something is missing, or is of a version that can't work; the message names what mends it.
    """
    raise_if_broken(config, *VERSION_CHECKS, check_evo_vlac, check_weights)


def raise_if_broken(config: VlacConfig, *checks: Check) -> None:
    """Raise ConfigError for the first of `checks` that finds something broken."""
    for check in checks:
        finding = check(config)
        if finding.state == "broken":
            remedy = finding.remedy.replace(":\n", ": ").replace("\n", "; ")
            raise ConfigError(f"{finding.found}; what to do: {remedy} ({TRY_OUT})")
