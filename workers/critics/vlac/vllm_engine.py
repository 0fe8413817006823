"""vLLM as GAC_model's engine, inside the worker's own process.

vLLM would start a process for its engine. Here there is none: nothing outlives a worker that is killed, with the
accelerator's memory, or dies alone; and an error of one step (no memory for it, say) is one that can be gone on from.
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
#: Tokens of one step of the model, and of the images whose features vLLM keeps: 64 images. vLLM's own 2048 would
#: be fewer than one prompt with reference frames takes.
_STEP_TOKENS = 64 * _IMAGE_TOKENS

#: Arguments with settings of their own, and those on which answers and the life of the process depend.
_DECIDED = {
    "model": "VLAC_MODEL_PATH",
    "dtype": "VLAC_DTYPE",
    "gpu_memory_utilization": "VLAC_GPU_MEMORY_FRACTION",
    "limit_mm_per_prompt": "VLAC_REF_NUM",
    **dict.fromkeys(("logprobs_mode", "enable_sleep_mode", "trust_remote_code"), ""),
    # More than this process.
    **dict.fromkeys(
        ("distributed_executor_backend", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
        "",
    ),
}


def start(gac: Any, config: VlacConfig, path: str, model_type: str, device: str, dtype: Any) -> None:
    """Give `gac` its engine.

    Raises:
        ConfigError: vLLM is built for another device, or refuses an argument of VLAC_ENGINE_ARGS.
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
    chosen = arguments(config, sleeps=device != "cpu")
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
    except TypeError as error:  # "unexpected keyword argument"
        raise ConfigError(f"vLLM refuses VLAC_ENGINE_ARGS={config.engine_args}: {error}") from error
    gac.template = gac.engine.default_template
    # GAC_model.set_config writes torch's generation settings; vLLM's travel with each request.
    gac.model = SimpleNamespace(generation_config=SimpleNamespace())


def arguments(config: VlacConfig, *, sleeps: bool) -> dict[str, Any]:
    """Return the engine's arguments, those of `config.engine_args` among them.

    Raises:
        ConfigError: one of them is not to be chosen.
    """
    chosen = json.loads(config.engine_args)
    for name in chosen.keys() & _DECIDED.keys():
        instead = f"set {_DECIDED[name]} instead" if _DECIDED[name] else "the critic vlac depends on it"
        raise ConfigError(f"VLAC_ENGINE_ARGS can't choose {name}: {instead}.")
    images = config.ref_num + 3
    longest = images * _IMAGE_TOKENS + _TEXT_TOKENS
    return {
        "max_model_len": longest,
        # Pairs of an episode begin alike: with its reference frames and its first frame.
        "enable_prefix_caching": True,
        "max_num_batched_tokens": max(_STEP_TOKENS, longest),
        **chosen,
        "gpu_memory_utilization": config.gpu_memory_fraction,
        "limit_mm_per_prompt": {"image": images},
        # Rich answers need probabilities before temperature and top_k.
        "logprobs_mode": "raw_logprobs",
        "enable_sleep_mode": sleeps,
    }


def recover(engine: Any) -> None:
    """Forget what a call that failed has left: its requests, which the next call would go on with, and caches.

    A step's caches are noted before it runs: after one that failed they claim what was never computed.

    Args:
        engine: vLLM's LLMEngine.

    Raises:
        AcceleratorLost: vLLM does not let go of it.
    """
    engine.abort_request(list(engine.output_processor.request_states))
    if not engine.reset_prefix_cache():
        raise AcceleratorLost("vLLM keeps requests that were aborted; start the worker again")
    scheduler = engine.engine_core.engine_core.scheduler
    images = scheduler.encoder_cache_manager
    scheduler.encoder_cache_manager = type(images)(images.cache_size)
    engine.model_executor.driver_worker.worker.model_runner.encoder_cache.clear()


def sleep(engine: Any) -> None:
    """Move the weights to host memory, and drop the cache of keys and values with all that claims to be in it."""
    engine.reset_prefix_cache()
    engine.sleep(1)


def close(engine: Any) -> None:
    """Free the engine."""
    engine.engine_core.shutdown()
    gc.collect()
