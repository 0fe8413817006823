"""vLLM as GAC_model's engine, inside the worker's own process.

By itself, vLLM starts a process for its engine. Without one, nothing outlives a worker that is killed and keeps
the accelerator's memory, nothing dies alone, and the worker can go on after an error of one step, such as too
little memory.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
from types import SimpleNamespace
from typing import Any

from vlac_queue.config import VlacConfig
from vlac_queue.errors import ConfigError
from workers.critics import AcceleratorLost

#: Tokens that an image takes in a prompt.
_IMAGE_TOKENS = 256
#: Tokens left for a prompt's words and the answer.
_TEXT_TOKENS = 1024
#: Tokens of one step of the model, and of the images whose features are kept: 64 images. vLLM's own 2048 are fewer
#: than one prompt with reference frames has.
_STEP_TOKENS = 64 * _IMAGE_TOKENS
#: Tokens in a block of keys and values on a CPU; on a GPU it has 16 by itself. What prompts begin with is kept in
#: whole blocks: with vLLM's own 128, each pair would compute up to 127 tokens again.
_CPU_BLOCK = 32

#: Arguments that VLAC_ENGINE_ARGS can't choose, and why.
_FIXED = {
    "model": "it is VLAC_MODEL_PATH",
    "dtype": "it is VLAC_DTYPE",
    "gpu_memory_utilization": "it is VLAC_GPU_MEMORY_FRACTION",
    "limit_mm_per_prompt": "it follows from VLAC_REF_NUM",
    "logprobs_mode": "rich answers depend on it",
    "enable_sleep_mode": "offloading depends on it",
    **dict.fromkeys(
        (
            "distributed_executor_backend",
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "data_parallel_size",
        ),
        "the engine has one process; start a worker for each GPU",
    ),
}


def start(gac: Any, config: VlacConfig, path: str, model_type: str, device: str, dtype: Any) -> None:
    """Give `gac` its engine.

    Raises:
        ConfigError: vLLM is built for another device, or refuses an argument or the memory that it may use.
    """
    # Read when the engine is made.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from swift.llm import VllmEngine
    from vllm.platforms import current_platform

    if current_platform.device_type != device.partition(":")[0]:
        raise ConfigError(
            f"vLLM is built for the device {current_platform.device_type!r}, and VLAC_DEVICE={config.device} is "
            f"{device} here; install vLLM's build for it, or set VLAC_ENGINE=pt."
        )
    chosen = arguments(config, device)
    known = inspect.signature(VllmEngine).parameters
    try:
        gac.engine = VllmEngine(
            path,
            dtype,
            model_type=model_type,
            use_async_engine=False,
            engine_kwargs={name: value for name, value in chosen.items() if name not in known},
            **{name: value for name, value in chosen.items() if name in known},
        )
    except (TypeError, ValueError) as error:  # an unknown argument; too little memory, or a value out of range
        raise ConfigError(
            f"vLLM can't start with VLAC_GPU_MEMORY_FRACTION={config.gpu_memory_fraction} and "
            f"VLAC_ENGINE_ARGS={config.engine_args}: {error}"
        ) from error
    gac.template = gac.engine.default_template
    # GAC_model.set_config writes torch's generation settings; vLLM's travel with each request.
    gac.model = SimpleNamespace(generation_config=SimpleNamespace())


def arguments(config: VlacConfig, device: str) -> dict[str, Any]:
    """Return the engine's arguments, those of `config.engine_args` among them.

    Raises:
        ConfigError: one of them can't be chosen.
    """
    chosen = json.loads(config.engine_args)
    for name in chosen:
        if name in _FIXED:
            raise ConfigError(f"VLAC_ENGINE_ARGS can't choose {name}: {_FIXED[name]}.")
    images = config.ref_num + 3
    longest = images * _IMAGE_TOKENS + _TEXT_TOKENS
    return {
        "max_model_len": longest,
        # The pairs of an episode begin alike: with its reference frames and its first frame.
        "enable_prefix_caching": True,
        "block_size": _CPU_BLOCK if device == "cpu" else None,
        "max_num_batched_tokens": _STEP_TOKENS,
        **chosen,
        "gpu_memory_utilization": config.gpu_memory_fraction,
        "limit_mm_per_prompt": {"image": images},
        # Rich answers need probabilities before temperature and top_k.
        "logprobs_mode": "raw_logprobs",
        "enable_sleep_mode": device != "cpu",
    }


def recover(engine: Any) -> None:
    """Forget what a failed call has left: its requests, which the next call would go on with, and the caches.

    A step's caches are noted before it runs; after one that failed they claim what was never computed.

    Args:
        engine: vLLM's LLMEngine.

    Raises:
        AcceleratorLost: vLLM does not let go of the requests.
    """
    engine.abort_request(list(engine.output_processor.request_states))
    if not engine.reset_prefix_cache():
        raise AcceleratorLost("vLLM keeps requests that were aborted; start the worker again")
    scheduler = engine.engine_core.engine_core.scheduler
    images = scheduler.encoder_cache_manager
    scheduler.encoder_cache_manager = type(images)(images.cache_size)
    engine.model_executor.driver_worker.worker.model_runner.encoder_cache.clear()


def sleep(engine: Any) -> None:
    """Move the weights to host memory, and forget the keys and values, which are dropped."""
    engine.reset_prefix_cache()
    engine.sleep(1)


def close(engine: Any) -> None:
    """End the engine; its memory is free once nothing refers to it and garbage is collected."""
    engine.engine_core.shutdown()
    # vLLM has frozen what there was when it started, itself included, and what is frozen is never collected.
    gc.unfreeze()
