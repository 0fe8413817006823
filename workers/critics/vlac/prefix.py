"""The beginning that all rows of a call share: the language model reads it once.

Prompts with reference frames begin with them and the episode's first frame, 10 images of 12 by default.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

#: Tokens from which on sharing pays; an image has as many.
_LEAST = 256


def share_prefix(language_model: Any) -> None:
    """Make the model read what all rows of a prompt begin with once, and hand the keys and values on to each row.

    Args:
        language_model: as transformers generates with it; its keys and values are a DynamicCache, or tuples of
            tensors as in InternLM2's own code. Its class stays as it is.
    """
    whole = language_model.forward

    @functools.wraps(whole)
    def forward(*args: Any, **inputs: Any) -> Any:
        count = _shared_tokens(inputs)
        if count < _LEAST:
            return whole(*args, **inputs)
        # Still empty; InternLM2 has none then. generate goes on with those that it gets back.
        cache = inputs.get("past_key_values")
        first = {"past_key_values": None if cache is None else type(cache)()}
        read = whole(**_part(inputs, slice(count), rows=1) | first).past_key_values
        rest = _part(inputs, slice(count, None)) | {"attention_mask": inputs["attention_mask"]}
        return whole(**rest | {"past_key_values": _repeated(read, len(inputs["inputs_embeds"]))})

    language_model.forward = forward


def _shared_tokens(inputs: dict[str, Any]) -> int:
    """Return how many tokens all rows begin with; 0 for one row, while generating, and where rows are padded."""
    embeddings, mask = inputs.get("inputs_embeds"), inputs.get("attention_mask")
    if embeddings is None or len(embeddings) < 2 or mask is None or not mask.all():
        return 0
    same = torch.ones(embeddings.shape[1], dtype=torch.bool, device=embeddings.device)
    for row in embeddings[1:]:
        same &= (row == embeddings[0]).all(dim=-1)
    same[-1] = False  # something must be left to answer
    return int(same.long().cumprod(dim=0).sum())


def _part(inputs: dict[str, Any], tokens: slice, rows: int | None = None) -> dict[str, Any]:
    """Return the inputs of some tokens, of the first `rows` rows."""
    part = dict(inputs)
    for name in ("inputs_embeds", "attention_mask", "position_ids"):
        if inputs.get(name) is not None:
            part[name] = inputs[name][:rows, tokens]
    if inputs.get("cache_position") is not None:
        part["cache_position"] = inputs["cache_position"][tokens]
    return part


def _repeated(cache: Any, rows: int) -> Any:
    """Return keys and values of one row as those of `rows` rows."""
    if isinstance(cache, tuple):
        return tuple(tuple(tensor.repeat_interleave(rows, dim=0) for tensor in layer) for layer in cache)
    cache.batch_repeat_interleave(rows)
    return cache
