"""A critic of the user's own: whether this host can make it."""

from __future__ import annotations

import os
import subprocess
import sys

from vlac_queue.config import VlacConfig
from vlac_queue.finding import Finding
from vlac_queue.texts import clean

#: Seconds that its module may take to be imported; from a cold disk torch is slow.
_LIMIT_S = 90.0

# As a worker makes it, the working folder last among the places of import. In a process of its own: what the
# module does, or takes, is gone with it.
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
    environ = {**os.environ, "VLAC_CRITIC": config.critic}
    command = [sys.executable, "-c", _MAKE]
    remedy = (
        "install its package, and name its class:\nexport VLAC_CRITIC=package.module:Class\n"
        "or, without a worker on this host:\nvlac-queue doctor --host rollout"
    )
    try:
        made = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        return Finding("broken", f"{config.critic} is not imported within {_LIMIT_S:.0f} s", remedy)
    if made.returncode:
        said = (made.stderr.strip().splitlines() or [f"exit code {made.returncode}"])[-1]
        return Finding("broken", clean(said), remedy)
    return Finding("ok", f"{config.critic} can be made")
