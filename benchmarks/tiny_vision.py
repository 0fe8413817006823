"""The vision tower of benchmarks.tiny_vlac's checkpoints: its weights, and its config in InternViT's words.

It sees colours: a picture's mean colour and, more weakly, each patch's. Each of the first two layers folds them
into zigzags, so that pictures that differ a little lead to quite other answers. Further layers take time, and what
they compute is multiplied by zero. Features are the same for every width and depth, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

Weights = dict[str, torch.Tensor]

IMAGE_SIZE, _PATCH = 448, 14
#: Least width: constants, colours and two sets of folds.
LEAST_WIDTH = 64

_EMBEDDINGS, _LAYERS = "vision_model.embeddings", "vision_model.encoder.layers"
#: Two dimensions hold +K and -K: beside them all else is small, so that a norm is nearly a multiplication.
_K = 40.0
#: Where a patch's colour stands, the picture's mean colour, and what each layer has folded.
_COLOUR, _MEAN, _FOLDED = 2, 5, (8, 16)
#: Folds of a layer, kinks of each, and how steep they are: layer 0's, layer 1's.
_FOLDS, _KINKS, _GAINS = 8, 32, (10.0, 8.0)
#: GELU is taken for a ReLU: it is one far from zero.
_STEEP = 10.0
#: Weight of a patch's own colour beside the picture's.
_OWN = 0.002
#: Standard deviation of the weights that only take time.
_IDLE_STD = 0.02


def vision_config(width: int, layers: int) -> dict[str, Any]:
    """Return the config of a tower, as InternVL2's config.json has it."""
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "image_size": IMAGE_SIZE,
        "patch_size": _PATCH,
        "num_channels": 3,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "drop_path_rate": 0.0,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "use_flash_attn": False,
    }


def vision_weights(width: int, layers: int, hidden: int, content: slice, seed: int) -> Weights:
    """Return the tensors of a tower and of the projector behind it, float32.

    Args:
        width: of the tower; a multiple of 64.
        layers: 2 or more.
        hidden: width of the language model.
        content: its dimensions that may be used.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    even = torch.full((width,), math.sqrt(2 * _K * _K / width))
    weights = _embeddings(width) | _projector(width, hidden, content, even, generator)
    colours = _unit(generator, _FOLDS, 3)
    folds = [
        _fold(width, torch.cat([colours * _OWN, colours], dim=1), layer=0),
        _fold(width, _unit(generator, _FOLDS, _FOLDS), layer=1),
    ]
    for layer in range(layers):
        name = f"{_LAYERS}.{layer}"
        weights |= _attention(name, width, layer, generator)
        weights |= folds[layer] if layer < len(folds) else _idle_mlp(name, width, generator)
        for part in ("1", "2"):
            weights |= {f"{name}.norm{part}.weight": even.clone(), f"{name}.norm{part}.bias": torch.zeros(width)}
            weights[f"{name}.ls{part}"] = torch.ones(width)
    return weights


def centre(weights: Weights, config: Mapping[str, Any]) -> None:
    """Take out of all features what pictures have in common, which would choose the answer alone.

    Args:
        config: of the model that `weights` are for; small, since it is run.
    """
    from benchmarks.modeling_tiny_vlac import TinyVlacConfig, TinyVlacModel  # imports much of transformers

    model = TinyVlacModel(TinyVlacConfig(**config))
    model.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(64, 3, 1, 1, generator=generator) * 0.7 - 1.0
    pictures = torch.rand(64, 3, 8, 8, generator=generator) * 1.5 + colours
    with torch.no_grad():
        features = model.extract_feature(torch.nn.functional.interpolate(pictures, size=IMAGE_SIZE))
    weights["mlp1.3.bias"] = -features.mean((0, 1))


def _unit(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def _embeddings(width: int) -> Weights:
    patches = torch.zeros(width, 3, _PATCH, _PATCH)
    for colour in range(3):
        patches[_COLOUR + colour, colour] = 1 / _PATCH**2
    positions = torch.zeros(1, (IMAGE_SIZE // _PATCH) ** 2 + 1, width)
    positions[..., 0], positions[..., 1] = _K, -_K
    return {
        f"{_EMBEDDINGS}.class_embedding": torch.zeros(1, 1, width),
        f"{_EMBEDDINGS}.patch_embedding.weight": patches,
        f"{_EMBEDDINGS}.patch_embedding.bias": torch.zeros(width),
        f"{_EMBEDDINGS}.position_embedding": positions,
    }


def _projector(width: int, hidden: int, content: slice, even: torch.Tensor, generator: torch.Generator) -> Weights:
    units, count = 64, content.stop - content.start
    read, out, bias = torch.zeros(hidden, 4 * width), torch.zeros(hidden, hidden), torch.zeros(hidden)
    for part in range(4):
        first = part * width + _FOLDED[1]
        read[:units, first : first + _FOLDS] = torch.randn(units, _FOLDS, generator=generator) * 1.5
    # What is folded lies within 0..1.
    bias[:units] = torch.randn(units, generator=generator) - 0.5 * read[:units].sum(1)
    out[content, :units] = torch.randn(count, units, generator=generator) / math.sqrt(units)
    return {
        "mlp1.0.weight": even.repeat(4),
        "mlp1.0.bias": torch.zeros(4 * width),
        "mlp1.1.weight": read,
        "mlp1.1.bias": bias,
        "mlp1.3.weight": out,
        "mlp1.3.bias": torch.zeros(hidden),
    }


def _fold(width: int, directions: torch.Tensor, layer: int) -> Weights:
    """Return an MLP that adds zigzags, each within 0..1, along `directions` (_FOLDS, N) of what stands before."""
    first = (_COLOUR, _FOLDED[0])[layer]
    fc1, bias, fc2 = torch.zeros(4 * width, width), torch.zeros(4 * width), torch.zeros(width, 4 * width)
    for fold, direction in enumerate(directions):
        for kink in range(_KINKS):
            unit = fold * _KINKS + kink
            fc1[unit, first : first + len(direction)] = _STEEP * _GAINS[layer] * direction
            bias[unit] = -_STEEP * (kink - _KINKS // 2)
            fc2[_FOLDED[layer] + fold, unit] = (1 if kink == 0 else 2 * (-1) ** kink) / _STEEP
    return _mlp(f"{_LAYERS}.{layer}", fc1, bias, fc2)


def _idle_mlp(name: str, width: int, generator: torch.Generator) -> Weights:
    fc1 = torch.randn(4 * width, width, generator=generator) * _IDLE_STD
    return _mlp(name, fc1, torch.zeros(4 * width), torch.zeros(width, 4 * width))


def _mlp(name: str, fc1: torch.Tensor, bias: torch.Tensor, fc2: torch.Tensor) -> Weights:
    return {
        f"{name}.mlp.fc1.weight": fc1,
        f"{name}.mlp.fc1.bias": bias,
        f"{name}.mlp.fc2.weight": fc2,
        f"{name}.mlp.fc2.bias": torch.zeros(len(fc2)),
    }


def _attention(name: str, width: int, layer: int, generator: torch.Generator) -> Weights:
    """Return an attention: layer 0 gives each patch the mean of all colours, the others give nothing."""
    qkv, proj = torch.zeros(3 * width, width), torch.zeros(width, width)
    if layer == 0:
        qkv[2 * width :] = torch.eye(width)
        for colour in range(3):
            proj[_MEAN + colour, _COLOUR + colour] = 1.0
    elif layer > 1:
        qkv = torch.randn(3 * width, width, generator=generator) * _IDLE_STD
    return {
        f"{name}.attn.qkv.weight": qkv,
        f"{name}.attn.qkv.bias": torch.zeros(3 * width),
        f"{name}.attn.proj.weight": proj,
        f"{name}.attn.proj.bias": torch.zeros(width),
    }
