"""The real evo_vlac on a tiny checkpoint; runs in the environment of `make test-vlac` only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlac_queue import VlacConfig
from vlac_queue.frames import Frames
from workers.critics.vlac import VlacCritic

ROOT = Path(__file__).parents[2]
TASK = "Scoop the rice into the rice cooker."


def photographs(name: str) -> Frames:
    """uint8 (6, 240, 320, 3): the six pictures of "run" or "reference"."""
    folder = Path(__file__).parent / "photographs"
    return np.stack([np.asarray(Image.open(folder / f"{name}-{i}.jpg")) for i in range(6)])


def pictures(frames: Frames) -> list[Image.Image]:
    """The same frames as evo_vlac takes them."""
    return [Image.fromarray(frame) for frame in frames]


@pytest.fixture(scope="session")
def run() -> Frames:
    return photographs("run")


@pytest.fixture(scope="session")
def reference() -> Frames:
    return photographs("reference")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.tiny_vlac import make

    return make(tmp_path_factory.mktemp("checkpoint") / "tiny-vlac")


@pytest.fixture(scope="session")
def gac(checkpoint: Path) -> Any:
    """GAC_model as VLAC's examples use it, but for what needs a GPU; loaded without any of our code."""
    import torch
    from evo_vlac.utils import model_utils
    from swift.llm import InferRequest, PtEngine, get_model_tokenizer, get_template
    from swift.plugin import InferStats

    # For ms-swift 3.8 and newer; before, a TemplateInputs is an InferRequest.
    model_utils.TemplateInputs = InferRequest

    class CpuGac(model_utils.GAC_model):  # type: ignore[misc]
        def init_model(self, model_path: str) -> None:
            self.model, tokenizer = get_model_tokenizer(
                model_path, model_type="internvl2", torch_dtype=torch.float32, device_map="cpu", attn_impl="eager"
            )
            self.template = get_template("internvl2", tokenizer)
            self.engine = PtEngine.from_model_template(self.model, self.template, max_batch_size=0)
            self.infer_stats = InferStats()

    model = CpuGac(tag="critic")
    model.init_model(str(checkpoint))
    model.temperature, model.top_k, model.max_tokens = 0.5, 1, 512
    model.set_config()
    model.set_system_prompt()
    return model


@pytest.fixture
def load(checkpoint: Path) -> Callable[..., VlacCritic]:
    """Loads our critic with these settings."""

    def loaded(**settings: Any) -> VlacCritic:
        critic = VlacCritic(VlacConfig(model_path=str(checkpoint), **settings))
        critic.load()
        return critic

    return loaded
