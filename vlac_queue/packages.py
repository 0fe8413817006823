"""Checks of this host's packages, by their metadata: what the queue needs, and what VLAC needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from vlac_queue.config import VlacConfig
from vlac_queue.finding import Finding, release

#: The oldest version that fits, and the first that does not: what both sides of the queue need.
_QUEUE_PACKAGES: dict[str, tuple[str, str]] = {
    "rq": ("3", "4"),
    "redis": ("6.0", ""),
    "numpy": ("1.26", ""),
    "lz4": ("4.3", ""),
}
#: Modules that evo_vlac needs and does not declare, and what installs each.
_COMPANIONS = {
    "loguru": "loguru",
    "cv2": "'opencv-python-headless<4.12'",
    "torchvision": "torchvision",
    "timm": "timm",
}

_INSTALL_PT = (
    "pip install torch torchvision ms-swift==3.3.0 transformers==4.51.3 'pyarrow<22' loguru "
    "'opencv-python-headless<4.12' timm"
)
_INSTALL_VLLM = "pip install vllm==0.12.0 transformers==4.57.3 ms-swift==3.12.6 loguru"
_INSTALL_EVO_VLAC = "git clone https://github.com/InternRobotics/VLAC && pip install --no-deps -e VLAC"


def check_queue_packages() -> Finding:
    found, needed = [], []
    for name, (least, below) in _QUEUE_PACKAGES.items():
        version = installed_version(name)
        found.append(f"{name} {version or 'missing'}")
        fits = version and release(least) <= release(version) and (not below or release(version) < release(below))
        if not fits:
            needed.append(f"'{name}>={least}{',<' + below if below else ''}'")
    if needed:
        return Finding("broken", ", ".join(found), f"pip install {' '.join(needed)}")
    return Finding("ok", ", ".join(found))


def check_torch(config: VlacConfig) -> Finding:
    torch, vision = installed_version("torch"), installed_version("torchvision")
    if torch is None:
        remedy = "of one release and for your CUDA:\npip install torch torchvision"
        return Finding("broken", "torch is not installed", remedy)
    found = f"torch {torch}" + (f", torchvision {vision}" if vision else "")
    if release(torch) < (2, 5):
        return Finding("warning", f"{found}: older than 2.5, the oldest that is meant", "pip install 'torch>=2.5'")
    numbers = release(torch)
    # torchvision 0.20 is built for torch 2.5, 0.21 for 2.6, and so on; it does not load with another.
    fitting = (0, numbers[1] + 15) if numbers[0] == 2 and len(numbers) > 1 else None
    if vision and fitting and release(vision)[:2] != fitting:
        return Finding("warning", f"{found}: not of one release", f"pip install 'torchvision==0.{fitting[1]}.*'")
    return Finding("ok", found)


def check_transformers(config: VlacConfig) -> Finding:
    version = installed_version("transformers")
    tried = "4.57.3" if config.engine == "vllm" else "4.51.3"
    remedy = f"pip install transformers=={tried}"
    if version is None:
        return Finding("broken", "transformers is not installed", remedy)
    if release(version) >= (5,):
        return Finding("broken", f"transformers {version}; ms-swift 3 needs 4.x", remedy)
    if config.engine == "vllm" and release(version) < (4, 56):
        return Finding("broken", f"transformers {version}; vLLM 0.12 needs 4.56 or newer", remedy)
    if version != tried:
        return Finding("warning", f"{version}; VLAC was tried with {tried}", remedy)
    return Finding("ok", version)


def check_swift(config: VlacConfig) -> Finding:
    swift, numpy, arrow = installed_version("ms-swift"), installed_version("numpy"), installed_version("pyarrow")
    if swift is None:
        return Finding("broken", "ms-swift is not installed", install_command(config))
    numbers = release(swift)
    if numbers >= (3, 13):
        found = f"ms-swift {swift} can't run evo_vlac, which needs swift.llm of 3.x"
        return Finding("broken", found, install_command(config))
    if config.engine == "vllm" and numbers < (3, 12, 6):
        return Finding("broken", f"ms-swift {swift} fits no vLLM of today and loses rows that fail", _INSTALL_VLLM)
    if numbers < (3, 3):
        found = f"ms-swift {swift}: older than 3.3, the oldest that was tried"
        return Finding("warning", found, install_command(config))
    if numbers < (3, 4) and numpy and release(numpy) >= (2,):
        found = f"ms-swift {swift} needs numpy 1, and numpy {numpy} is here"
        return Finding("broken", found, "pip install 'numpy<2' 'pyarrow<22'")
    if numpy and arrow and release(numpy) < (2,) and release(arrow) >= (22,):
        found = f"ms-swift {swift}, but pyarrow {arrow} refuses numpy {numpy}"
        return Finding("broken", found, "pip install 'pyarrow<22'")
    return Finding("ok", f"{swift}, with numpy {numpy}")


def check_engine(config: VlacConfig) -> Finding:
    """Check the engine's own packages: vLLM, or what makes torch's attention fast."""
    if config.engine == "vllm":
        version = installed_version("vllm")
        if version is None or release(version) < (0, 12):
            found = f"vllm {version or 'is not installed'}; 0.12 is needed"
            return Finding("broken", found, _INSTALL_VLLM)
        if release(version)[:2] != (0, 12):
            return Finding("warning", f"vllm {version}; VLAC was tried with 0.12.0", _INSTALL_VLLM)
        return Finding("ok", f"vllm {version}")
    if config.engine_args != "{}":
        remedy = "unset VLAC_ENGINE_ARGS\nor:\nexport VLAC_ENGINE=vllm"
        return Finding("broken", "VLAC_ENGINE_ARGS is for the engine vllm, and VLAC_ENGINE=pt", remedy)
    flash = installed_version("flash_attn")
    if flash:
        return Finding("ok", f"pt, flash_attn {flash}")
    if config.attention == "flash_attn":
        remedy = "pip install flash-attn --no-build-isolation\nor:\nexport VLAC_ATTENTION=auto"
        return Finding("broken", "VLAC_ATTENTION=flash_attn, and flash_attn is not installed", remedy)
    return Finding("ok", "pt, no flash_attn: eager attention, which is slower and takes more memory")


def check_evo_vlac(config: VlacConfig) -> Finding:
    spec = importlib.util.find_spec("evo_vlac")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        return Finding("broken", "evo_vlac (VLAC's own code) is not installed", _INSTALL_EVO_VLAC)
    folder = Path(places[0])
    if not (folder / "utils" / "model_utils.py").is_file():
        remedy = "install its checkout editable:\npip install --no-deps -e VLAC"
        return Finding("broken", f"{folder} lacks utils/model_utils.py, which its package leaves out", remedy)
    needed = [name for name in _COMPANIONS if not (name == "timm" and config.engine == "vllm")]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        install = "pip install " + " ".join(_COMPANIONS[name] for name in missing)
        return Finding("broken", f"evo_vlac is here, {', '.join(missing)} missing", install)
    return Finding("ok", f"{folder}, with {', '.join(needed)}")


def install_command(config: VlacConfig) -> str:
    return _INSTALL_VLLM if config.engine == "vllm" else _INSTALL_PT


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


#: The checks of what VLAC needs, by name.
VLAC_PACKAGE_CHECKS: dict[str, Callable[[VlacConfig], Finding]] = {
    "torch": check_torch,
    "transformers": check_transformers,
    "ms-swift": check_swift,
    "engine": check_engine,
    "evo_vlac": check_evo_vlac,
}
