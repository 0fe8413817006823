"""The check of upstream's names, on source trees made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from verl_adapter import upstream
from verl_adapter.upstream import SUPPORTED_COMMIT, check_upstream
from vlac_queue import ConfigError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with just what is needed."""
    files: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for (file, name), parameters in upstream._NEEDED.items():
        owner, _, method = name.rpartition(".")
        files.setdefault(file, {}).setdefault(owner, []).append((method or name, parameters or ""))
    for file, owners in files.items():
        lines = []
        for owner, functions in owners.items():
            indent = "    " if owner else ""
            if owner:
                lines.append(f"class {owner}:")
            for name, parameters in functions:
                lines.append(f"{indent}def {name}({', '.join(parameters.split())}): pass")
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_supported_source_passes(tree):
    check_upstream(tree)


def test_every_difference_is_listed_with_the_supported_commit(tree):
    rollout, trainer = tree / "workers/rollout/rob_rollout.py", tree / "trainer/ppo/ray_trainer.py"
    rollout.write_text(rollout.read_text().replace("def env_worker(task_name,", "def env_worker(suite,"))
    trainer.write_text(trainer.read_text().replace("def filter(", "def select("))
    with pytest.raises(ConfigError) as raised:
        check_upstream(tree)
    message = str(raised.value)
    assert "env_worker takes (suite task_id" in message
    assert "RayTrainer.filter is missing" in message
    assert SUPPORTED_COMMIT in message


def test_imported_names_count(tree):
    package = tree / "workers/rollout/__init__.py"
    package.write_text("from .rob_rollout import RobHFRollout\n")
    check_upstream(tree)


def test_another_package_of_that_name_is_told_apart(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    with pytest.raises(ConfigError, match="is not the SimpleVLA-RL"):
        check_upstream(tmp_path)


def test_without_the_package_it_says_where_to_get_it(monkeypatch):
    monkeypatch.setattr(upstream, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="PYTHONPATH"):
        check_upstream()
