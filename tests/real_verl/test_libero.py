"""The real `RobHFRollout` on a fake LIBERO: real child processes, real Redis, a real worker."""

from __future__ import annotations

import multiprocessing
import signal
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
from verl_adapter import rollout as ours
from verl_adapter.environments import EnvironmentFailed
from verl_adapter.rollout import VlacRollout
from vlac_queue.connection import connect

#: Steps of an episode: five chunks of eight.
MAX_STEPS = 40
SAMPLES = 2
CHUNK = 8


def prompts(n_samples: int | None = SAMPLES) -> DataProto:
    """Task 0 (within reach) and task 1 (not), two trials each."""
    batch = TensorDict(
        {"task_id": torch.tensor([[0], [1], [0], [1]]), "trial_id": torch.tensor([[0], [0], [9], [9]])},
        batch_size=4,
    )
    meta = {"eos_token_id": 2, "pad_token_id": 32000, "do_sample": n_samples is not None, "global_steps": 0}
    if n_samples is not None:
        meta["n_samples"] = n_samples
    names = np.array(["libero_10"] * 4, dtype=object)
    return DataProto(batch=batch, non_tensor_batch={"task_suite_name": names}, meta_info=meta)


@pytest.fixture
def generate(on_cpu: Any, rollout_config: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `generate_sequences`; arguments are the class, the prompts and overrides."""

    def run(cls: type, data: DataProto, *overrides: str, max_steps: int = MAX_STEPS) -> TensorDict:
        torch.manual_seed(7)
        config = rollout_config(*overrides).actor_rollout_ref.rollout
        rollout = cls(FakePolicy(), config)
        rollout.max_steps = {"libero_10": max_steps}
        return rollout.generate_sequences(data).batch

    return run


def test_the_critic_ends_episodes_and_values_the_rest(generate):
    batch = generate(VlacRollout, prompts())
    done, reward, finish = batch["complete"], batch["vlac_reward"], batch["finish_step"]
    reachable = torch.tensor([True, True, False, False, True, True, False, False])
    assert done.tolist() == reachable.tolist()
    assert (reward[done] == 1.0).all()
    assert ((reward[~done] > 0) & (reward[~done] < 0.9)).all()
    assert (finish[done] < MAX_STEPS).all() and (finish[done] % 8 == 0).all()
    assert (finish[~done] == MAX_STEPS).all()
    # Upstream's loop is never left early: all ranks make the same number of policy calls.
    assert batch["responses"].shape == (8, MAX_STEPS // 8, 56)


@pytest.mark.parametrize("max_steps", [40, 44])
@pytest.mark.parametrize("stride", [0, 3])
def test_overlapped_and_blocking_rollouts_give_the_same_batch(generate, max_steps, stride):
    overrides = (f"vlac.frame_stride={stride}", "actor_rollout_ref.rollout.micro_batch_size=4")
    overlapped = generate(VlacRollout, prompts(), "vlac.overlap=True", *overrides, max_steps=max_steps)
    blocking = generate(VlacRollout, prompts(), "vlac.overlap=False", *overrides, max_steps=max_steps)
    assert overlapped["complete"].any() and not overlapped["complete"].all()
    assert_same_training(overlapped, blocking, CHUNK)
    assert_same_truth(overlapped, blocking)


def test_answers_that_all_come_after_the_last_step_give_the_same_batch(generate, worker):
    class Late(VlacRollout):
        """The worker sleeps until upstream's loop has ended."""

        def _prepare_output_batch(self, *args: Any) -> Any:
            worker.send_signal(signal.SIGCONT)
            return super()._prepare_output_batch(*args)

    together = "actor_rollout_ref.rollout.micro_batch_size=4"
    blocking = generate(VlacRollout, prompts(), "vlac.overlap=False", together)
    worker.send_signal(signal.SIGSTOP)
    try:
        late = generate(Late, prompts(), together)
    finally:
        worker.send_signal(signal.SIGCONT)
    assert_same_training(late, blocking, CHUNK)
    assert_same_truth(late, blocking)
    # Simulated, sent and asked to the end, then cut where the critic found them done.
    done = late["complete"]
    assert (late["vlac_queries"][done] == MAX_STEPS // CHUNK).all()
    assert (blocking["vlac_queries"][done] == blocking["finish_step"][done] // CHUNK).all()
    # Who waits each time saves nothing; who does not, as long as the worker slept, saves nearly all of that.
    assert late["vlac_saved_s"].sum() > 10 * blocking["vlac_saved_s"].sum()


def test_true_success_reaches_nothing_but_the_audit(generate, monkeypatch):
    truth = generate(VlacRollout, prompts())
    monkeypatch.setenv("FAKE_LIBERO_FLIPS_SUCCESS", "1")
    flipped = generate(VlacRollout, prompts())
    assert_same_training(truth, flipped, CHUNK)
    assert not torch.equal(truth["vlac_env_success"], flipped["vlac_env_success"])


def test_validation_is_upstreams_own_and_needs_no_redis(generate, on_cpu, monkeypatch):
    def no_client(*_: Any) -> None:
        raise AssertionError("validation made a client")

    monkeypatch.setattr(ours, "CriticClient", no_client)
    upstreams = generate(rob_rollout.RobHFRollout, prompts(n_samples=None))
    theirs, on_cpu[:] = list(on_cpu), []
    batch = generate(VlacRollout, prompts(n_samples=None), "vlac.redis_url=redis://127.0.0.1:1/0")
    assert sorted(batch.keys()) == sorted(upstreams.keys())
    for name, value in upstreams.items():
        assert torch.equal(batch[name], value), name
    assert upstreams["complete"].tolist() == [True, False, True, False]
    assert on_cpu == theirs and theirs


def test_training_between_validations_leaves_no_trace(generate):
    before = generate(VlacRollout, prompts(n_samples=None))
    generate(VlacRollout, prompts())
    after = generate(VlacRollout, prompts(n_samples=None))
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert rob_rollout.env_worker is ours._ENV_WORKER


def test_a_simulator_that_breaks_before_done_masks_its_episode(generate, monkeypatch):
    # Three settling steps, then the tenth of the episode.
    monkeypatch.setenv("FAKE_LIBERO_FAILS_AT", "13")
    batch = generate(VlacRollout, prompts(), "vlac.on_failure=mask")
    assert batch["vlac_masked"].tolist() == [True, True, False, False, True, True, False, False]
    assert batch["vlac_reward"].isnan().tolist() == batch["vlac_masked"].tolist()
    assert batch["finish_step"].tolist() == [10, 10, 40, 40, 10, 10, 40, 40]


def test_a_simulator_that_breaks_is_raised_and_leaves_no_process(generate, monkeypatch):
    monkeypatch.setenv("FAKE_LIBERO_FAILS_AT", "13")
    others = set(multiprocessing.active_children())
    with pytest.raises(EnvironmentFailed, match="the simulator is unstable"):
        generate(VlacRollout, prompts())
    assert set(multiprocessing.active_children()) <= others


def test_redis_is_empty_after_a_rollout(generate, redis_url):
    generate(VlacRollout, prompts())
    with connect(redis_url) as connection:
        assert not list(connection.scan_iter("vlac:vlac:episode:*"))
