"""The benchmark of the GPU, on a CPU and with a model of its kind that is small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.real_vlac.conftest import ROOT, TASK
from vlac_queue import VlacConfig
from vlac_queue.frames import Frames
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticQuery
from workers.critics.vlac import VlacCritic

SMALL = ("--layers", "2", "--width", "128")


def run_benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {name: text for name, text in os.environ.items() if not name.startswith(("VLAC_", "RQ_"))}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env={**variables, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=110,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint like the benchmark's, small; with fewer words too, whose logits take most of a CPU's time."""
    from benchmarks.tiny_vlac import Large, make

    return make(tmp_path_factory.mktemp("checkpoint") / "like-2b", large=Large(layers=2, width=128, vocab=8500))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    ended = run_benchmark()
    assert ended.returncode == 1
    assert "torch sees no GPU" in ended.stderr and "--device cpu" in ended.stderr


def test_a_small_run_on_a_cpu(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    run = ("--device", "cpu", "--checkpoint", str(small), "--batches", "2", "--seconds", "0", "--json", str(file))
    ended = run_benchmark(*SMALL, *run, "--frames", "0")
    assert ended.returncode == 0, ended.stderr
    assert "2 layers of width 128" in ended.stdout
    figures = json.loads(file.read_text())
    (row,) = figures["rows"]
    assert row["batch"] == row["queued"]["mean_batch"] == 2
    assert row["direct"]["images_per_s"] > 0 and row["queued"]["images_per_s"] > 0
    assert 0 < row["queued"]["busy"] <= 1
    assert row["direct"]["failed"] == row["queued"]["failed"] == 0
    assert figures["peers"] == [], "tests/real_vlac/test_peer_benchmark.py asks GAC_model"


def test_it_keeps_what_it_finds_in_the_checkpoints_folder(small: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("keep me")
    for folder, words in ((tmp_path, "holds no checkpoint"), (small, "2 layers of width 128")):
        ended = run_benchmark("--device", "cpu", "--checkpoint", str(folder))
        assert ended.returncode == 1 and words in ended.stderr
    assert precious.exists() and (small / "config.json").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_answers_in_vlacs_forms(small: Path, run: Frames, reference: Frames, dtype: str) -> None:
    critic = VlacCritic(VlacConfig(model_path=str(small), dtype=dtype, done_by="reference", ref_num=2))
    critic.load()
    fields: dict[str, Any] = {"task": TASK, "frames": run[:2], "frame": 1}
    answers = critic.answer(
        [
            CriticQuery("done", **fields),
            CriticQuery("done", **fields, reference=reference),
            CriticQuery("value", **fields),
            CriticQuery("value", **fields, reference=reference),
        ]
    )
    assert [type(answer) for answer in answers] == [DoneVerdict] * 2 + [ValueVerdict] * 2, answers
