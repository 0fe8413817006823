"""The benchmark beside VLAC's own code, with a small model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.real_vlac.conftest import ROOT


def test_all_peers_answer_the_same_and_the_critic_sees_each_frame_once(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.vlac_peer", "--layers", "2", "--width", "128", "--frames", "3"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {name: text for name, text in os.environ.items() if not name.startswith(("VLAC_", "RQ_"))}
    ended = subprocess.run(
        [*command, "--engine", "pt", "--json", str(file)],
        cwd=ROOT,
        env={**variables, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stderr
    assert "All answers agree." in ended.stdout
    rows = {(row["peer"], row["question"]): row["cost"] for row in json.loads(file.read_text())["rows"]}
    assert [rows[peer, "done"]["vision"] for peer in ("GAC_model", "pt")] == [3, 3]
    assert [rows[peer, "value after done"]["vision"] for peer in ("GAC_model", "pt")] == [4, 0]
    assert [rows[peer, "value, 9 reference frames"]["vision"] for peer in ("GAC_model", "pt")] == [24, 12]
    known = "value after done, 9 reference frames"
    assert [rows[peer, known]["vision"] for peer in ("GAC_model", "pt")] == [24, 0]
