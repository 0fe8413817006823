"""Makes a checkpoint of VLAC's kind that is small enough for tests: `make_tiny_vlac.py FOLDER`.

It loads as an InternVL2 (`model_type="internvl2"` of ms-swift) and answers VLAC's prompts in VLAC's forms, so
the whole path runs on a CPU: tokenizer, template, images, engine, rich answers. It knows nothing about robots:
which number it says depends on the pictures and the words through random weights, but always on the same ones
in the same way. Needs torch, transformers and tokenizers; downloads nothing.

How it works: two Llama layers whose attention weighs all earlier tokens alike, so that the last position knows
the mean of all embeddings, and from the second layer on also something of their order. A few dimensions are
reserved. "Mode" dimensions are set in the embeddings of `<done>`, `<score>` and `<think>` and tell which question
is asked; "state" dimensions are set in the embeddings of what the model says itself and tell what may follow. The
others are random and choose among the numbers that may be said.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
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


def make(folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint; returns its folder."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    llm = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN,
        intermediate_size=_MLP,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16384,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    (folder / "modeling_tiny_vlac.py").write_text(MODELING.lstrip())
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "tiny_vlac",
                "architectures": ["TinyVlacModel"],
                "auto_map": {
                    "AutoConfig": "modeling_tiny_vlac.TinyVlacConfig",
                    "AutoModel": "modeling_tiny_vlac.TinyVlacModel",
                    "AutoModelForCausalLM": "modeling_tiny_vlac.TinyVlacModel",
                },
                "torch_dtype": "float32",
                "llm_config": llm.to_dict(),
            },
            indent=2,
        )
    )
    save_file(make_weights(tokenizer, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and a token for each thing that VLAC says or that tells its questions apart."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(make(parser.parse_args().folder))
