"""What VLAC costs on a GPU: the constants of the benchmark's stand-in and of `vlac-queue plan`, and why.

Reckoned for InternVL2-2B, of which VLAC is a fine-tune, in bfloat16 on an H100 SXM (989 TFLOP/s, dense):

- Vision: 24 layers of width 1024 over 1,025 patches, 302 million weights: 0.72 TFLOP an image.
- Language: 24 layers of width 2048, 1.5 billion weights, and logits over 92,553 words for all positions:
  3.4 GFLOP a token, 0.87 TFLOP for the 256 tokens of an image.
- At 40 % of the peak that is 1.8 ms of vision and 2.2 ms of language an image. The words of a prompt, some 130
  tokens beside one image and 220 beside a pair, take 1.1 and 1.9 ms. Here they stand within the constants of an
  image, 2.2 and 2.8 ms: a done query takes 5.0 ms (5.1 with the words by themselves), a pair 10.0 (9.9), and 5.6
  (6.3) where vision knows both frames.
- The critic computes less than that: logits of the last position alone, and the words that prompts begin with
  once a call. So a done query takes 4.2 ms, a pair 8.5, and 4.9 where vision knows both. The constants leave this
  as a margin.
- A call: an answer has 2 to 4 tokens, each after the first a pass of its own through the language model, for all
  rows together. A pass on torch is bound by launching some 700 kernels, about 10 ms; on vLLM, with CUDA graphs, by
  reading the weights and by its scheduler, about 5 ms. Two such passes a call.

None of it was measured on a GPU. `python -m benchmarks.gpu --json FILE` measures it, and `read_costs` takes it
from that file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from vlac_queue.errors import ConfigError


@dataclass(frozen=True)
class Costs:
    """Seconds of GPU time.

    Attributes:
        vision_s: an image through the vision tower; once a frame, where an engine keeps what it made of it.
        language_s: the 256 tokens of an image through the language model, with its part of the prompt's words.
        call_s: a call, whatever its size.
        keeps_prefixes: whether what prompts begin with costs language once, in whichever calls they are; else only
            what all prompts of a call begin with, and nothing where those of the calls before began so too.
        source: where the figures are from, in words.
    """

    vision_s: float
    language_s: float
    call_s: float
    keeps_prefixes: bool
    source: str


_TORCH = Costs(0.0022, 0.0028, 0.020, False, "reckoned for an H100, not measured")
#: By engine (`VlacConfig.engine`).
COSTS = {"pt": _TORCH, "vllm": replace(_TORCH, call_s=0.010, keeps_prefixes=True)}


def read_costs(file: Path, engine: str) -> Costs:
    """Return the costs of an engine, with those that `file` holds in place of the reckoned ones.

    Args:
        file: JSON with an object "costs" of `vision_s`, `language_s`, `call_s` or `source`, as
            `benchmarks.gpu --json` writes it.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    known = COSTS[engine]
    try:
        measured = json.loads(file.read_text(encoding="utf-8"))["costs"]
        figures = {f.name: measured[f.name] for f in fields(Costs) if f.name in measured}
        seconds = [value for name, value in figures.items() if name.endswith("_s")]
        if not seconds or not all(isinstance(value, int | float) and value >= 0 for value in seconds):
            raise ValueError("it holds no seconds")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} holds no costs ({type(error).__name__}: {error}); give a file of `benchmarks.gpu --json`."
        ) from error
    return replace(known, **{"source": file.name, **figures})
