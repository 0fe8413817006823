"""The likeliest tokens of a rich answer: ms-swift would sort the whole vocabulary for each, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def likeliest(
    steps: Sequence[torch.Tensor] | None, said: torch.Tensor, count: int
) -> list[list[dict[int, float]]] | None:
    """Return what PtEngine.preprocess_logits returns.

    Args:
        steps: logits of each token said, (rows, vocabulary); None where nobody asks for them.
        said: (rows, tokens).
        count: how many likeliest tokens.

    Returns:
        For each row and token the log-probabilities of that token and of the likeliest, by token; or None.
    """
    if steps is None:
        return None
    rows: list[list[dict[int, float]]] = [[] for _ in said]
    for token, logits in zip(said.T[:, :, None], steps, strict=False):
        logprobs = logits.log_softmax(-1)
        top = logprobs.topk(count)
        tokens = torch.cat([token, top.indices], dim=1).tolist()
        values = torch.cat([logprobs.gather(1, token), top.values], dim=1).tolist()
        for row, ids, their in zip(rows, tokens, values, strict=True):
            row.append(dict(zip(ids, their, strict=True)))
    return rows
