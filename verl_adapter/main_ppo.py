"""`python -m verl_adapter.main_ppo`: upstream's `python -m verl.trainer.main_ppo`, with the critic.

It takes the same overrides, and those of the node `vlac`; `--help` lists them with their documentation.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import hydra

from verl_adapter.settings import UPSTREAM_CONFIG_VARIABLE
from verl_adapter.startup import check_overrides
from verl_adapter.upstream import find_verl
from vlac_queue import VlacQueueError


@hydra.main(config_path="config", config_name="ppo_vlac", version_base=None)
def _run(config: Any) -> None:
    # Here, so that `--help` and `--cfg job` need no Ray.
    from verl_adapter.driver import start

    try:
        start(config)
    except VlacQueueError as error:
        # A sentence that says what to do, without hydra's traceback around it.
        sys.exit(f"verl_adapter: {error}")


def main() -> None:
    """Check the command line, find upstream's config and start."""
    try:
        check_overrides(sys.argv[1:])
        os.environ[UPSTREAM_CONFIG_VARIABLE] = str(find_verl() / "trainer" / "config")
    except VlacQueueError as error:
        sys.exit(f"verl_adapter: {error}")
    _run()


if __name__ == "__main__":
    main()
