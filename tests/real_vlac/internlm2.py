"""A tiny checkpoint as InternVL2-2B's own: its language model is an InternLM2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_MODEL = "language_model.model"
_NAMES = {
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def make_internlm2(llama: Path, folder: Path) -> Path:
    """Write the weights of the checkpoint `llama` under an InternLM2's names; return `folder`.

    The two compute the same: an InternLM2 is a Llama whose queries, keys and values come from one matrix. For vLLM
    alone, which has a model for either; the code for torch beside the weights is a Llama's.
    """
    shutil.copytree(llama, folder)
    config = json.loads((llama / "config.json").read_text())
    config["llm_config"] |= {"architectures": ["InternLM2ForCausalLM"], "bias": False}
    (folder / "config.json").write_text(json.dumps(config))
    theirs = load_file(llama / "model.safetensors")
    weights = {name: tensor for name, tensor in theirs.items() if not name.startswith("language_model.")}
    weights |= {
        f"{_MODEL}.tok_embeddings.weight": theirs[f"{_MODEL}.embed_tokens.weight"],
        f"{_MODEL}.norm.weight": theirs[f"{_MODEL}.norm.weight"],
        "language_model.output.weight": theirs["language_model.lm_head.weight"],
    }
    heads = config["llm_config"]["num_key_value_heads"]
    for layer in range(config["llm_config"]["num_hidden_layers"]):
        at = f"{_MODEL}.layers.{layer}"
        # For each head of keys and values: its queries, its keys, its values.
        parts = [theirs[f"{at}.self_attn.{part}_proj.weight"].unflatten(0, (heads, -1)) for part in "qkv"]
        weights[f"{at}.attention.wqkv.weight"] = torch.cat(parts, dim=1).flatten(0, 1)
        for ours, name in _NAMES.items():
            weights[f"{at}.{name}.weight"] = theirs[f"{at}.{ours}.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
