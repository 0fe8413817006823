"""Makes a checkpoint of VLAC's kind that is small enough for tests: `python -m benchmarks.tiny_vlac FOLDER`.

It loads as an InternVL2 (`model_type="internvl2"` of ms-swift) with torch and with vLLM, and answers VLAC's
prompts in VLAC's forms, so the whole path runs on a CPU: tokenizer, template, images, engine, rich answers. It
knows nothing about robots: which number it says depends on the pictures and the words through random weights, but
always on the same ones in the same way. Needs torch, transformers and tokenizers; downloads nothing.

How it works: two Llama layers whose attention weighs all earlier tokens alike, so that the last position knows
the mean of all embeddings, and from the second layer on also something of their order. A few dimensions are
reserved. "Mode" dimensions are set in the embeddings of `<done>`, `<score>` and `<think>` and tell which question
is asked; "state" dimensions are set in the embeddings of what the model says itself and tell what may follow. The
others are random and choose among the numbers that may be said. benchmarks.tiny_vision has the vision tower.

With `--like-2b` the checkpoint has the shape of an InternVL2-2B (4.4 GB), for `python -m benchmarks.gpu`: a vision
tower and a language model of full size whose weights are random, around the two layers above. What is added works,
but the last projection of each part is zero, so that the answers keep VLAC's forms.
"""

from __future__ import annotations

import json
import math
import pydoc_data.topics
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from benchmarks.tiny_vision import IMAGE_SIZE, LEAST_WIDTH, Weights, centre, vision_config, vision_weights
from vlac_queue.errors import ConfigError

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

#: What may be said: state before, tokens, state after, question.
_MOVES = (
    ("asked", ("0", "1"), "said", "<done>"),
    ("asked", _SIGNS, "signed", "<score>"),
    ("asked", (_FIRST,), "first", "<think>"),
    ("first", _FIRST_PERCENTS, "first%", ""),
    ("first%", (_SECOND,), "second", ""),
    ("second", _SECOND_PERCENTS, "second%", ""),
    ("second%", (_CLOSE,), "closed", ""),
    ("closed", _SIGNS, "signed", ""),
    ("signed", _SCORES, "said", ""),
    ("said", (_END,), "said", ""),
)

_HIDDEN, _MLP = 64, 8
_TINY = {
    "hidden_size": _HIDDEN,
    "intermediate_size": _MLP,
    "num_hidden_layers": 2,
    # vLLM's attention on a CPU takes heads of 32, 64, 96, ...
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
#: Names of tensors begin so; the name of the model's module.
_LLAMA, _MODELING = "language_model.model", "modeling_tiny_vlac"
#: Logits (per unit of a state or mode) against what may not follow and what was not asked.
_FORBIDDEN_STATE, _FORBIDDEN_MODE = 1e5, 40.0
_MODE_AT = 0
_STATE_AT = len(_MODES)
_CONTENT_AT = _STATE_AT + len(_STATES)
_CONTENT = slice(_CONTENT_AT, _HIDDEN)

#: Standard deviation of the weights that only take time.
_IDLE_STD = 0.02
#: Tokens of the words of `--like-2b`: enough that a prompt is about as long as with a tokenizer for English.
_WORDS = 8000


@dataclass(frozen=True)
class Large:
    """The shape of a checkpoint like InternVL2-2B. Its vision tower is half as wide.

    Attributes:
        layers: of the language model and of the vision tower, each; 2 or more.
        width: of the language model; a multiple of 128. Its MLP is 4 times as wide.
    """

    layers: int = 24
    width: int = 2048
    #: At least as many as the tokenizer has.
    vocab: int = 92553

    def __post_init__(self) -> None:
        if self.layers < 2 or self.width < 128 or self.width % 128:
            raise ConfigError("layers must be 2 or more; width a multiple of 128.")

    @property
    def heads(self) -> int:
        """Attention heads of the language model, each 128 wide."""
        return self.width // 128

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, of which two attention heads share one."""
        return self.heads // 2 or 1

    def sizes(self) -> dict[str, float]:
        """Return what LlamaConfig calls them."""
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-6 * _HIDDEN / self.width,
        }


def make(folder: Path, seed: int = 0, large: Large | None = None) -> Path:
    """Write the checkpoint, tiny or of the shape `large`; return its folder, whose old content is lost."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(english=large is not None)
    tokenizer.save_pretrained(folder)
    config = _config(tokenizer, large)
    weights = make_weights(tokenizer, seed)
    centre(weights, _config(tokenizer, None))
    if large:
        weights = enlarge(weights, config, large, seed)
    shutil.copy(Path(__file__).with_name(f"{_MODELING}.py"), folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # Last: a folder with this file is complete.
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def _config(tokenizer: PreTrainedTokenizerFast, large: Large | None) -> dict[str, Any]:
    name = f"{_MODELING}.{'LargeVlacModel' if large else 'TinyVlacModel'}"
    llm = LlamaConfig(
        **(large.sizes() if large else {"vocab_size": len(tokenizer), **_TINY}),
        architectures=["LlamaForCausalLM"],
        max_position_embeddings=16384,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = vision_config(large.width // 2, large.layers) if large else vision_config(LEAST_WIDTH, layers=2)
    return {
        "model_type": "internvl_chat",
        # vLLM's own model, and the same for torch.
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": f"{_MODELING}.TinyVlacConfig",
            "AutoModel": name,
            "AutoModelForCausalLM": name,
        },
        "torch_dtype": "bfloat16" if large else "float32",
        "llm_config": llm.to_dict(),
        "vision_config": vision,
        "force_image_size": IMAGE_SIZE,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "template": "internlm2-chat",
    }


def make_tokenizer(english: bool = False) -> PreTrainedTokenizerFast:
    """Return bytes, and a token for each thing that VLAC says or that tells its questions apart.

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


def make_weights(tokenizer: PreTrainedTokenizerFast, seed: int) -> Weights:
    """Return the checkpoint's tensors, float32."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    embeddings, head = _words(tokenizer, random)
    weights = {
        f"{_LLAMA}.embed_tokens.weight": embeddings,
        f"{_LLAMA}.norm.weight": torch.ones(_HIDDEN),
        "language_model.lm_head.weight": head,
        **vision_weights(LEAST_WIDTH, 2, _HIDDEN, _CONTENT, seed),
    }
    for layer in range(_TINY["num_hidden_layers"]):
        mixed = torch.zeros(_HIDDEN)
        mixed[_CONTENT] = 3.0
        if layer == 0:
            mixed[_MODE_AT:_STATE_AT] = 3000.0  # one tag among thousands of tokens
        parts = {
            "input_layernorm": torch.ones(_HIDDEN),
            "post_attention_layernorm": torch.ones(_HIDDEN),
            # Equal scores: attention is a mean.
            "self_attn.q_proj": torch.zeros(_HIDDEN, _HIDDEN),
            "self_attn.k_proj": torch.zeros(_HIDDEN, _HIDDEN),
            "self_attn.v_proj": torch.eye(_HIDDEN),
            "self_attn.o_proj": torch.diag(mixed),
            "mlp.gate_proj": torch.zeros(_MLP, _HIDDEN),
            "mlp.up_proj": torch.zeros(_MLP, _HIDDEN),
            "mlp.down_proj": torch.zeros(_HIDDEN, _MLP),
        }
        weights |= {f"{_LLAMA}.layers.{layer}.{part}.weight": tensor for part, tensor in parts.items()}
    return weights


def _words(
    tokenizer: PreTrainedTokenizerFast, random: Callable[..., torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings of all tokens, and the head that chooses among them; both (vocabulary, _HIDDEN)."""

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    def state(name: str) -> int:
        return _STATE_AT + _STATES.index(name)

    # Small beside what attention adds, so that the pictures choose and not the last word.
    embeddings = torch.zeros(len(tokenizer), _HIDDEN)
    embeddings[:, _CONTENT] = random(len(tokenizer), _HIDDEN - _CONTENT_AT) * 0.1
    embeddings[:, state("asked")] = 0.4
    for text, mode in _MODES.items():
        embeddings[token(text), _MODE_AT + mode] = 0.8
    head = torch.zeros(len(tokenizer), _HIDDEN)
    head[:, _STATE_AT:_CONTENT_AT] = -_FORBIDDEN_STATE
    for before, texts, after, question in _MOVES:
        for row in map(token, texts):
            embeddings[row, _STATE_AT:_CONTENT_AT] = 0.0
            embeddings[row, state(after)] = 0.4
            head[row, state(before)] = 0.0
            if question:
                head[row, _MODE_AT:_STATE_AT] = -_FORBIDDEN_MODE
                # A prompt that asks for reasoning asks for a score as well, up to twice.
                head[row, _MODE_AT + _MODES[question]] = 4 * _FORBIDDEN_MODE if question == "<think>" else 0.0
            head[row, _CONTENT] = random(_HIDDEN - _CONTENT_AT) * 0.4
    return embeddings, head


def enlarge(core: Weights, config: Mapping[str, Any], large: Large, seed: int) -> Weights:
    """Return the tensors of a checkpoint of shape `large`, bfloat16, around those of `make_weights`.

    The reserved and random dimensions of `core` are the first ones here, and nothing is ever added to the others.
    """
    from benchmarks.modeling_tiny_vlac import LargeVlacModel, TinyVlacConfig  # imports much of transformers

    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):  # shapes alone
        shapes = LargeVlacModel(TinyVlacConfig(**config)).language_model.state_dict(prefix="language_model.")
    weights = {name: _idle(name, tensor.shape, generator) for name, tensor in shapes.items()}
    vision = vision_weights(large.width // 2, large.layers, large.width, _CONTENT, seed)
    vision["mlp1.3.bias"][:_HIDDEN] = core["mlp1.3.bias"]
    weights |= {name: tensor.to(torch.bfloat16) for name, tensor in vision.items()}
    # The other dimensions are zero, and so make the mean square that a norm divides by smaller.
    for name in weights:
        if name.startswith(_LLAMA) and name.endswith("norm.weight"):
            weights[name].fill_(math.sqrt(_HIDDEN / large.width))
    for name in (f"{_LLAMA}.embed_tokens.weight", "language_model.lm_head.weight"):
        weights[name] = _padded(core[name], *weights[name].shape)
    words = len(core["language_model.lm_head.weight"])
    weights["language_model.lm_head.weight"][words:, _STATE_AT:_CONTENT_AT] = -_FORBIDDEN_STATE
    _put_core_in(weights, core)
    return weights


def _idle(name: str, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Return a tensor that only takes time: random, or zeros where the result of a part is added."""
    kind = name.removesuffix(".weight")
    if kind.endswith(("o_proj", "down_proj")):
        return _zeros(*shape)
    if "norm" in kind:
        return _zeros(*shape) + 1
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, _IDLE_STD, generator=generator)


def _put_core_in(weights: Weights, core: Weights) -> None:
    """Make the first layers' attention that of `core`, whose dimensions all fit the first head."""
    for layer in range(_TINY["num_hidden_layers"]):
        name = f"{_LLAMA}.layers.{layer}.self_attn"
        weights[f"{name}.q_proj.weight"].zero_()
        weights[f"{name}.k_proj.weight"].zero_()
        for part in ("v_proj", "o_proj"):
            tensor = f"{name}.{part}.weight"
            weights[tensor] = _padded(core[tensor], *weights[tensor].shape)


def _padded(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return (rows, columns), bfloat16: `tensor` in its upper left corner, zeros elsewhere."""
    padded = _zeros(rows, columns)
    padded[: tensor.shape[0], : tensor.shape[1]] = tensor
    return padded


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--like-2b", is_flag=True, help="Give it the shape of an InternVL2-2B.")
def main(folder: Path, like_2b: bool) -> None:
    """Makes the checkpoint in FOLDER anew; what the folder holds is lost."""
    print(make(folder, large=Large() if like_2b else None))


if __name__ == "__main__":
    main()
