"""Datasets as lerobot's own writer makes them, and labels as its own code reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from lerobot.datasets import lerobot_dataset
from lerobot.utils.rabc import RABCWeights

from tests.conftest import Workers
from tests.lerobot_dataset import write_dataset
from tests.rollouts import ROLLOUTS as SHIPPED
from vlac_queue import CriticClient
from vlac_queue.cli import main
from vlac_queue.commands.datasets.opening import open_dataset
from vlac_queue.commands.demo.rollouts import Rollout

ROLLOUTS = {rollout.name: rollout for rollout in SHIPPED}
RUNS = [ROLLOUTS[f"drawer-open-v3_{name}"] for name in ("reference_s3", "expert_s1", "random_s21", "stalled_s31")]
CAMERA = "observation.images.front"


def record(root: Path, runs: Sequence[Rollout], *, in_video: bool, file_mb: float = 200) -> Path:
    """A dataset written by lerobot: a camera, a state and an action."""
    shape = runs[0].frames.shape[1:]
    features = {
        CAMERA: {
            "dtype": "video" if in_video else "image",
            "shape": shape,
            "names": ["height", "width", "channels"],
        },
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    }
    made = lerobot_dataset.LeRobotDataset.create(
        "me/drawers", fps=10, features=features, root=root, use_videos=in_video
    )
    made.meta.update_chunk_settings(video_files_size_in_mb=file_mb)
    for run in runs:
        for frame in run.frames:
            zeros = np.zeros(2, np.float32)
            made.add_frame({CAMERA: frame, "observation.state": zeros, "action": zeros, "task": run.task})
        made.save_episode()
    made.finalize()
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # So small that episodes 0 and 1 share a video and others do not.
    return record(tmp_path_factory.mktemp("lerobot") / "data", RUNS, in_video=True, file_mb=0.16)


def test_frames_are_those_that_were_recorded(dataset: Path) -> None:
    files = sorted((dataset / "videos" / CAMERA).rglob("*.mp4"))
    assert 1 < len(files) < len(RUNS)
    ours = list(open_dataset(dataset).recordings())
    assert [each.task for each in ours] == [run.task for run in RUNS]
    for recording, run in zip(ours, RUNS, strict=True):
        assert recording.length == len(run.frames)
        for number, frame in recording.clip(3).numbered:
            # The codec loses a little, and less than lies between two frames.
            away = np.abs(run.frames.astype(int) - frame).mean(axis=(1, 2, 3))
            assert away[number] < 4 and away[number] < away.min() + 0.1


def test_pictures_in_tables_are_exact(tmp_path: Path) -> None:
    record(tmp_path / "data", RUNS[:2], in_video=False)
    for recording, run in zip(open_dataset(tmp_path / "data").recordings(), RUNS, strict=False):
        np.testing.assert_array_equal(list(recording.clip(1).frames), run.frames)


def test_the_fixture_of_ci_is_laid_out_as_lerobot_does(dataset: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    ours = write_dataset(tmp_path / "data", [(run.task, run.frames) for run in RUNS], cameras=[CAMERA])
    for file in ("meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"):
        theirs = {field.name: field.type for field in pq.read_schema(dataset / file)}
        for field in pq.read_schema(ours / file):
            assert str(theirs[field.name]).replace("list<item", "list<element") == str(field.type).replace(
                "list<item", "list<element"
            ), (file, field.name)
    about = [json.loads((root / "meta/info.json").read_text()) for root in (dataset, ours)]
    assert set(about[1]) <= set(about[0]) and about[0]["codebase_version"] == about[1]["codebase_version"]


def test_labels_weigh_lerobots_samples(
    dataset: Path, client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start()
    command = ["label", str(dataset), "--reference", "0", "--out", str(tmp_path / "labels")]
    command += ["--redis-url", client.config.redis_url]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    weights = RABCWeights(tmp_path / "labels" / "progress.parquet", chunk_size=4, kappa=0.2)
    lengths = [len(run.frames) for run in RUNS]
    first = np.cumsum([0, *lengths])
    assert len(weights.progress_lookup) == first[-1]
    assert [weights.progress_lookup[int(place)] for place in first[:4]] == [0.0] * 4
    assert weights.progress_lookup[int(first[2]) - 1] > 0.95  # the expert's end
    batch = {"index": np.array([first[1] + 5, first[2] + 5])}
    expert, random = weights.compute_batch_weights(batch)[0].tolist()
    assert expert > random
