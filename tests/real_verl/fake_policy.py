"""A policy and a processor in OpenVLA-OFT's shape, small enough for a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

PAD = 32000
#: Tokens of one action.
ACTION_TOKENS = 7
VOCABULARY = 256


class FakeProcessor:
    """Prompt and picture as tensors; longer prompts give more tokens."""

    tokenizer = SimpleNamespace(pad_token_id=PAD)

    def __call__(self, prompt: str, image: Any) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[1, *(2 + ord(letter) % 90 for letter in prompt), 29871]])
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None, :, ::8, ::8]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels.contiguous()}


class FakePolicy(torch.nn.Module):
    """Samples tokens by what it sees, and so do its actions follow.

    Each row uses as many random numbers whatever the others show, like a real policy's batch.
    """

    def __init__(self, chunk: int = 8) -> None:
        super().__init__()
        self.chunk = chunk
        self.norm_stats = {"libero_10": {}, "shake_bottle": {}}

    def generate_action_verl(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor, do_sample: bool, **_: Any
    ) -> tuple[np.ndarray, torch.Tensor]:
        count = self.chunk * ACTION_TOKENS
        seen = (pixel_values.flatten(1).sum(1) * 1000).long() + input_ids.sum(1)
        drawn = torch.randint(0, 128, (len(seen), count)) if do_sample else torch.full((len(seen), count), 64)
        tokens = (drawn + seen[:, None] % 97) % VOCABULARY
        actions = tokens.reshape(-1, self.chunk, ACTION_TOKENS).numpy() / (VOCABULARY / 2) - 1
        return actions, tokens
