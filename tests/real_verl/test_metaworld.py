"""The real `RobHFRollout` on Meta-World: real physics and pictures, child processes, Redis and a worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl import DataProto
from verl.utils import libero_utils
from verl.workers.rollout import rob_rollout

from tests.real_verl import metaworld_libero
from tests.real_verl.comparing import assert_same_training, assert_same_truth
from tests.real_verl.fake_policy import FakePolicy
from tests.real_verl.metaworld_libero import TASKS
from verl_adapter import rollout as ours
from verl_adapter.rollout import VlacRollout
from vlac_queue.commands.demo.rollouts import load_rollouts

CHUNK = 8
#: Time for the slower expert (twelve chunks), and two chunks for the critic.
MAX_STEPS = 14 * CHUNK
#: By task: object positions other than the reference's, on which the expert is known to succeed in time.
TRIALS = ((2, 5), (2, 3))
#: By row of a minibatch: who acts.
EXPERT = torch.tensor([True, False, True, False])
_PROBE = """
import sys
from vlac_queue.commands.demo.simulator import MetaWorldEpisode
with MetaWorldEpisode(sys.argv[1]) as episode:
    episode.reset()
"""


class ActorChoosingPolicy(FakePolicy):
    """Samples tokens by what it sees; its actions call for the expert in even rows, for chance in odd ones."""

    def generate_action_verl(self, *args: Any, **options: Any) -> tuple[np.ndarray, torch.Tensor]:
        actions, tokens = super().generate_action_verl(*args, **options)
        actions = np.zeros_like(actions)
        actions[0::2, :, 0], actions[1::2, :, 0] = 1.0, -1.0
        return actions, tokens


def training(task_id: int) -> DataProto:
    """Two trials with two samples each: expert and chance on the same positions."""
    return _prompts(task_id, TRIALS[task_id], {"do_sample": True, "n_samples": 2})


def validation(task_id: int) -> DataProto:
    """The same four episodes, each a prompt of its own."""
    trials = [trial for trial in TRIALS[task_id] for _ in range(2)]
    return _prompts(task_id, trials, {"do_sample": False})


def _prompts(task_id: int, trials: Any, meta: dict[str, Any]) -> DataProto:
    trial_id = torch.tensor(trials)[:, None]
    batch = TensorDict(
        {"task_id": torch.full_like(trial_id, task_id), "trial_id": trial_id}, batch_size=len(trials)
    )
    names = np.array(["libero_10"] * len(trials), dtype=object)
    meta = {"eos_token_id": 2, "pad_token_id": 32000, "global_steps": 0, **meta}
    return DataProto(batch=batch, non_tensor_batch={"task_suite_name": names}, meta_info=meta)


@pytest.fixture(scope="module", autouse=True)
def simulator() -> None:
    """Fails with what to install if nothing can be rendered: upstream would wait for its child and not say why."""
    # A process of its own: see `metaworld_libero.Simulator`.
    probe = subprocess.run([sys.executable, "-c", _PROBE, TASKS[0]], capture_output=True, text=True)
    assert probe.returncode == 0, probe.stderr


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The recorded successful run of each task, as a reference file."""
    folder = tmp_path_factory.mktemp("references")
    paths = {rollout.env: folder / f"{rollout.env}.npz" for rollout in load_rollouts("reference")}
    for rollout in load_rollouts("reference"):
        np.savez_compressed(paths[rollout.env], frames=rollout.frames)
    return paths


@pytest.fixture
def generate(
    on_cpu: Any,
    rollout_config: Callable[..., Any],
    references: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., TensorDict]:
    """Runs `generate_sequences` on a task; arguments are the class, the prompts and overrides."""
    metaworld_libero.install(monkeypatch)

    def run(cls: type, data: DataProto, *overrides: str) -> TensorDict:
        torch.manual_seed(7)
        reference = references[TASKS[int(data.batch["task_id"][0])]]
        fixed = (f"vlac.reference={reference}", "vlac.done_threshold=0.85")
        config = rollout_config(*fixed, *overrides).actor_rollout_ref.rollout
        rollout = cls(ActorChoosingPolicy(), config)
        rollout.max_steps = {"libero_10": MAX_STEPS}
        return rollout.generate_sequences(data).batch

    return run


@pytest.mark.parametrize("task_id", range(len(TASKS)), ids=TASKS)
def test_rollouts_on_a_real_simulator(generate, on_cpu, monkeypatch, task_id):
    """Training overlapped and blocking, upstream's validation and ours: on the same episodes."""
    overlapped = generate(VlacRollout, training(task_id), "vlac.overlap=True")
    blocking = generate(VlacRollout, training(task_id), "vlac.overlap=False")
    assert_same_training(overlapped, blocking, CHUNK)
    assert_same_truth(overlapped, blocking)

    upstreams = generate(rob_rollout.RobHFRollout, validation(task_id))
    theirs, on_cpu[:] = list(on_cpu), []
    monkeypatch.setattr(ours, "CriticClient", _no_client)
    batch = generate(VlacRollout, validation(task_id), "vlac.redis_url=redis://127.0.0.1:1/0")
    assert sorted(batch.keys()) == sorted(upstreams.keys())
    for name, value in upstreams.items():
        assert torch.equal(batch[name], value), name
    # One a trial: upstream names a video by that.
    assert len(theirs) == len(TRIALS[task_id]) and on_cpu == theirs

    # The simulator's own word on the same episodes is what the critic is measured by.
    assert torch.equal(upstreams["complete"], EXPERT)
    assert torch.equal(blocking["complete"], EXPERT)
    late = blocking["finish_step"][EXPERT] - upstreams["finish_step"][EXPERT]
    assert (late.abs() <= 2 * CHUNK).all(), late
    assert (blocking["vlac_reward"][EXPERT] == 1.0).all()
    failed = blocking["vlac_reward"][~EXPERT]
    assert ((failed >= 0) & (failed < 0.5)).all(), failed
    assert (blocking["finish_step"][~EXPERT] == MAX_STEPS).all()


def test_upstream_turns_the_pictures_upright(monkeypatch):
    """Else the critic would compare pictures that stand on their heads with the reference."""
    metaworld_libero.install(monkeypatch)
    env = libero_utils.OffScreenRenderEnv(f"/{TASKS[0]}.bddl", 256, 256)
    recorded = next(rollout for rollout in load_rollouts("reference") if rollout.env == TASKS[0])
    env.reset()
    try:
        shown = env.set_init_state(recorded.seed)["agentview_image"][::-1, ::-1].astype(int)
    finally:
        env.close()
    right, *wrong = (
        np.abs(shown - other).mean()
        for other in (recorded.frames[0], recorded.frames[0][::-1], recorded.frames[0][:, ::-1])
    )
    assert right < 3 < min(wrong)


def _no_client(*_: Any) -> None:
    raise AssertionError("validation made a client")
