"""`vlac-queue export`: what a decision log teaches its critic."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.conftest import Workers
from tests.workers.critics import NAME, frame
from vlac_queue import CriticClient
from vlac_queue.cli import main


def export(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def log(client: CriticClient, workers: Workers, tmp_path: Path) -> Path:
    """Episodes of two tasks: the frames' reds are their scores, and above 127 they are found done."""
    workers.start(NAME)
    config = replace(client.config, decision_log=str(tmp_path / "log"), done_threshold=0.5)
    runs: Sequence[tuple[str, str, list[int], Any]] = (
        ("right", "lift", [0, 50, 200], 2),
        ("early", "lift", [0, 140, 210], 2),
        ("wrong", "turn", [0, 20, 230, 240], None),
        ("quiet", "turn", [0, 20, 40], None),
        ("nobody", "turn", [0, 250], "unknown"),
    )
    with CriticClient(config) as logging:
        for name, task, reds, truth in runs:
            with logging.episode(task, id=name) as episode:
                for red in reds:
                    episode.observe(frame(red, side=32)).result()
                if truth != "unknown":
                    logging.note_truth(episode, truth)
    return tmp_path / "log"


def test_negatives_are_the_frames_that_fooled_the_critic(log: Path, tmp_path: Path) -> None:
    result = export(log, "--format", "negatives", "-o", tmp_path / "negatives.npz")
    assert result.exit_code == 0 and "lift: 1 negative\nturn: 2 negatives\n" in result.stdout, result.output
    made = np.load(tmp_path / "negatives.npz")
    assert [(str(task), int(each[0, 0, 0])) for task, each in zip(made["task"], made["frames"], strict=True)] == [
        ("lift", 140),
        ("turn", 230),
        ("turn", 240),
    ]
    assert export(log, "--format", "negatives", "-o", tmp_path / "few.npz", "--most", 1).exit_code == 0
    assert len(np.load(tmp_path / "few.npz")["frames"]) == 2
    scored = export(log, "--format", "negatives", "-o", tmp_path / "scored.npz", "--above", 0.15)
    assert "lift: 2 negatives\nturn: 3 negatives\n" in scored.stdout
    CliRunner().invoke(main, ["episodes", "mark", "nobody", "failure", "--log", str(log)])
    assert "turn: 3 negatives" in export(log, "--format", "negatives", "-o", tmp_path / "more.npz").stdout


def test_a_log_without_mistakes_writes_nothing(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    config = replace(client.config, decision_log=str(tmp_path / "log"))
    with CriticClient(config) as logging, logging.episode("lift") as episode:
        episode.observe(frame(3)).result()
        logging.note_truth(episode, None)
    result = export(tmp_path / "log", "--format", "negatives", "-o", tmp_path / "negatives.npz")
    assert result.exit_code == 1 and "no frame that was found done and is not" in result.stderr
    assert not (tmp_path / "negatives.npz").exists()


def test_what_was_exported_stays_where_nothing_comes_after(
    log: Path, client: CriticClient, tmp_path: Path, vlacs_prompts: None
) -> None:
    out = {"negatives": tmp_path / "negatives.npz", "swift": tmp_path / "set"}
    for kind, path in out.items():
        assert export(log, "--format", kind, "-o", path).exit_code == 0
    written = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")} | {
        path: path.read_bytes() for path in out["swift"].rglob("*.jsonl")
    }
    with CriticClient(replace(client.config, decision_log=str(tmp_path / "other"))) as logging:
        logging.episode("lift").close()
    for kind, path in out.items():
        assert export(tmp_path / "other", "--format", kind, "-o", path).exit_code == 1
    assert {path: path.read_bytes() for path in written} == written
    assert not list(tmp_path.rglob(".partial*"))


class _Gac:
    """evo_vlac's class as far as prompts go."""

    system_prompt: str | None = None

    def __init__(self, tag: str) -> None:
        pass

    def set_system_prompt(self) -> None:
        self.system_prompt = "You see."

    def get_done_prompt(self, task: str) -> str:
        return f"<image> done? {task}"

    def get_score_prompt(self, task: str, trajectory_len: int, think: bool) -> str:
        assert trajectory_len == 0 and not think
        return f"<image> <image> closer? {task}"

    def _process_image_to_pil(self, image: Any) -> Any:
        return image


@pytest.fixture
def vlacs_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """evo_vlac, as far as prompts go."""
    module = ModuleType("evo_vlac.utils.model_utils")
    module.GAC_model = _Gac  # type: ignore[attr-defined]
    utils = ModuleType("evo_vlac.utils")
    utils.model_utils = module  # type: ignore[attr-defined]
    for name, made in (("evo_vlac", ModuleType("evo_vlac")), ("evo_vlac.utils", utils)):
        monkeypatch.setitem(sys.modules, name, made)


def test_a_fine_tuning_set_has_vlacs_prompts_and_the_truth(log: Path, tmp_path: Path, vlacs_prompts: None) -> None:
    out = tmp_path / "set"
    result = export(log, "--format", "swift", "-o", out, "--validation", 0, "--false-dones", 3)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert (out / "validation.jsonl").read_text() == ""
    assert all((out / name).is_file() for row in rows for name in row["images"])
    assert {row["messages"][0]["content"] for row in rows} == {"You see."}
    said = Counter(
        (
            row["messages"][1]["content"],
            row["messages"][2]["content"],
            *(name.split(".")[0][7:] for name in row["images"]),
        )
        for row in rows
    )
    assert said["<image> done? lift", "1", "right"] == 1 and said["<image> done? lift", "1", "early"] == 1
    assert said["<image> done? lift", "0", "right"] == 2
    # Weighed three times: one of "early", two of "wrong"; beside them what was seen to be not done.
    assert said["<image> done? lift", "0", "early"] == 1 + 3 and said["<image> done? turn", "0", "wrong"] == 2 + 6
    assert said["<image> <image> closer? lift", "50", "right", "right"] == 1
    assert said["<image> <image> closer? lift", "100", "right", "right"] == 1
    assert said["<image> <image> closer? lift", "-50", "right", "right"] == 1
    assert not [key for key in said if "closer? turn" in key[0] or "nobody" in key[2:]]
    result = export(log, "--format", "swift", "-o", tmp_path / "half", "--validation", 0.5)
    parts = [(tmp_path / "half" / f"{name}.jsonl").read_text() for name in ("train", "validation")]
    episodes = [{json.loads(line)["images"][0].split(".")[0] for line in part.splitlines()} for part in parts]
    assert not episodes[0] & episodes[1] and len(episodes[0] | episodes[1]) == 4
