"""What every Ray worker imports, by upstream's own hook `actor_rollout_ref.model.external_lib`.

A change made in the driver would not reach the workers. The hook holds one module, so the user's own comes
through an environment variable.
"""

from __future__ import annotations

import importlib
import os

from verl_adapter.settings import USER_MODULE_VARIABLE
from verl_adapter.upstream import check_upstream

check_upstream()
if user_module := os.environ.get(USER_MODULE_VARIABLE):
    importlib.import_module(user_module)

# After the user's module, so that training never goes on without the critic because of it.
rollout_package = importlib.import_module("verl.workers.rollout")
rollout_package.RobHFRollout = importlib.import_module("verl_adapter.rollout").VlacRollout  # type: ignore[attr-defined]
