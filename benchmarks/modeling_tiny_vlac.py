"""The model of benchmarks.tiny_vlac's checkpoints, which carry a copy of this file: a small InternVL2 for torch.

A vision tower on pictures of 448x448 pixels, 256 tokens each, and a Llama. Tensors are named as in an InternVL2,
so that vLLM serves the same checkpoint by its own model of that kind, without this file.
"""

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel


class VisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class TinyVlacConfig(PretrainedConfig):
    model_type = "internvl_chat"
    sub_configs = {"llm_config": LlamaConfig, "vision_config": VisionConfig}  # noqa: RUF012

    def __init__(self, llm_config: Any = None, vision_config: Any = None, **kwargs: Any) -> None:
        self.llm_config = _config(LlamaConfig, llm_config)
        self.vision_config = _config(VisionConfig, vision_config)
        super().__init__(**kwargs)


def _config(kind: Any, values: Any) -> PretrainedConfig:
    return values if isinstance(values, PretrainedConfig) else kind(**(values or {}))


class Attention(nn.Module):
    def __init__(self, config: Any, fused: bool) -> None:
        super().__init__()
        width, self.heads, self.fused = config.hidden_size, config.num_attention_heads, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, config: Any, fused: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attn, self.mlp = Attention(config, fused), Mlp(config)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, width) -> the same."""
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class Embeddings(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.position_embedding = nn.Parameter(torch.zeros(1, (config.image_size // patch) ** 2 + 1, width))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(x), -1, -1), x], dim=1) + self.position_embedding


class Encoder(nn.Module):
    def __init__(self, config: Any, fused: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config, fused) for _ in range(config.num_hidden_layers))


class Vision(nn.Module):
    def __init__(self, config: Any, fused: bool) -> None:
        super().__init__()
        self.embeddings, self.encoder = Embeddings(config), Encoder(config, fused)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, 448, 448) -> (N, 1025, width)."""
        x = self.embeddings(pixels)
        for block in self.encoder.layers:
            x = block(x)
        return x


class TinyVlacModel(PreTrainedModel, GenerationMixin):
    config_class = TinyVlacConfig
    language_class = LlamaForCausalLM
    _no_split_modules = ()
    _supports_flash_attn_2 = True
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        llm, vision = config.llm_config, config.vision_config
        llm._attn_implementation = config._attn_implementation
        self.vision_model = Vision(vision, fused=config._attn_implementation != "eager")
        self.language_model = self.language_class(llm)
        width = 4 * vision.hidden_size
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, llm.hidden_size),
            nn.GELU(),
            nn.Linear(llm.hidden_size, llm.hidden_size),
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def extract_feature(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(N, 3, 448, 448) -> (N, 256, hidden): four patches, side by side, make one token ("ps_version" v2)."""
        x = self.vision_model(pixel_values)[:, 1:]
        side = int(x.shape[1] ** 0.5)
        x = x.unflatten(1, (side // 2, 2, side // 2, 2)).transpose(2, 3).flatten(3).flatten(1, 2).flatten(2)
        return self.mlp1(x)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.language_model(*args, **kwargs)


class FloatHead(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden).float()


class WholeLlama(LlamaForCausalLM):
    """Computes the logits of all positions, in float32: so does InternVL2-2B, and its memory shows it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head = FloatHead(config.hidden_size, config.vocab_size, bias=False)

    def _supports_logits_to_keep(self) -> bool:
        return False


class LargeVlacModel(TinyVlacModel):
    language_class = WholeLlama
