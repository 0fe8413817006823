"""The engine of vLLM, without vLLM: what it is asked for, and how its life ends."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.workers.test_vlac_model import StandInGacModel, response, row
from vlac_queue import VlacConfig
from vlac_queue.errors import ConfigError
from workers.critics import AcceleratorLost
from workers.critics.vlac import vllm_engine
from workers.critics.vlac.model import VlacModel


class StandInEngine:
    """The methods of vLLM's LLMEngine that a model takes; notes what happens."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.resets = True
        self.output_processor = SimpleNamespace(request_states={"7": None})
        core = SimpleNamespace(scheduler=SimpleNamespace(encoder_cache_manager=StandInCache(16)))
        self.engine_core = SimpleNamespace(engine_core=core, shutdown=lambda: self.events.append("shutdown"))
        runner = SimpleNamespace(encoder_cache={"image": None})
        worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
        self.model_executor = SimpleNamespace(driver_worker=worker)

    def abort_request(self, ids: list[str]) -> None:
        self.events.append(f"abort {ids}")

    def reset_prefix_cache(self) -> bool:
        self.events.append("reset prefixes")
        return self.resets

    def sleep(self, level: int) -> None:
        self.events.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.events.append("wake up")


class StandInCache:
    def __init__(self, cache_size: int) -> None:
        self.cache_size = cache_size
        self.cached: dict[str, set[str]] = {}


def loaded(device: str, *responses: Any) -> tuple[VlacModel, StandInGacModel, StandInEngine]:
    gac, engine = StandInGacModel(responses), StandInEngine()
    gac.engine = SimpleNamespace(max_model_len=4096, engine=engine)
    return VlacModel(gac, VlacConfig(engine="vllm"), device), gac, engine


def test_offloading_forgets_the_keys_and_values_that_it_drops() -> None:
    model, _, engine = loaded("cuda:0")
    model.offload()
    model.wake()
    assert engine.events == ["reset prefixes", "sleep 1", "wake up"]


def test_there_is_nowhere_to_offload_to_on_a_cpu() -> None:
    model, _, engine = loaded("cpu")
    model.offload()
    model.wake()
    assert engine.events == []


def test_closing_ends_the_engine() -> None:
    model, _, engine = loaded("cpu")
    model.close()
    assert engine.events == ["shutdown"]


def test_what_a_failed_call_has_left_is_forgotten() -> None:
    model, gac, engine = loaded("cuda:0", response("5"))
    scheduler = engine.engine_core.engine_core.scheduler
    scheduler.encoder_cache_manager.cached["image"] = {"7"}
    chat, gac.chat = gac.chat, lambda requests: 1 / 0  # type: ignore[assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        model.complete([row()])
    assert engine.events == ["abort ['7']", "reset prefixes"]
    assert (scheduler.encoder_cache_manager.cached, scheduler.encoder_cache_manager.cache_size) == ({}, 16)
    assert engine.model_executor.driver_worker.worker.model_runner.encoder_cache == {}
    gac.chat = chat  # type: ignore[method-assign]
    assert model.complete([row()]) == ["5"]


def test_an_engine_that_keeps_aborted_requests_is_lost() -> None:
    model, gac, engine = loaded("cuda:0")
    engine.resets = False
    gac.chat = lambda requests: 1 / 0  # type: ignore[assignment, return-value, method-assign]
    with pytest.raises(AcceleratorLost, match="start the worker again"):
        model.complete([row()])


def test_prompts_with_reference_frames_fit() -> None:
    chosen = vllm_engine.arguments(VlacConfig(ref_num=9), device="cuda:0")
    assert chosen["limit_mm_per_prompt"] == {"image": 12}
    assert 12 * 256 < chosen["max_model_len"] <= chosen["max_num_batched_tokens"] == 64 * 256
    assert chosen["enable_prefix_caching"] and chosen["enable_sleep_mode"]


def test_arguments_of_the_engine_come_from_its_setting() -> None:
    config = VlacConfig(engine_args='{"max_num_batched_tokens": 8192, "max_num_seqs": 8}')
    chosen = vllm_engine.arguments(config, device="cpu")
    assert (chosen["max_num_batched_tokens"], chosen["max_num_seqs"]) == (8192, 8)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model", "VLAC_MODEL_PATH"),
        ("gpu_memory_utilization", "VLAC_GPU_MEMORY_FRACTION"),
        ("logprobs_mode", "rich answers"),
        ("tensor_parallel_size", "a worker for each GPU"),
    ],
)
def test_what_answers_or_the_process_depend_on_is_not_chosen(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*{reason}"):
        vllm_engine.arguments(VlacConfig(engine_args=f'{{"{name}": 2}}'), device="cuda:0")


def test_a_build_of_vllm_for_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    platforms: Any = SimpleNamespace(current_platform=SimpleNamespace(device_type="cpu"))
    for name, module in {
        "swift": SimpleNamespace(),
        "vllm": SimpleNamespace(),
        "vllm.platforms": platforms,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "swift.llm", SimpleNamespace(VllmEngine=object))
    with pytest.raises(ConfigError, match="built for the device 'cpu'"):
        vllm_engine.start(SimpleNamespace(), VlacConfig(engine="vllm"), "weights", "internvl2", "cuda:0", None)
