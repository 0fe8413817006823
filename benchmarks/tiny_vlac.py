"""Makes a checkpoint of VLAC's kind that is small enough for tests: `python -m benchmarks.tiny_vlac FOLDER`.

It loads as an InternVL2 (`model_type="internvl2"` of ms-swift) and answers VLAC's prompts in VLAC's forms, so
the whole path runs on a CPU: tokenizer, template, images, engine, rich answers. It knows nothing about robots:
which number it says depends on the pictures and the words through random weights, but always on the same ones
in the same way. Needs torch, transformers and tokenizers; downloads nothing.

How it works: two Llama layers whose attention weighs all earlier tokens alike, so that the last position knows
the mean of all embeddings, and from the second layer on also something of their order. A few dimensions are
reserved. "Mode" dimensions are set in the embeddings of `<done>`, `<score>` and `<think>` and tell which question
is asked; "state" dimensions are set in the embeddings of what the model says itself and tell what may follow. The
others are random and choose among the numbers that may be said.

With `--like-2b` the checkpoint has the shape of an InternVL2-2B (4.4 GB), for `python -m benchmarks.gpu`: a vision
tower and a language model of full size whose weights are random, around the two layers above. What is added works,
but the last projection of each part is zero, so that the answers keep VLAC's forms.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

#: Everything about the checkpoint's pictures is here: 448x448 pixels, 256 tokens.
MODELING = '''
"""A stand-in of an InternVL2 for tests: patches' mean colours for a vision tower, a small Llama."""

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
    _no_split_modules = []
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
'''

#: Stands behind MODELING in a checkpoint like InternVL2-2B.
LARGE_MODELING = '''

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
'''

#: What it says besides "0" and "1".
_FIRST, _SECOND, _CLOSE = "first image progressing: ", "% second image progressing: ", "%</think>"
_SIGNS = ("+", "-")
_SCORES = ("3", "7", "12", "24", "38", "55", "100")
_FIRST_PERCENTS = ("8", "16", "33", "48")
_SECOND_PERCENTS = ("21", "57", "83", "95", "99")

_STATES = ("asked", "first", "first%", "second", "second%", "closed", "signed", "said")
_MODES = {"<done>": 0, "<score>": 1, "<think>": 2}
_SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
_END = "<|im_end|>"

_HIDDEN, _MLP = 64, 8
#: Logits (per unit of a state or mode) against what may not follow and what was not asked.
_FORBIDDEN_STATE, _FORBIDDEN_MODE = 1e5, 40.0
_MODE_AT = 0
_STATE_AT = len(_MODES)
_CONTENT_AT = _STATE_AT + len(_STATES)

#: Standard deviation of the weights that only take time.
_IDLE_STD = 0.02
#: Tokens of the words of `--like-2b`: enough that a prompt is about as long as with a tokenizer for English.
_WORDS = 8000


@dataclass(frozen=True)
class Large:
    """The shape of a checkpoint like InternVL2-2B. Its vision tower is half as wide.

    Attributes:
        layers: of the language model and of the vision tower, each; 2 or more.
        width: of the language model; a multiple of 64, 128 or more. Its MLP is 4 times as wide.
    """

    layers: int = 24
    width: int = 2048
    #: Of the language model and of the vision tower, each.
    heads: int = 16
    kv_heads: int = 8
    #: At least as many as the tokenizer has.
    vocab: int = 92553

    def __post_init__(self) -> None:
        if self.layers < 2 or self.width < 128 or self.width % 64:
            raise ValueError("layers must be 2 or more; width a multiple of 64, and 128 or more.")


def make(folder: Path, seed: int = 0, large: Large | None = None) -> Path:
    """Writes the checkpoint, tiny or of the shape `large`; returns its folder."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(english=large is not None)
    tokenizer.save_pretrained(folder)
    weights = make_weights(tokenizer, seed)
    sizes: dict[str, float] = {
        "vocab_size": len(tokenizer),
        "hidden_size": _HIDDEN,
        "intermediate_size": _MLP,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    if large:
        weights = enlarge(weights, large, seed)
        sizes = {
            "vocab_size": large.vocab,
            "hidden_size": large.width,
            "intermediate_size": 4 * large.width,
            "num_hidden_layers": large.layers,
            "num_attention_heads": large.heads,
            "num_key_value_heads": large.kv_heads,
            "rms_norm_eps": 1e-6 * _HIDDEN / large.width,
        }
    llm = LlamaConfig(
        **sizes,
        max_position_embeddings=16384,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    name = "LargeVlacModel" if large else "TinyVlacModel"
    config = {
        "model_type": "tiny_vlac",
        "architectures": [name],
        "auto_map": {
            "AutoConfig": "modeling_tiny_vlac.TinyVlacConfig",
            "AutoModel": f"modeling_tiny_vlac.{name}",
            "AutoModelForCausalLM": f"modeling_tiny_vlac.{name}",
        },
        "torch_dtype": "bfloat16" if large else "float32",
        "llm_config": llm.to_dict(),
    }
    if large:
        config["vision"] = {"layers": large.layers, "width": large.width // 2, "heads": large.heads}
    (folder / "modeling_tiny_vlac.py").write_text(MODELING.lstrip() + (LARGE_MODELING if large else ""))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # Last: a folder with this file is complete.
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def make_tokenizer(english: bool = False) -> PreTrainedTokenizerFast:
    """Bytes, and a token for each thing that VLAC says or that tells its questions apart.

    Args:
        english: whether common English words are tokens too, so that prompts are no longer than for other models.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if english:
        trainer = trainers.BpeTrainer(vocab_size=_WORDS, initial_alphabet=alphabet, show_progress=False)
        # Python's own manual: some 0.7 MB of English that is always there.
        tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    said = dict.fromkeys((_FIRST, _SECOND, _CLOSE, *_MODES, *_SCORES, *_FIRST_PERCENTS, *_SECOND_PERCENTS))
    words = [AddedToken(text, normalized=False) for text in said if len(text) > 1]
    tokenizer.add_tokens(words)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=list(_SPECIAL[2:]),
    )


def make_weights(tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors, float32."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    vocab = len(tokenizer)
    content = slice(_CONTENT_AT, None)

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    def state(name: str) -> int:
        return _STATE_AT + _STATES.index(name)

    # Small beside what attention adds, so that the pictures choose and not the last word.
    embeddings = torch.zeros(vocab, _HIDDEN)
    embeddings[:, content] = random(vocab, _HIDDEN - _CONTENT_AT) * 0.1
    embeddings[:, state("asked")] = 0.4
    for text, mode in _MODES.items():
        embeddings[token(text), _MODE_AT + mode] = 0.8

    # What may be said: (state before, token, state after, question).
    moves = [("asked", text, "said", "<done>") for text in ("0", "1")]
    moves += [("asked", sign, "signed", "<score>") for sign in _SIGNS]
    moves += [("asked", _FIRST, "first", "<think>")]
    moves += [("first", text, "first%", "") for text in _FIRST_PERCENTS]
    moves += [("first%", _SECOND, "second", "")]
    moves += [("second", text, "second%", "") for text in _SECOND_PERCENTS]
    moves += [("second%", _CLOSE, "closed", "")]
    moves += [("closed", sign, "signed", "") for sign in _SIGNS]
    moves += [("signed", text, "said", "") for text in _SCORES]
    moves += [("said", _END, "said", "")]
    head = torch.zeros(vocab, _HIDDEN)
    head[:, _STATE_AT:_CONTENT_AT] = -_FORBIDDEN_STATE
    for before, text, after, question in moves:
        row = token(text)
        embeddings[row, _STATE_AT:_CONTENT_AT] = 0.0
        embeddings[row, state(after)] = 0.4
        head[row, state(before)] = 0.0
        if question:
            head[row, _MODE_AT:_STATE_AT] = -_FORBIDDEN_MODE
            # A prompt that asks for reasoning asks for a score as well, up to twice.
            head[row, _MODE_AT + _MODES[question]] = 4 * _FORBIDDEN_MODE if question == "<think>" else 0.0
        head[row, content] = random(_HIDDEN - _CONTENT_AT) * 0.4

    projector = torch.zeros(_HIDDEN, 3)
    projector[content] = random(_HIDDEN - _CONTENT_AT, 3) * 3.0
    weights = {
        "language_model.model.embed_tokens.weight": embeddings,
        "language_model.model.norm.weight": torch.ones(_HIDDEN),
        "language_model.lm_head.weight": head,
        "projector.weight": projector,
    }
    for layer in range(2):
        name = f"language_model.model.layers.{layer}"
        mixed = torch.zeros(_HIDDEN)
        mixed[content] = 3.0
        if layer == 0:
            mixed[_MODE_AT:_STATE_AT] = 3000.0  # one tag among thousands of tokens
        weights |= {
            f"{name}.input_layernorm.weight": torch.ones(_HIDDEN),
            f"{name}.post_attention_layernorm.weight": torch.ones(_HIDDEN),
            # Equal scores: attention is a mean.
            f"{name}.self_attn.q_proj.weight": torch.zeros(_HIDDEN, _HIDDEN),
            f"{name}.self_attn.k_proj.weight": torch.zeros(_HIDDEN, _HIDDEN),
            f"{name}.self_attn.v_proj.weight": torch.eye(_HIDDEN),
            f"{name}.self_attn.o_proj.weight": torch.diag(mixed),
            f"{name}.mlp.gate_proj.weight": torch.zeros(_MLP, _HIDDEN),
            f"{name}.mlp.up_proj.weight": torch.zeros(_MLP, _HIDDEN),
            f"{name}.mlp.down_proj.weight": torch.zeros(_HIDDEN, _MLP),
        }
    return weights


def enlarge(core: dict[str, torch.Tensor], large: Large, seed: int) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of shape `large`, bfloat16, around those of `make_weights`.

    The reserved and random dimensions of `core` are the first ones here, and nothing is ever added to the others.
    """
    generator = torch.Generator().manual_seed(seed)

    def idle(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, _IDLE_STD, generator=generator)

    width, head_size = large.width, large.width // large.heads
    kv_width = large.kv_heads * head_size
    # The other dimensions are zero, and so make the mean square that a norm divides by smaller.
    norm = torch.full((width,), math.sqrt(_HIDDEN / width), dtype=torch.bfloat16)
    model = "language_model.model"
    embeddings = core[f"{model}.embed_tokens.weight"]
    head = _padded(core["language_model.lm_head.weight"], large.vocab, width)
    head[len(embeddings) :, _STATE_AT:_CONTENT_AT] = -_FORBIDDEN_STATE
    weights = {
        f"{model}.embed_tokens.weight": _padded(embeddings, large.vocab, width),
        f"{model}.norm.weight": norm.clone(),
        "language_model.lm_head.weight": head,
        "projector.weight": _padded(core["projector.weight"], width, 3),
    }
    for layer in range(large.layers):
        name = f"{model}.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": norm.clone(),
            f"{name}.post_attention_layernorm.weight": norm.clone(),
            f"{name}.self_attn.q_proj.weight": idle(width, width),
            f"{name}.self_attn.k_proj.weight": idle(kv_width, width),
            f"{name}.self_attn.v_proj.weight": idle(kv_width, width),
            f"{name}.self_attn.o_proj.weight": _zeros(width, width),
            f"{name}.mlp.gate_proj.weight": idle(4 * width, width),
            f"{name}.mlp.up_proj.weight": idle(4 * width, width),
            f"{name}.mlp.down_proj.weight": _zeros(width, 4 * width),
        }
    for layer in range(2):
        name = f"{model}.layers.{layer}.self_attn"
        weights[f"{name}.q_proj.weight"].zero_()
        weights[f"{name}.k_proj.weight"].zero_()
        weights[f"{name}.v_proj.weight"] = _padded(core[f"{name}.v_proj.weight"], kv_width, width)
        # Several heads read one head of values; the first of them hands it on.
        dimensions = torch.arange(_HIDDEN)
        readers = large.heads // large.kv_heads
        columns = dimensions // head_size * readers * head_size + dimensions % head_size
        mixed = core[f"{name}.o_proj.weight"].diagonal().to(torch.bfloat16)
        weights[f"{name}.o_proj.weight"][dimensions, columns] = mixed
    return weights | _vision(large, idle)


def _vision(large: Large, idle: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    """The vision tower's tensors; its last projection is zero."""
    width = large.width // 2
    weights = {
        "vision.patches.weight": idle(width, 3, 14, 14),
        "vision.patches.bias": _zeros(width),
        "vision.first": idle(1, 1, width),
        "vision.positions": idle(1, 1025, width),
    }
    linear = {"vision.fc1": (large.width, 4 * width), "vision.fc2": (large.width, large.width)}
    norms = {"vision.norm": 4 * width}
    for block in (f"vision.blocks.{layer}" for layer in range(large.layers)):
        linear |= {f"{block}.qkv": (3 * width, width), f"{block}.proj": (width, width)}
        linear |= {f"{block}.fc1": (4 * width, width), f"{block}.fc2": (width, 4 * width)}
        norms |= {f"{block}.norm1": width, f"{block}.norm2": width}
    for name, shape in linear.items():
        weights |= {f"{name}.weight": idle(*shape), f"{name}.bias": _zeros(shape[0])}
    for name, size in norms.items():
        weights |= {f"{name}.weight": _zeros(size) + 1, f"{name}.bias": _zeros(size)}
    weights["vision.fc2.weight"].zero_()
    return weights


def _padded(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(rows, columns), bfloat16: `tensor` in its upper left corner, zeros elsewhere."""
    padded = _zeros(rows, columns)
    padded[: tensor.shape[0], : tensor.shape[1]] = tensor
    return padded


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made anew; what it holds is lost")
    parser.add_argument("--like-2b", action="store_true", help="of the shape of an InternVL2-2B")
    parser.add_argument("--layers", type=int, help="with --like-2b: layers of each part (24)")
    parser.add_argument("--width", type=int, help="with --like-2b: width of the language model (2048)")
    given = parser.parse_args()
    sizes = {name: size for name in ("layers", "width") if (size := getattr(given, name)) is not None}
    if sizes and not given.like_2b:
        parser.error("--layers and --width go with --like-2b")
    try:
        large = Large(**sizes) if given.like_2b else None
    except ValueError as error:
        parser.error(str(error))
    print(make(given.folder, large=large))


if __name__ == "__main__":
    main()
