"""What the critic `vlac` needs on this machine; every complaint names the command that mends it."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from vlac_queue.config import VlacConfig
from vlac_queue.control import TRY_OUT
from vlac_queue.errors import ConfigError

#: Installs what evo_vlac needs for the torch engine.
INSTALL_PT = (
    "pip install torch torchvision ms-swift==3.3.0 transformers==4.51.3 'pyarrow<22' loguru "
    "'opencv-python-headless<4.12' timm"
)
#: Installs what the vLLM engine needs.
INSTALL_VLLM = "pip install 'vllm>=0.9' ms-swift==3.12.6 loguru 'opencv-python-headless<4.12'"
#: Installs evo_vlac itself.
INSTALL_EVO_VLAC = "git clone https://github.com/InternRobotics/VLAC && pip install --no-deps -e VLAC"
_TRY_OUT = f" ({TRY_OUT})"
#: Ends of the names of files that hold weights.
_WEIGHTS = (".safetensors", ".bin")


def check_installation(config: VlacConfig) -> None:
    """Looks at packages and weights, without importing torch.

    Raises:
        ConfigError: something is missing, or is of a version that can't work.
    """
    check_versions(installed_versions(), config.engine)
    if importlib.util.find_spec("evo_vlac") is None:
        raise ConfigError(f"evo_vlac (VLAC's own code) is not installed; run: {INSTALL_EVO_VLAC}{_TRY_OUT}")
    if config.attention == "flash_attn" and importlib.util.find_spec("flash_attn") is None:
        raise ConfigError(
            "VLAC_ATTENTION=flash_attn, and flash_attn is not installed; run: "
            "pip install flash-attn --no-build-isolation, or set VLAC_ATTENTION=auto."
        )
    check_weights(config.model_path)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that must fit together; what is not installed is missing."""
    versions = {}
    for name in ("torch", "ms-swift", "numpy", "vllm"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def check_versions(versions: Mapping[str, str], engine: str) -> None:
    """Checks versions, as `installed_versions` gives them, for the engine "pt" or "vllm".

    Raises:
        ConfigError: a package is missing, or they can't work together.
    """
    install = INSTALL_VLLM if engine == "vllm" else INSTALL_PT
    for name in ("torch", "ms-swift", *(["vllm"] if engine == "vllm" else [])):
        if name not in versions:
            raise ConfigError(f"{name} is not installed; run: {install}{_TRY_OUT}")
    swift = _numbers(versions["ms-swift"])
    if swift >= (3, 13):
        raise ConfigError(
            f"ms-swift {versions['ms-swift']} can't run evo_vlac, which needs swift.llm of 3.x; run: {install}"
        )
    if engine == "vllm" and swift < (3, 12, 6):
        raise ConfigError(
            f"ms-swift {versions['ms-swift']} fits no vLLM of today and loses rows that fail; run: {INSTALL_VLLM}"
        )
    numpy = versions.get("numpy", "")
    if swift < (3, 4) and _numbers(numpy) >= (2,):
        raise ConfigError(
            f"ms-swift {versions['ms-swift']} needs numpy 1, and numpy {numpy} is installed; "
            "run: pip install 'numpy<2' 'pyarrow<22'"
        )


def check_weights(model_path: str) -> None:
    """Looks whether `model_path` is a folder with all of its weights, or the name of a model on a hub.

    Raises:
        ConfigError: it is neither.
    """
    if not model_path:
        raise ConfigError(
            "the critic vlac needs the VLAC weights: set VLAC_MODEL_PATH to their folder "
            "(huggingface-cli download InternRobotics/VLAC --local-dir VLAC-weights)."
        )
    folder = Path(model_path).expanduser()
    if not folder.is_dir():
        is_hub_name = model_path.count("/") == 1 and not model_path.startswith((".", "~", os.sep))
        if is_hub_name:
            return
        raise ConfigError(f"VLAC_MODEL_PATH={model_path} is no folder; set it to the folder of the VLAC weights.")
    again = f"run again: huggingface-cli download InternRobotics/VLAC --local-dir {model_path}"
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{model_path} holds no config.json, so it is no folder of weights; {again}")
    needed = set()
    for index in folder.glob("*.index.json"):
        needed |= set(json.loads(index.read_text())["weight_map"].values())
    missing = sorted(name for name in needed if not (folder / name).is_file())
    if missing:
        raise ConfigError(f"{model_path} lacks {', '.join(missing)}; {again}")
    if not any(path.suffix in _WEIGHTS for path in folder.iterdir()):
        raise ConfigError(f"{model_path} holds no weights (*.safetensors, *.bin); {again}")


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "3.12.6.dev0" is (3, 12, 6)."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
