"""A policy learns by the critic's rewards alone, through a real queue: make test-learn, some minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]


def train(folder: Path, *options: str) -> dict[str, Any]:
    """Run the example, and return the figures that it writes."""
    figures = folder / "figures.json"
    command = [sys.executable, _ROOT / "examples" / "train_metaworld.py", "--json", figures, *options]
    subprocess.run(command, check=True)
    run: dict[str, Any] = json.loads(figures.read_text())
    return run


@pytest.mark.timeout(3600)
def test_a_policy_learns_from_pictures(tmp_path: Path) -> None:
    rows = train(tmp_path, "--done-confirm", "2", "--png", str(tmp_path / "figures.png"))["iterations"]
    assert rows[0]["success"] <= 0.3
    assert mean(row["success"] for row in rows[-5:]) >= 0.95
    assert mean(row["false_done"] for row in rows[-5:]) <= 0.03
    assert (tmp_path / "figures.png").stat().st_size > 10_000


@pytest.mark.timeout(600)
def test_without_a_reward_it_does_not(tmp_path: Path) -> None:
    rows = train(tmp_path, "--reward", "none", "--iterations", "3")["iterations"]
    assert max(row["success"] for row in rows) < 0.6
