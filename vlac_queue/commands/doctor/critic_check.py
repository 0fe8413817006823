"""Check whether this host can make a critic of the user's own."""

from __future__ import annotations

from vlac_queue.commands.doctor.probe import probe
from vlac_queue.config import VlacConfig
from vlac_queue.finding import Finding

# As a worker makes it, the working folder last among the places of import.
_MAKE = """
import sys
sys.path = [path for path in sys.path if path] + ["."]
from vlac_queue.config import VlacConfig
from vlac_queue.errors import VlacQueueError
from workers.critics import make_critic
try:
    make_critic(VlacConfig.from_env())
except VlacQueueError as error:
    sys.exit(str(error))
"""


def check_critic(config: VlacConfig) -> Finding:
    """Import and construct the critic, without loading it."""
    try:
        probe(_MAKE, VLAC_CRITIC=config.critic)
    except RuntimeError as error:
        remedy = (
            "install its package, and name its class:\nexport VLAC_CRITIC=package.module:Class\n"
            "or, without a worker on this host:\nvlac-queue doctor --host rollout"
        )
        return Finding("broken", f"{config.critic}: {error}", remedy)
    return Finding("ok", f"{config.critic} can be made")
