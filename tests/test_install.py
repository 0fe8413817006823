"""What `pip install` makes of the checkout: whole, and at work without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

_PACKAGES = ("vlac_queue", "workers", "verl_adapter", "dashboards")
_OFFLINE = re.compile("NewConnectionError|ProxyError|Temporary failure in name resolution")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the package in it, installed as a user does, in the lock file's versions."""
    folder = tmp_path_factory.mktemp("installed")
    pins = re.findall(r"^[a-z0-9.-]+==.*?(?= \\$)", (ROOT / ".ci/requirements.txt").read_text(), re.MULTILINE)
    (folder / "pins.txt").write_text("\n".join(pins))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    install = ["-m", "pip", "install", "--quiet", "--constraint", folder / "pins.txt", f"{ROOT}[embedded,plot]"]
    done = subprocess.run([folder / "venv/bin/python", *install], capture_output=True, text=True)
    if done.returncode and _OFFLINE.search(done.stderr):
        pytest.skip("the package index is out of reach")
    assert done.returncode == 0, done.stderr
    return folder / "venv"


def files(folder: Path) -> set[Path]:
    """Return what the packages in a folder hold, but for compiled modules."""
    found = (path for name in _PACKAGES for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder) for path in found if "__pycache__" not in path.parts}


def test_the_lock_file_is_made_for_the_oldest_python() -> None:
    # Else uv takes the Python it runs on for the oldest one, and its pins are refused below it.
    (oldest,) = re.findall(r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text())
    assert f"--python-version {oldest} " in (ROOT / "Makefile").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_installed_package_is_whole_and_plays_the_demo(installed: Path, tmp_path: Path) -> None:
    (libraries,) = installed.glob("lib/python*/site-packages")
    assert files(libraries) == files(ROOT)
    assert Path("vlac_queue/py.typed") in files(libraries)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [installed / "bin/vlac-queue", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "the critic agreed" in done.stdout
    assert (tmp_path / "demo-out/episodes.png").exists()
