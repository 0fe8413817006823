"""RLinf's own configs with our block on top, as docs/rlinf.md has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from tests.conftest import ROOT

CONFIGS = Path(os.environ["RLINF_HOME"]) / "examples" / "embodiment" / "config"


def composed(name: str, *overrides: str) -> Any:
    """One of them, by its file's name."""
    os.environ["EMBODIED_PATH"] = str(CONFIGS.parent)
    search = f"hydra.searchpath=[file://{CONFIGS},file://{ROOT}/examples/rlinf]"
    with initialize_config_dir(str(CONFIGS), version_base="1.1"):
        return compose(name, [search, "+vlac=reward", *overrides])
