"""`vlac-queue plan`: its figures are those of a reckoning by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vlac_queue.cli import main
from vlac_queue.costs import COSTS


def plan(*arguments: str) -> dict[str, Any]:
    ended = CliRunner().invoke(main, ["plan", "--json", *arguments])
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.output)["plan"]


def test_a_rollout_of_simplevla_rl() -> None:
    made = plan("--episodes", "64", "--chunk-s", "0.35", "--chunks", "64", "--slowdown", "1.1")
    assert (made["done_queries"], made["pairs"]) == (64, 64)
    assert made["vision"] == 64 * 65  # each frame once, the first one for its pair alone
    assert made["language"] == 64 * (64 + 2 * 64)
    # 4,160 x 2.2 ms + 12,288 x (2.8 + 20/32 ms) = 9.152 + 42.0864 s, in 22.4 s: 2.29 GPUs, of which 0.95 is busy.
    assert made["gpu_s"] == pytest.approx(51.2384)
    assert made["workers"] == 3 and made["slowdown"] == 1.0
    assert plan("--slowdown", "1.25")["workers"] == 2
    assert plan("--slowdown", "1.25")["slowdown"] == pytest.approx(51.2384 / (22.4 * 2 * 0.95))
    # 64 episodes of 65 frames of 19,660.8 bytes, and a quarter more; 182.9 frames/s.
    assert made["redis_bytes"] == pytest.approx(64 * 65 * 19660.8 * 1.25)
    assert made["network_bytes_per_s"] == pytest.approx(64 / 0.35 * 19660.8)
    assert made["redis_cores"] == pytest.approx(182.857 * 0.0001 + 182.857 * 19660.8 * 5.2e-9, rel=1e-5)
    assert made["queues"] == 1


def test_reference_frames_cost_language_once_and_first_frames_with_each_pair_on_torch() -> None:
    sizes = ("--episodes", "4", "--chunks", "10", "--reference-frames", "9")
    torch, vllm = plan(*sizes), plan(*sizes, "--engine", "vllm")
    assert torch["vision"] == vllm["vision"] == 4 * 11 + 9
    assert torch["language"] == 4 * (10 + 10 * 3) + 9
    assert vllm["language"] == 4 * (10 + 10 * 2 + 1) + 9


def test_strides_leave_frames_and_queries_out() -> None:
    made = plan("--episodes", "1", "--chunks", "10", "--frames", "2", "--done-stride", "3", "--value-stride", "4")
    # Done after chunks 3, 6 and 9: frames 6, 12 and 18. Values: frames 0, 4, 8, 12, 16, and the last, 20.
    assert (made["done_queries"], made["pairs"]) == (3, 5)
    assert made["vision"] == 8 and made["language"] == 3 + 2 * 5
    assert made["queries_per_s"] == pytest.approx(1 / (0.35 * 3))


def test_a_second_queue_is_wanted_where_one_redis_is_busy() -> None:
    # 4,000 queries/s of a simulator: 0.4 cores for queries, and 78.6 MB/s x 5.2 ns for bytes.
    made = plan("--episodes", "1400")
    assert made["queries_per_s"] == pytest.approx(4000) and made["redis_cores"] == pytest.approx(0.809, abs=1e-3)
    assert made["queues"] == 2
    # Photographs are some 35 times the bytes.
    photographs = ("--frame-size", "640x480", "--compression", "1.4")
    assert plan(*photographs, "--episodes", "64")["redis_cores"] == pytest.approx(0.644, abs=1e-3)
    assert plan(*photographs, "--episodes", "160")["queues"] == 3


def test_figures_of_a_gpu_take_the_place_of_the_reckoned_ones(tmp_path: Path) -> None:
    twice = plan("--image-ms", "10")
    assert twice["gpu_s"] == pytest.approx(4160 * 0.0044 + 12288 * (0.0056 + 0.020 / 32))
    file = tmp_path / "gpu.json"
    file.write_text(
        json.dumps({"costs": {"vision_s": 0.001, "language_s": 0.002, "call_s": 0.0, "source": "mine"}})
    )
    assert plan("--costs", str(file))["gpu_s"] == pytest.approx(4160 * 0.001 + 12288 * 0.002)
    missing = CliRunner().invoke(main, ["plan", "--costs", str(tmp_path / "none")])
    assert missing.exit_code == 1 and "benchmarks.gpu --json" in missing.output


def test_the_table_shows_the_reckoning() -> None:
    shown = CliRunner().invoke(main, ["plan", "--reference-frames", "9"], env={"COLUMNS": "200"}).output
    assert "; 9 reference frames once, the episode's first frame with each" in shown
    assert COSTS["pt"].source in shown
    assert "one Redis is enough" in shown
    for line in CliRunner().invoke(main, ["plan"], env={"COLUMNS": "80"}).output.splitlines():
        assert len(line) <= 80


@pytest.mark.parametrize("size", ["256", "0x256", "axb"])
def test_a_wrong_size_is_refused(size: str) -> None:
    ended = CliRunner().invoke(main, ["plan", "--frame-size", size])
    assert ended.exit_code == 2 and "256x256" in ended.output
