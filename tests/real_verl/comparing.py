"""When two batches are the same to training."""

from __future__ import annotations

import torch
from tensordict import TensorDict

#: What upstream's loop makes for each chunk; all of it counts up to finish_step.
STEPPED = ("responses", "input_ids", "attention_mask", "pixel_values")
#: What the audit alone looks at.
TRUTH = ("vlac_env_success", "vlac_env_success_step")


def assert_same_training(one: TensorDict, other: TensorDict, chunk: int) -> None:
    """Everything that training looks at is equal: the truth, what upstream masks and what asking cost aside."""
    for name in ("finish_step", "complete", "vlac_masked"):
        assert torch.equal(one[name], other[name]), name
    assert torch.equal(one["vlac_reward"].nan_to_num(-1), other["vlac_reward"].nan_to_num(-1))
    for row, finish in enumerate(one["finish_step"].tolist()):
        counted = -(-finish // chunk)
        for name in STEPPED:
            assert torch.equal(one[name][row, :counted], other[name][row, :counted]), (name, row)


def assert_same_truth(one: TensorDict, other: TensorDict) -> None:
    """The audit sees the same."""
    for name in TRUTH:
        assert torch.equal(one[name], other[name]), name
