"""`python -m verl_adapter.main_ppo` with the real config under real Ray, two ranks, on CPU.

Upstream's driver, trainer, datasets, dispatch, rollout, reward, filter and GRPO are real; only the FSDP workers,
which need CUDA, are exchanged for `ray_site/fake_fsdp_workers.py`.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.real_verl.conftest import reference_worker
from verl_adapter.upstream import check_upstream
from vlac_queue.server import RedisServer, free_port

pytestmark = pytest.mark.timeout(500)

_HERE = Path(__file__).parent
_EXAMPLES = _HERE.parent.parent / "examples"
_PASSWORD = "correct-horse"
_RUN_S = 400


@pytest.fixture(scope="module")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL, with its password, of a Redis with a worker."""
    with RedisServer("--requirepass", _PASSWORD) as server:
        url = f"redis://:{_PASSWORD}@127.0.0.1:{server.port}/0"
        with reference_worker(url, tmp_path_factory.mktemp("guarded")):
            yield url


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with nothing but a tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def main_ppo(
    environment: dict[str, str], cluster: str, model: Path, reference_file: str, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the entry point; arguments are overrides, keywords the environment."""

    def run(*overrides: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [
            *(sys.executable, "-m", "verl_adapter.main_ppo"),
            *("data.task_suite_name=libero_10", "data.num_trials_per_task=2", "data.n_samples=4"),
            *("data.train_batch_size=2", "data.val_batch_size=2", "data.filter_accuracy=True"),
            *("data.accuracy_lower_bound=0.1", "data.accuracy_upper_bound=0.9"),
            *(f"actor_rollout_ref.model.path={model}", "actor_rollout_ref.model.action_token_len=7"),
            *("actor_rollout_ref.rollout.name=hf", "actor_rollout_ref.rollout.num_steps_wait=2"),
            *("actor_rollout_ref.rollout.center_crop=False", "actor_rollout_ref.rollout.val_micro_batch_size=1"),
            "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
            *("algorithm.adv_estimator=grpo", "algorithm.kl_ctrl.kl_coef=0.0"),
            *("trainer.logger=['console']", "trainer.n_gpus_per_node=2", "trainer.nnodes=1"),
            f"trainer.default_local_dir={tmp_path}",
            *("trainer.total_epochs=1", "trainer.val_only=False", "trainer.val_before_train=True"),
            *overrides,
        ]
        return subprocess.run(
            command,
            env={**environment, "RAY_ADDRESS": cluster, **variables},
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_RUN_S,
        )

    return run


def test_the_supported_checkout_passes_the_check():
    check_upstream()


def test_training_goes_through_rollout_reward_filter_and_advantage(
    main_ppo, environment, guarded_redis, reference_file
):
    result = main_ppo(
        f"vlac.reference={reference_file}",
        "vlac.min_group_spread=0.001",
        "actor_rollout_ref.model.external_lib=user_lib",
        VLAC_REDIS_URL=guarded_redis,
    )
    assert result.returncode == 0, result.stdout
    for rank in (0, 1):
        assert f"rank {rank} built VlacRollout" in result.stdout
    assert "the user's own module is here" in result.stdout
    for name in ("all", "vlac/precision", "vlac/recall", "vlac/groups_kept", "vlac/masked", "vlac/waited_s"):
        assert f"train_verify_score/{name}:" in result.stdout
    assert _PASSWORD not in result.stdout

    for rank in (0, 1):
        update = torch.load(Path(environment["FAKE_WORKERS_OUT"]) / f"update_of_rank_{rank}.pt")
        rewards = update["vlac_reward"]
        assert len(rewards) == 4 and len(set(update["uid"])) == 1
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        torch.testing.assert_close(update["advantages"][:, 0], expected, atol=1e-4, rtol=1e-4)
        # Upstream's coefficient scales all rewards alike.
        torch.testing.assert_close(update["token_level_rewards"].sum(-1), 5 * rewards)


def test_evaluation_needs_no_redis(main_ppo):
    result = main_ppo("trainer.val_only=True", VLAC_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert result.returncode == 0, result.stdout
    assert "rank 0 built RobHFRollout" in result.stdout
    assert "val/test_score/all" in result.stdout


def test_without_redis_training_stops_with_a_sentence(main_ppo):
    result = main_ppo()
    assert result.returncode == 1
    assert "set vlac.redis_url=redis://host:6379/0" in result.stdout and "Traceback" not in result.stdout


def test_without_workers_training_stops_at_once(main_ppo):
    with RedisServer() as server:
        result = main_ppo(f"vlac.redis_url={server.url}")
    assert result.returncode == 1
    assert "no worker listens on queue 'vlac'" in result.stdout and "rank 0" not in result.stdout


@pytest.mark.parametrize("script", ["run_openvla_oft_rl_vlac.sh", "eval_openvla_oft.sh"])
def test_the_example_scripts_overrides_compose(script, environment, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@" --cfg job\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "overwrite_vla_ckpt_utils.sh").touch()
    named = {
        "VLAC_REDIS_URL": "redis://gpu7:6379/0",
        "SFT_MODEL_PATH": "/m",
        "MODEL_PATH": "/m",
        "CKPT_PATH": "/c",
    }
    path = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    result = subprocess.run(
        ["bash", str(_EXAMPLES / script)],
        env={**environment, **named, "PATH": path},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=_RUN_S,
    )
    assert result.returncode == 0, result.stderr
    assert f"val_only: {'true' if 'eval' in script else 'false'}" in result.stdout
    assert "val_before_train: true" in result.stdout
