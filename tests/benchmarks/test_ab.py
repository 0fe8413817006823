"""Two checkouts compared; here the second one is the first by another name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.ab import main
from benchmarks.processes import ROOT


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="this checkout has no .venv")
def test_both_are_measured_and_compared(tmp_path: Path) -> None:
    other, file = tmp_path / "other", tmp_path / "ab.json"
    other.symlink_to(ROOT)
    arguments = [str(other), "--rounds", "2", "--seconds", "0.5", "--json", str(file)]
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 0, ended.output
    assert "queries/s" in ended.output and "worker CPU ms a query" in ended.output
    measured = json.loads(file.read_text())
    assert list(measured) == [str(ROOT), str(other)]
    assert all(figure >= 0 for rounds in measured.values() for one in rounds for figure in one.values())
    assert all(one["queries/s"] > 0 and one["import CPU ms"] > 0 for one in measured[str(other)])


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_is_no_other_checkout_is_refused(tmp_path: Path, there: bool) -> None:
    ended = CliRunner().invoke(main, [str(ROOT if there else tmp_path)])
    assert ended.exit_code == 1 and "make setup" in ended.output
