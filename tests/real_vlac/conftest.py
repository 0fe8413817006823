"""The real evo_vlac on a tiny checkpoint; runs in the environments of `make test-vlac` and `make test-vllm`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.real_vlac.internlm2 import make_internlm2
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engines", default="pt", help="engines of our critic, with commas: pt, vllm")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", metafunc.config.getoption("--engines").split(","), scope="session")


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
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, engine: str) -> dict[str, Any]:
    """The settings with which our critic serves the weights of `checkpoint`: on vLLM as an InternLM2."""
    if engine == "pt":
        return {"model_path": str(checkpoint)}
    folder = make_internlm2(checkpoint, tmp_path_factory.mktemp("checkpoint") / "internlm2")
    # Every critic of a test keeps its cache of keys and values: a small one, 32 tokens a block.
    arguments = {"num_gpu_blocks_override": 1024, "enforce_eager": True}
    return {"model_path": str(folder), "engine": engine, "engine_args": json.dumps(arguments)}


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
def load(served: dict[str, Any]) -> Callable[..., VlacCritic]:
    """Loads our critic with these settings."""

    def loaded(**settings: Any) -> VlacCritic:
        critic = VlacCritic(VlacConfig(**{**served, **settings}))
        critic.load()
        return critic

    return loaded
