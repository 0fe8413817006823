"""The beginning that all rows of a call share: the language model reads it once.

All prompts begin with the system's words; those with reference frames also with these and the episode's first
frame, 10 images of 12 by default. What was read last is kept, so the next call of the episode goes on from there.
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import torch

#: Tokens spared from which on a pass of its own pays: on a GPU a short pass costs some 10 ms, whatever its length.
_LEAST = 1024

#: Keys and values of each layer, (rows, heads, tokens, width of a head).
Read: TypeAlias = tuple[tuple[torch.Tensor, torch.Tensor], ...]


class SharedPrefix:
    """Makes a language model read what all rows begin with once, and hands its keys and values on to each row.

    Args:
        language_model: as transformers generates with it; its keys and values are a DynamicCache, or tuples of
            tensors as in InternLM2's own code. Its class stays as it is.
    """

    def __init__(self, language_model: Any) -> None:
        self._whole = language_model.forward
        #: What was read last: embeddings (tokens, width), and their keys and values; None: nothing.
        self._kept: tuple[torch.Tensor, Read] | None = None

        @functools.wraps(self._whole)
        def forward(*args: Any, **inputs: Any) -> Any:
            return self._forward(*args, **inputs)

        language_model.forward = forward

    def clear(self) -> None:
        """Forget what was read."""
        self._kept = None

    def _forward(self, *args: Any, **inputs: Any) -> Any:
        embeddings, mask = inputs.get("inputs_embeds"), inputs.get("attention_mask")
        # Not while it generates, nor where rows are padded.
        if embeddings is None or mask is None or not mask.all():
            return self._whole(*args, **inputs)
        rows, shared, known = len(embeddings), _shared_tokens(embeddings), self._known_tokens(embeddings[0])
        if (shared - known) * (rows - 1) >= _LEAST:
            self._read(inputs, known, shared)
            known = shared
        count = min(shared, known)
        if count * rows < _LEAST:
            return self._whole(*args, **inputs)
        rest = _part(inputs, slice(count, None)) | {"attention_mask": mask}
        return self._whole(**rest | {"past_key_values": self._begun(inputs, count, rows)})

    def _known_tokens(self, row: torch.Tensor) -> int:
        """Return how many tokens (tokens, width) begins with that are kept; something is left to answer."""
        if self._kept is None:
            return 0
        kept = self._kept[0]
        count = min(len(kept), len(row) - 1)
        return _count_first((row[:count] == kept[:count]).all(dim=-1))

    def _read(self, inputs: dict[str, Any], known: int, count: int) -> None:
        """Read the first `count` tokens, of which `known` are kept, and keep them instead."""
        part = _part(inputs, slice(known, count), rows=1)
        part["attention_mask"] = inputs["attention_mask"][:1, :count]
        read = self._whole(**part | {"past_key_values": self._begun(inputs, known, rows=1)}).past_key_values
        if not isinstance(read, tuple):
            read = read.to_legacy_cache()
        self._kept = inputs["inputs_embeds"][0, :count].clone(), read

    def _begun(self, inputs: dict[str, Any], count: int, rows: int) -> Any:
        """Return the first `count` kept tokens for each of `rows` rows, in a cache of the inputs' kind."""
        # Still empty; InternLM2 has none then. generate goes on with those that it gets back.
        cache = inputs.get("past_key_values")
        if not count or not self._kept:
            return None if cache is None else type(cache)()
        read = tuple(
            (keys[:, :, :count].expand(rows, -1, -1, -1), values[:, :, :count].expand(rows, -1, -1, -1))
            for keys, values in self._kept[1]
        )
        return read if cache is None else type(cache).from_legacy_cache(read)


def _shared_tokens(embeddings: torch.Tensor) -> int:
    """Return how many tokens of (rows, tokens, width) all rows begin with; something is left to answer."""
    same = torch.ones(embeddings.shape[1] - 1, dtype=torch.bool, device=embeddings.device)
    for row in embeddings[1:, :-1]:
        same &= (row == embeddings[0, :-1]).all(dim=-1)
    return _count_first(same)


def _count_first(same: torch.Tensor) -> int:
    """Return how many of (tokens,) are true before the first that isn't."""
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
