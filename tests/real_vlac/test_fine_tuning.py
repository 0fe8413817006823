"""A decision log's truth as a fine-tuning set: ms-swift trains on it, and the critic serves what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import Workers
from tests.workers.critics import NAME
from vlac_queue import CriticClient, DoneVerdict, VlacConfig
from vlac_queue.cli import main
from vlac_queue.frames import Frames
from workers.critics import CriticQuery
from workers.critics.vlac import VlacCritic

TASK = "Scoop the rice into the rice cooker."


@pytest.fixture
def training_set(client: CriticClient, workers: Workers, run: Frames, tmp_path: Path) -> Path:
    """Two successes and a failure of six photographs each, exported with evo_vlac's own prompts."""
    workers.start(NAME)
    with CriticClient(replace(client.config, decision_log=str(tmp_path / "log"))) as logging:
        for truth in (4, 5, None):
            with logging.episode(TASK) as episode:
                for frame in run:
                    episode.observe(frame).result()
                logging.note_truth(episode, truth)
    command = [
        "export",
        str(tmp_path / "log"),
        "--format",
        "swift",
        "-o",
        str(tmp_path / "set"),
        "--validation",
        "0",
    ]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return tmp_path / "set"


def test_rows_are_what_the_critic_asks(training_set: Path, gac: object) -> None:
    from PIL import Image

    rows = [json.loads(line) for line in (training_set / "train.jsonl").read_text().splitlines()]
    prompts = {row["messages"][1]["content"] for row in rows}
    assert prompts == {gac.get_done_prompt(task=TASK), gac.get_score_prompt(task=TASK)}  # type: ignore[attr-defined]
    assert {len(row["images"]) for row in rows} == {1, 2}
    assert Image.open(training_set / rows[0]["images"][0]).size == (448, 448)


@pytest.mark.timeout(300)  # training and serving each import all of ms-swift
def test_ms_swift_trains_on_it_and_the_critic_serves_the_result(
    training_set: Path, checkpoint: Path, run: Frames, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    command = [sys.executable, "-m", "swift.cli.sft", "--model", str(checkpoint), "--model_type", "internvl2"]
    command += ["--dataset", "train.jsonl", "--split_dataset_ratio", "0", "--max_steps", "3"]
    command += [
        "--train_type",
        "full",
        "--gradient_checkpointing",
        "false",
        "--torch_dtype",
        "float32",
        "--attn_impl",
        "eager",
    ]
    # Small steps: after large ones a checkpoint of random weights answers done queries with other words.
    command += ["--learning_rate", "1e-5", "--per_device_train_batch_size", "2", "--max_length", "2048"]
    command += ["--output_dir", str(tmp_path / "trained"), "--save_only_model", "true", "--report_to", "none"]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    trained = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=training_set)
    assert trained.returncode == 0, trained.stderr[-4000:]
    (made,) = (tmp_path / "trained").glob("v*/checkpoint-3")
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, made))
    assert any(not torch.equal(before[name].float(), after[name].float()) for name in before)
    critic = VlacCritic(VlacConfig(model_path=str(made), device="cpu"))
    critic.load()
    (answer,) = critic.answer([CriticQuery("done", TASK, run[-1:], 5)])
    critic.close()
    assert isinstance(answer, DoneVerdict), answer
