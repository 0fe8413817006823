"""The suite against SimpleVLA-RL itself: `make test-verl SIMPLEVLA_RL_HOME=<its checkout>`.

Without SIMPLEVLA_RL_HOME nothing in this folder is collected.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import redis

from tests.conftest import Workers
from vlac_queue.server import RedisServer

_HOME = os.environ.get("SIMPLEVLA_RL_HOME")
collect_ignore_glob = [] if _HOME else ["test_*.py"]

if _HOME:
    os.environ.setdefault("ROBOT_PLATFORM", "LIBERO")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    sys.path.insert(0, _HOME)
    from tests.real_verl import fake_libero

    fake_libero.install()


@contextmanager
def reference_worker(url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker on queue `vlac`, whose critic is `reference`, for the time of the block."""
    with redis.Redis.from_url(url) as connection:
        workers = Workers(url, connection, folder)
        try:
            yield workers.start("reference")
        finally:
            workers.stop()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis of our own."""
    with RedisServer() as server:
        yield server.url


@pytest.fixture(scope="session", autouse=True)
def worker(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """The one worker of it."""
    with reference_worker(redis_url, tmp_path_factory.mktemp("worker")) as process:
        yield process


@pytest.fixture(scope="session")
def reference_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A successful run of the fake LIBERO."""
    from tests.real_verl import fake_libero

    path = tmp_path_factory.mktemp("reference") / "square.npz"
    np.savez_compressed(path, frames=fake_libero.reference())
    return str(path)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the driver and of every Ray process."""
    paths = [
        str(Path(__file__).parent / "ray_site"),
        os.environ["SIMPLEVLA_RL_HOME"],
        os.environ.get("PYTHONPATH", ""),
    ]
    # Ray takes no more GPUs than are visible, even if it only believes in them.
    hidden = ("VLAC_", "CUDA_VISIBLE_DEVICES")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return {
        **clean,
        "PYTHONPATH": os.pathsep.join(paths),
        "FAKE_WORKERS_OUT": str(tmp_path_factory.mktemp("updates")),
        "TOKENIZERS_PARALLELISM": "true",
        # Fake GPUs: Ray would hide devices that are not there.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


@pytest.fixture(scope="session")
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """Address of a Ray cluster of our own, with two GPUs that it only believes in."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 2})
    finally:
        os.environ.clear()
        os.environ.update(before)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """Lets upstream's rollout run without GPU, checkpoint and video files; the videos it would have written."""
    import torch
    from verl.workers.rollout import rob_rollout

    from tests.real_verl.fake_policy import FakeProcessor

    class TorchOnCpu:
        """`torch`, but for the one device that upstream names."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def device(name: str) -> torch.device:
            return torch.device("cpu")

    videos: list[tuple[str, int, bool]] = []
    monkeypatch.setattr(rob_rollout, "torch", TorchOnCpu())
    monkeypatch.setattr(
        rob_rollout, "AutoProcessor", SimpleNamespace(from_pretrained=lambda *_, **__: FakeProcessor())
    )
    monkeypatch.setattr(
        rob_rollout,
        "save_rollout_video",
        lambda images, _, task, __, complete: videos.append((task, len(images), complete)),
    )
    return videos


@pytest.fixture
def rollout_config(redis_url: str, reference_file: str) -> Callable[..., Any]:
    """Makes `actor_rollout_ref.rollout` as the entry point composes it; arguments are overrides."""
    from hydra import compose, initialize_config_dir

    import verl_adapter
    from verl_adapter.settings import UPSTREAM_CONFIG_VARIABLE

    def make(*overrides: str) -> Any:
        os.environ[UPSTREAM_CONFIG_VARIABLE] = f"{_HOME}/verl/trainer/config"
        fixed = [
            f"vlac.redis_url={redis_url}",
            f"vlac.reference={reference_file}",
            "vlac.timeout_s=60",
            # Queries are counted.
            "vlac.audit_share=0",
            "actor_rollout_ref.rollout.center_crop=False",
            "actor_rollout_ref.rollout.num_steps_wait=3",
            "actor_rollout_ref.rollout.val_micro_batch_size=2",
            "actor_rollout_ref.model.action_token_len=7",
        ]
        folder = Path(verl_adapter.__file__).parent / "config"
        with initialize_config_dir(str(folder), version_base=None):
            return compose("ppo_vlac", [*fixed, *overrides])

    return make
