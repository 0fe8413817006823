"""The loaded model: evo_vlac's GAC_model on ms-swift's PtEngine or VllmEngine."""

from __future__ import annotations

import functools
import gc
import importlib.util
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from vlac_queue.config import VlacConfig
from vlac_queue.errors import ConfigError, CriticFailed
from vlac_queue.packages import install_command
from workers.critics.vlac import vllm_engine
from workers.critics.vlac.calls import Completion, is_out_of_memory
from workers.critics.vlac.images import Images, PreparedImages
from workers.critics.vlac.installation import check_installation
from workers.critics.vlac.rows import Row, shown

logger = logging.getLogger(__name__)

#: VLAC's examples use these; with top_k 1 the answer is the likeliest, at any temperature.
_TEMPERATURE, _TOP_K = 0.5, 1
#: Most tokens of a prompt and its answer where the model's config doesn't say, as ms-swift has it.
_LENGTH = 8192


class VlacModel:
    """GAC_model, loaded. One thread calls it: GAC_model keeps settings between its methods."""

    def __init__(self, gac: Any, config: VlacConfig, device: str) -> None:
        self.gac = gac
        #: What its tokenizer takes for more than words.
        self.special_tokens: tuple[str, ...] = tuple(gac.template.processor.all_special_tokens)
        #: What it is told before each prompt.
        self.system_prompt: str = gac.system_prompt or ""
        self._config = config
        self._device = device
        self._images: Images = gac.images

    @classmethod
    def load(cls, config: VlacConfig) -> VlacModel:
        """Load the weights onto the device.

        Raises:
            ConfigError: something is missing or does not fit; the message names the command to run.
        """
        check_installation(config)
        torch, model_utils = _imported(config)
        device = _device(config.device, torch)
        if config.engine == "vllm" and device not in ("cuda:0", "cpu"):
            raise ConfigError(
                f"vLLM takes the first GPU that it sees, and VLAC_DEVICE={config.device} is {device} here; choose "
                "the GPU with CUDA_VISIBLE_DEVICES, or set VLAC_ENGINE=pt."
            )
        if device == "cpu" and config.device == "auto":
            logger.warning("torch sees no GPU: VLAC runs on the CPU, and slowly; see docs/vlac.md")
        if device != "cpu" and config.engine == "pt":
            # It caps this process's allocator; the CUDA context (some 0.5 GB) comes on top.
            torch.cuda.set_per_process_memory_fraction(config.gpu_memory_fraction, device)
        gac = _gac_class(model_utils.GAC_model, config)(tag="critic")
        try:
            gac.init_model(config.model_path, device_map=device, torch_dtype=_dtype(config.dtype, device, torch))
        except Exception as error:
            if is_out_of_memory(error):
                raise ConfigError(
                    f"the weights do not fit the memory allowed ({error}); raise VLAC_GPU_MEMORY_FRACTION "
                    f"(now {config.gpu_memory_fraction}; VLAC in bfloat16 takes about 5 GB, and calls their part)."
                ) from error
            raise
        gac.temperature, gac.top_k = _TEMPERATURE, _TOP_K
        gac.set_system_prompt()
        return cls(gac, config, device)

    def complete(self, rows: Sequence[Row]) -> list[Completion]:
        """Make one call of the model; the rows have one `max_tokens`.

        Returns:
            For each row what the model said, or why that can't be used.
        """
        gac = self.gac
        gac.max_tokens = rows[0].max_tokens
        # They take time to tell.
        gac.logprobs = any(row.rich for row in rows)
        gac.set_config()
        images = self._images.of(rows)
        requests = gac.get_infer_requests(prompt=[row.prompt for row in rows], images=images)
        try:
            responses, _ = gac.chat(requests)
        except Exception:
            if self._config.engine == "vllm":
                vllm_engine.recover(gac.engine.engine)
            raise
        # They keep an entry for every answer ever given.
        gac.infer_stats.reset()
        if len(responses) != len(rows):
            raise CriticFailed(f"the engine gave {len(responses)} answers to {len(rows)} rows.")
        return [self._completion(row, response) for row, response in zip(rows, responses, strict=True)]

    def free_memory(self) -> None:
        """Give back what is kept for later."""
        self._images.clear()
        self._forget_prefix()
        self._empty_cache()

    def _forget_prefix(self) -> None:
        if self.gac.prefix:
            self.gac.prefix.clear()

    def _empty_cache(self) -> None:
        if self._device != "cpu":
            import torch

            torch.cuda.empty_cache()

    def offload(self) -> None:
        """Move the weights to host memory."""
        if self._device == "cpu":
            return
        if self._config.engine == "vllm":
            vllm_engine.sleep(self.gac.engine.engine)
        else:
            self.gac.model.to("cpu")
            self._forget_prefix()
            self._empty_cache()  # kept features are in host memory, and stay

    def wake(self) -> None:
        """Move the weights back onto the device."""
        if self._device == "cpu":
            return
        if self._config.engine == "vllm":
            self.gac.engine.engine.wake_up()
        else:
            self.gac.model.to(self._device)

    def close(self) -> None:
        """Free the weights."""
        self._images.close()
        if self._config.engine == "vllm":
            vllm_engine.close(self.gac.engine.engine)
        del self.gac, self._images
        gc.collect()  # models refer to themselves in circles
        self._empty_cache()

    def _completion(self, row: Row, response: Any) -> Completion:
        if isinstance(response, Exception):
            return CriticFailed(f"the engine failed on this row: {type(response).__name__}: {response}")
        said = response.choices[0].message.content
        usage = response.usage
        # finish_reason doesn't tell in ms-swift 3.3. Both engines also stop where the model's length ends.
        room = (self.gac.engine.max_model_len or _LENGTH) - usage.prompt_tokens
        if usage.completion_tokens >= min(row.max_tokens, room):
            return CriticFailed(
                f"VLAC's answer was cut off at {usage.completion_tokens} tokens: it said {shown(said)}."
            )
        try:
            # It only appends to the request's messages; a bare one saves copying the images.
            answers, _ = self.gac.results_format([response], [SimpleNamespace(messages=[])], rich=row.rich)
        except Exception as error:  # of one row only: no digit to weigh, or a digit that is no number
            reason = f"{type(error).__name__}: {error}"
            return CriticFailed(f"VLAC's answer can't be weighed by digit ({reason}): it said {shown(said)}.")
        return str(answers[0])


def _imported(config: VlacConfig) -> tuple[Any, Any]:
    """Return torch and evo_vlac's module."""
    try:
        import torch
        from evo_vlac.utils import model_utils
        from swift.llm import InferRequest
    except Exception as error:  # transformers wraps ImportErrors, swift raises what it met
        raise ConfigError(
            f"evo_vlac or what it needs can't be imported ({type(error).__name__}: {error}); run: "
            f"{install_command(config)}"
        ) from error
    # From ms-swift 3.8 on this name means something else; GAC_model means a request.
    if not issubclass(model_utils.TemplateInputs, InferRequest):
        model_utils.TemplateInputs = InferRequest
    return torch, model_utils


def _gac_class(gac_model: Any, config: VlacConfig) -> Any:
    """Return GAC_model with an `init_model` that knows more than one attention, dtype, device and engine."""

    class ServedGac(gac_model):
        def init_model(
            self,
            model_path: str,
            model_type: str = "internvl2",
            device_map: str = "auto",
            torch_dtype: Any = None,
            adapter: str | None = None,
        ) -> None:
            from swift.plugin import InferStats
            from swift.utils import seed_everything

            self.prefix = None  # vLLM keeps what prompts begin with by itself
            start = vllm_engine.start if config.engine == "vllm" else _start_torch
            start(self, config, model_path, model_type, device_map, torch_dtype)
            self.images = _images(self, config)
            # A progress bar for each call would fill the worker's log.
            self.engine.infer = functools.partial(self.engine.infer, use_tqdm=False)
            self.infer_stats = InferStats()
            seed_everything(42)

    return ServedGac


def _start_torch(gac: Any, config: VlacConfig, path: str, model_type: str, device: str, dtype: Any) -> None:
    from swift.llm import PtEngine, get_model_tokenizer, get_template

    from workers.critics.vlac.likeliest import likeliest
    from workers.critics.vlac.prefix import SharedPrefix

    gac.model, tokenizer = get_model_tokenizer(
        model_id_or_path=path,
        model_type=model_type,
        torch_dtype=dtype,
        device_map=device,
        attn_impl=_attention(config.attention, device, str(dtype)),
    )
    gac.prefix = SharedPrefix(gac.model.language_model)
    # An answer needs the logits of the last position alone; InternLM2 would compute, and keep, those of all. Nor
    # does it need the last layer's MLP elsewhere: what the layer adds it to is then right at that position alone.
    last = gac.model.language_model.model.layers[-1]
    mlp = last.feed_forward if hasattr(last, "feed_forward") else last.mlp  # InternLM2's, Llama's
    for part in (mlp, gac.model.language_model.get_output_embeddings()):
        part.register_forward_pre_hook(lambda module, hidden: (hidden[0][:, -1:],))
    gac.template = get_template(model_type, tokenizer)
    gac.engine = PtEngine.from_model_template(gac.model, gac.template, max_batch_size=0)
    gac.engine.preprocess_logits = likeliest


def _images(gac: Any, config: VlacConfig) -> Images:
    images = PreparedImages(gac._process_image_to_pil)
    if config.engine == "vllm":
        from workers.critics.vlac.shared_images import SharedImages

        return SharedImages(images)
    from workers.critics.vlac.features import FrameFeatures

    return FrameFeatures(gac.model, images, config.vision_cache_bytes)


def _device(name: str, torch: Any) -> str:
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return "cuda:0" if has_cuda else "cpu"
    if name == "cpu":
        return name
    index = int(name.partition(":")[2] or 0)
    if not has_cuda or index >= torch.cuda.device_count():
        raise ConfigError(
            f"VLAC_DEVICE={name}, and torch sees {torch.cuda.device_count() if has_cuda else 'no'} GPU(s); check "
            "nvidia-smi and CUDA_VISIBLE_DEVICES, install a CUDA build of torch, or set VLAC_DEVICE=cpu."
        )
    return f"cuda:{index}"


def _dtype(name: str, device: str, torch: Any) -> Any:
    if name == "auto":
        name = "float32" if device == "cpu" else "bfloat16"
    return getattr(torch, name)


def _attention(name: str, device: str, dtype: str) -> str:
    """Return the attention to use: flash_attn, for which GAC_model always asks, needs a GPU and half precision."""
    if name != "auto":
        return name
    usable = device != "cpu" and "float32" not in dtype and importlib.util.find_spec("flash_attn") is not None
    return "flash_attn" if usable else "eager"
