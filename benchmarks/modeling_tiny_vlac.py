"""The model of benchmarks.tiny_vlac's checkpoints, which carry a copy of this file: a stand-in of an InternVL2.

Tiny: patches' mean colours for a vision tower, and a small Llama. Large: the shape of InternVL2-2B around that.
Pictures are 448x448 pixels, 256 tokens.
"""

import torch
from torch import nn
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel


class TinyVlacConfig(PretrainedConfig):
    model_type = "tiny_vlac"

    def __init__(self, llm_config=None, **kwargs):
        self.llm_config = LlamaConfig(**(llm_config or {}))
        super().__init__(**kwargs)


class TinyVlacModel(PreTrainedModel, GenerationMixin):
    config_class = TinyVlacConfig
    _no_split_modules = ()
    _supports_flash_attn_2 = False
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        config.llm_config._attn_implementation = "eager"
        self.language_model = LlamaForCausalLM(config.llm_config)
        self.projector = nn.Linear(3, config.llm_config.hidden_size, bias=False)

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def extract_feature(self, pixel_values):
        """(N, 3, 448, 448) -> (N, 256, hidden)."""
        patches = nn.functional.avg_pool2d(pixel_values, 28).flatten(2).transpose(1, 2)
        # Each picture's mean turns all of its patches: frames that differ a little give quite other answers.
        return torch.sin(self.projector(patches + 100.0 * patches.mean(dim=1, keepdim=True)))

    def forward(self, *args, **kwargs):
        return self.language_model(*args, **kwargs)


class FloatHead(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden).float()


class WholeLlama(LlamaForCausalLM):
    """Computes the logits of all positions, in float32: so does InternVL2-2B, and its memory shows it."""

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = FloatHead(config.hidden_size, config.vocab_size, bias=False)

    def _supports_logits_to_keep(self):
        return False


class VisionBlock(nn.Module):
    def __init__(self, width, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def forward(self, x):
        """(N, tokens, width) -> the same."""
        x = x + self.attend(self.norm1(x))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class VisionTower(nn.Module):
    def __init__(self, layers, width, heads, hidden, fused):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 14, 14)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1025, width))
        self.blocks = nn.ModuleList(VisionBlock(width, heads, fused) for _ in range(layers))
        self.norm = nn.LayerNorm(4 * width)
        self.fc1, self.fc2 = nn.Linear(4 * width, hidden), nn.Linear(hidden, hidden)

    def forward(self, pixel_values):
        """(N, 3, 448, 448) -> (N, 256, hidden): four patches, side by side, make one token."""
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        x = x[:, 1:].unflatten(1, (16, 2, 16, 2)).transpose(2, 3).flatten(3).flatten(1, 2).flatten(2)
        return self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class LargeVlacModel(TinyVlacModel):
    _supports_flash_attn_2 = True

    def __init__(self, config):
        super(TinyVlacModel, self).__init__(config)  # a language model of its own
        llm = config.llm_config
        llm._attn_implementation = config._attn_implementation
        fused = config._attn_implementation != "eager"
        self.language_model = WholeLlama(llm)
        self.projector = nn.Linear(3, llm.hidden_size, bias=False)
        self.vision = VisionTower(hidden=llm.hidden_size, fused=fused, **config.vision)

    def extract_feature(self, pixel_values):
        """(N, 3, 448, 448) -> (N, 256, hidden)."""
        return super().extract_feature(pixel_values) + self.vision(pixel_values)
