"""What load() says where something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlac_queue import VlacConfig
from vlac_queue.errors import ConfigError
from vlac_queue.packages import installed_version
from workers.critics.vlac import VlacCritic


def refusal(**settings: str) -> str:
    with pytest.raises(ConfigError) as refused:
        VlacCritic(VlacConfig(**settings)).load()  # type: ignore[arg-type]
    return str(refused.value)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    assert "VLAC_MODEL_PATH" in refusal()
    assert "huggingface-cli download" in refusal(model_path=str(tmp_path))


def test_flash_attention_that_is_not_installed(checkpoint: Path) -> None:
    assert "pip install flash-attn" in refusal(model_path=str(checkpoint), attention="flash_attn")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(checkpoint: Path) -> None:
    assert "VLAC_DEVICE=cpu" in refusal(model_path=str(checkpoint), device="cuda:0")


@pytest.mark.skipif(installed_version("ms-swift") == "3.12.6", reason="it is vLLM's")
def test_vllm_beside_the_ms_swift_of_the_torch_engine(checkpoint: Path) -> None:
    assert "ms-swift==3.12.6" in refusal(model_path=str(checkpoint), engine="vllm")
