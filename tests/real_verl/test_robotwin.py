"""The real `RobHFRollout` on a fake RoboTwin 2.0: real threads, real Redis, a real worker."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl import DataProto
from verl.workers.rollout import rob_rollout

from tests.real_verl.comparing import assert_same_training, assert_same_truth
from tests.real_verl.fake_policy import FakePolicy
from tests.real_verl.fake_robotwin import SquareTask
from verl_adapter.environments import EnvironmentFailed
from verl_adapter.rollout import VlacRollout
from vlac_queue import ConfigError

CHUNK = 10
MAX_STEPS = 50
SUITE = "robotwin2_shake_bottle"


def prompts(n_samples: int | None = 2) -> DataProto:
    """Seed 100 (gets there) and 101 (does not)."""
    seeds = torch.tensor([[100], [101]])
    batch = TensorDict({"task_id": -torch.ones_like(seeds), "trial_id": seeds, "trial_seed": seeds}, batch_size=2)
    meta = {"eos_token_id": 2, "pad_token_id": 32000, "do_sample": n_samples is not None, "global_steps": 0}
    if n_samples is not None:
        meta["n_samples"] = n_samples
    names = np.array([SUITE] * 2, dtype=object)
    return DataProto(batch=batch, non_tensor_batch={"task_suite_name": names}, meta_info=meta)


@pytest.fixture
def generate(
    on_cpu: Any, rollout_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Runs `generate_sequences`; `task` are arguments of the simulator."""
    descriptions = types.ModuleType("generate_episode_instructions")
    descriptions.generate_episode_descriptions = (  # type: ignore[attr-defined]
        lambda *_, **__: [{"unseen": ["Push the square to the right"]}]
    )
    monkeypatch.setitem(sys.modules, descriptions.__name__, descriptions)

    def run(cls: type, data: DataProto, *overrides: str, **task: Any) -> TensorDict:
        monkeypatch.setattr(
            rob_rollout,
            "get_robotwin2_task",
            lambda *_: (SquareTask(MAX_STEPS, **task), {"instruction_type": "unseen"}),
        )
        torch.manual_seed(7)
        config = rollout_config(
            f"actor_rollout_ref.rollout.task_suite_name={SUITE}",
            f"actor_rollout_ref.rollout.unnorm_key={SUITE}",
            f"actor_rollout_ref.model.action_chunks_len={CHUNK}",
            "actor_rollout_ref.rollout.micro_batch_size=2",
            *overrides,
        ).actor_rollout_ref.rollout
        rollout = cls(FakePolicy(chunk=CHUNK), config)
        rollout.max_steps = {SUITE: MAX_STEPS}
        return rollout.generate_sequences(data).batch

    return run


def test_the_critic_ends_episodes_and_values_the_rest(generate):
    batch = generate(VlacRollout, prompts())
    assert batch["complete"].tolist() == [True, True, False, False]
    assert batch["vlac_reward"][:2].tolist() == [1.0, 1.0]
    assert ((batch["vlac_reward"][2:] > 0) & (batch["vlac_reward"][2:] < 0.9)).all()
    assert (batch["finish_step"][:2] < MAX_STEPS).all() and (batch["finish_step"][2:] == MAX_STEPS).all()
    assert batch["responses"].shape == (4, MAX_STEPS // CHUNK, 7 * CHUNK)


def test_overlapped_and_blocking_rollouts_give_the_same_batch(generate):
    overlapped = generate(VlacRollout, prompts(), "vlac.overlap=True")
    blocking = generate(VlacRollout, prompts(), "vlac.overlap=False")
    assert_same_training(overlapped, blocking, CHUNK)
    assert_same_truth(overlapped, blocking)


def test_true_success_neither_stops_a_chunk_nor_reaches_training(generate):
    truth = generate(VlacRollout, prompts())
    flipped = generate(VlacRollout, prompts(), flipped=True)
    assert_same_training(truth, flipped, CHUNK)
    assert not torch.equal(truth["vlac_env_success"], flipped["vlac_env_success"])


def test_validation_is_upstreams_own_and_needs_no_redis(generate):
    upstreams = generate(rob_rollout.RobHFRollout, prompts(n_samples=None))
    batch = generate(VlacRollout, prompts(n_samples=None), "vlac.redis_url=redis://127.0.0.1:1/0")
    assert upstreams["complete"].tolist() == [True, False]
    assert sorted(batch.keys()) == sorted(upstreams.keys())
    for name, value in upstreams.items():
        assert torch.equal(batch[name], value), name


def test_a_simulator_that_breaks_follows_on_failure(generate):
    batch = generate(VlacRollout, prompts(), "vlac.on_failure=mask", fails_after=13)
    assert batch["vlac_masked"].all() and batch["vlac_reward"].isnan().all()
    assert batch["finish_step"].tolist() == [20] * 4
    with pytest.raises(EnvironmentFailed, match="the physics exploded"):
        generate(VlacRollout, prompts(), fails_after=13)


def test_frames_within_a_chunk_are_refused(generate):
    with pytest.raises(ConfigError, match="frame_stride must be 0"):
        generate(VlacRollout, prompts(), "vlac.frame_stride=5")
