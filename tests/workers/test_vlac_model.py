from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlac_queue import VlacConfig
from vlac_queue.errors import ConfigError, CriticFailed
from workers.critics.vlac import model as model_module
from workers.critics.vlac.images import PreparedImages
from workers.critics.vlac.model import VlacModel
from workers.critics.vlac.rows import Row, read_number


def response(said: str, tokens: int = 2, prompt_tokens: int = 300) -> Any:
    return SimpleNamespace(
        choices=[SimpleNamespace(message=SimpleNamespace(content=said))],
        usage=SimpleNamespace(completion_tokens=tokens, prompt_tokens=prompt_tokens),
    )


class StandInGacModel:
    """The methods of GAC_model that one call takes; it says what the test tells it to."""

    def __init__(self, responses: Sequence[Any]) -> None:
        self.template = SimpleNamespace(processor=SimpleNamespace(all_special_tokens=["<image>"]))
        self.engine: Any = SimpleNamespace(max_model_len=4096)
        self.system_prompt: str | None = None
        self.images = PreparedImages(self._process_image_to_pil)
        self.infer_stats = SimpleNamespace(reset=lambda: None)
        self.max_tokens = 10_240
        self.configured: list[int] = []
        self.prepared = 0
        self.requests: list[tuple[str, int]] = []
        self._responses = list(responses)

    def set_config(self) -> None:
        self.configured.append(self.max_tokens)

    def _process_image_to_pil(self, image: Any) -> Any:
        self.prepared += 1
        return image

    def get_infer_requests(self, prompt: list[str], images: list[list[Any]]) -> list[Any]:
        self.requests = [(text, len(each)) for text, each in zip(prompt, images, strict=True)]
        return list(prompt)

    def chat(self, requests: list[Any]) -> tuple[list[Any], float]:
        return self._responses, 0.1

    def results_format(self, responses: list[Any], requests: list[Any], rich: bool) -> tuple[list[str], list[Any]]:
        said = responses[0].choices[0].message.content
        if rich and not said[-1:].isdigit():
            raise ZeroDivisionError("float division by zero")
        return [said + ".0" if rich else said], requests


def row(prompt: str = "p", images: Sequence[Any] = (), rich: bool = False, max_tokens: int = 16) -> Row:
    return Row(prompt, tuple(images) or (np.zeros((2, 2, 3), np.uint8),), read_number, rich, max_tokens)


def model(*responses: Any) -> tuple[VlacModel, StandInGacModel]:
    gac = StandInGacModel(responses)
    return VlacModel(gac, VlacConfig(), "cpu"), gac


def test_the_prompt_before_all_others_is_known() -> None:
    gac = StandInGacModel([])
    assert VlacModel(gac, VlacConfig(), "cpu").system_prompt == ""
    gac.system_prompt = "look closely"
    assert VlacModel(gac, VlacConfig(), "cpu").system_prompt == "look closely"


def test_each_row_gets_its_own_answer_rich_or_not() -> None:
    made, _ = model(response("5"), response("7"))
    assert made.complete([row(), row(rich=True)]) == ["5", "7.0"]


def test_the_token_limit_is_set_before_the_call() -> None:
    made, gac = model(response("5"))
    made.complete([row(max_tokens=512)])
    assert gac.configured == [512]


def test_an_answer_as_long_as_the_limit_counts_as_cut_off() -> None:
    made, _ = model(response("12345", tokens=16), response("5", tokens=15))
    cut, whole = made.complete([row(), row()])
    assert isinstance(cut, CriticFailed) and "'12345'" in str(cut)
    assert whole == "5"


def test_an_answer_that_ends_where_the_model_ends_counts_as_cut_off() -> None:
    made, _ = model(response("+3", prompt_tokens=4094), response("+38", prompt_tokens=4093))
    cut, whole = made.complete([row(), row()])
    assert isinstance(cut, CriticFailed) and "cut off at 2 tokens" in str(cut)
    assert whole == "+38"


def test_a_row_that_cannot_be_weighed_fails_alone() -> None:
    made, _ = model(response("yes"), response("5"))
    bad, good = made.complete([row(rich=True), row(rich=True)])
    assert isinstance(bad, CriticFailed) and "'yes'" in str(bad)
    assert good == "5.0"


def test_a_row_that_the_engine_failed_keeps_its_place() -> None:
    made, _ = model(ValueError("bad image"), response("5"))
    bad, good = made.complete([row(), row()])
    assert isinstance(bad, CriticFailed) and "bad image" in str(bad)
    assert good == "5"


def test_lost_rows_are_an_error_of_the_call() -> None:
    made, _ = model(response("5"))
    with pytest.raises(CriticFailed, match="1 answers to 2 rows"):
        made.complete([row(), row()])


def test_a_frame_that_many_rows_show_is_prepared_once() -> None:
    a, b, c = np.zeros((3, 2, 2, 3), np.uint8)
    made, gac = model(response("5"), response("5"))
    made.complete([row("x", [a, b]), row("y", [b, c])])
    assert gac.requests == [("x", 2), ("y", 2)]
    assert gac.prepared == 3


def test_special_tokens_come_from_the_tokenizer() -> None:
    assert model()[0].special_tokens == ("<image>",)


class StandInTorch(ModuleType):
    """What loading and offloading take of torch, on a machine with `gpus` GPUs; notes what happens."""

    float32, bfloat16, float16 = "torch.float32", "torch.bfloat16", "torch.float16"

    def __init__(self, gpus: int) -> None:
        super().__init__("torch")
        self.events: list[str] = []
        self.cuda = SimpleNamespace(
            is_available=lambda: gpus > 0,
            device_count=lambda: gpus,
            empty_cache=lambda: self.events.append("empty cache"),
            set_per_process_memory_fraction=lambda part, device: self.events.append(f"cap {part} on {device}"),
        )


class _Request:
    pass


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand-ins for torch (one GPU), ms-swift and evo_vlac, and the events they note."""
    torch = StandInTorch(gpus=1)

    class Gac(StandInGacModel):
        def __init__(self, tag: str) -> None:
            super().__init__([])

        def set_system_prompt(self) -> None:
            torch.events.append("system prompt")

    utils = SimpleNamespace(GAC_model=Gac, TemplateInputs=type("NewTemplateInputs", (), {}))

    def stand_in_class(gac_model: Any, config: VlacConfig) -> Any:
        class Loaded(gac_model):  # type: ignore[misc]
            def init_model(self, path: str, device_map: str, torch_dtype: str) -> None:
                torch.events.append(f"load {path} on {device_map} as {torch_dtype}")
                if path == "too big":
                    raise RuntimeError("CUDA out of memory")
                self.model = SimpleNamespace(to=lambda device: torch.events.append(f"to {device}"))
                self.prefix = SimpleNamespace(clear=lambda: torch.events.append("forget the prefix"))

        return Loaded

    for name, module in {
        "torch": torch,
        "swift": ModuleType("swift"),
        "swift.llm": SimpleNamespace(InferRequest=_Request),
        "evo_vlac": ModuleType("evo_vlac"),
        "evo_vlac.utils": SimpleNamespace(model_utils=utils),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    monkeypatch.setattr(model_module, "check_installation", lambda config: None)
    monkeypatch.setattr(model_module, "_gac_class", stand_in_class)
    return SimpleNamespace(events=torch.events, utils=utils)


def test_memory_is_capped_before_the_weights_are_loaded(installed: Any) -> None:
    VlacModel.load(VlacConfig(model_path="weights", gpu_memory_fraction=0.2))
    assert installed.events[:2] == ["cap 0.2 on cuda:0", "load weights on cuda:0 as torch.bfloat16"]


def test_the_cpu_gets_full_precision_and_no_cap(installed: Any) -> None:
    VlacModel.load(VlacConfig(model_path="weights", device="cpu"))
    assert installed.events[0] == "load weights on cpu as torch.float32"


def test_a_gpu_that_is_not_there_is_refused(installed: Any) -> None:
    with pytest.raises(ConfigError, match=r"torch sees 1 GPU"):
        VlacModel.load(VlacConfig(model_path="weights", device="cuda:1"))


def test_vllm_on_another_gpu_than_the_first_is_refused(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["torch"].cuda, "device_count", lambda: 2)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        VlacModel.load(VlacConfig(model_path="weights", engine="vllm", device="cuda:1"))


def test_weights_beyond_the_fraction_name_the_setting(installed: Any) -> None:
    with pytest.raises(ConfigError, match="VLAC_GPU_MEMORY_FRACTION"):
        VlacModel.load(VlacConfig(model_path="too big"))


def test_requests_are_requests_with_newer_ms_swift_too(installed: Any) -> None:
    VlacModel.load(VlacConfig(model_path="weights"))
    assert installed.utils.TemplateInputs is _Request


def test_offloading_moves_the_weights_to_the_host_and_back(installed: Any) -> None:
    loaded = VlacModel.load(VlacConfig(model_path="weights"))
    installed.events.clear()
    cleared: list[str] = []
    loaded.gac.images.clear = lambda: cleared.append("images")
    loaded.offload()
    assert installed.events == ["to cpu", "forget the prefix", "empty cache"]
    assert not cleared, "features are in host memory: they stay"
    loaded.wake()
    assert installed.events[3:] == ["to cuda:0"]


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "installed_too", "used"),
    [
        ("auto", "cuda:0", "torch.bfloat16", True, "flash_attn"),
        ("auto", "cuda:0", "torch.bfloat16", False, "eager"),
        ("auto", "cuda:0", "torch.float32", True, "eager"),
        ("auto", "cpu", "torch.bfloat16", True, "eager"),
        ("eager", "cuda:0", "torch.bfloat16", True, "eager"),
        ("flash_attn", "cuda:0", "torch.bfloat16", True, "flash_attn"),
    ],
)
def test_attention_is_what_is_installed_and_fits(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, dtype: str, installed_too: bool, used: str
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: object() if installed_too and name == "flash_attn" else None
    )
    assert model_module._attention(asked, device, dtype) == used
