"""Check this host's GPU, as torch sees it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from vlac_queue.commands.doctor.probe import probe
from vlac_queue.config import VlacConfig
from vlac_queue.finding import Finding
from vlac_queue.packages import install_command, installed_version
from vlac_queue.texts import clean, many, size
from vlac_queue.weights import weight_bytes

#: Bytes that VLAC's weights take, where their files can't be looked at.
_VLAC_BYTES = 5 << 30

# Asks torch about one GPU.
_PROBE = """
import json, sys, torch
index = int(sys.argv[1])
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
found = {"build": torch.version.cuda, "count": count}
if index < count:
    free, total = torch.cuda.mem_get_info(index)
    found.update(name=torch.cuda.get_device_name(index), free=free, total=total)
print(json.dumps(found))
"""


def check_gpu(config: VlacConfig) -> Finding:
    device = config.device
    if device == "cpu":
        return Finding("ok", "VLAC_DEVICE=cpu: VLAC runs on the CPU, which is slow")
    if installed_version("torch") is None:
        return Finding("skipped", "torch, which would tell, is not installed")
    index = int(device.partition(":")[2] or 0)
    try:
        gpu = json.loads(probe(_PROBE, str(index)).strip().splitlines()[-1])
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        return Finding("broken", f"torch can't look at the GPU: {clean(error)}", install_command(config))
    if "total" not in gpu:
        return _no_gpu(gpu["build"], int(gpu["count"]), device)
    return judge_gpu(config, clean(gpu["name"]), int(gpu["free"]), int(gpu["total"]))


def _no_gpu(build: str | None, count: int, device: str) -> Finding:
    if count:
        seen = f"torch sees {many(count, 'GPU')}, and VLAC_DEVICE={device}"
        return Finding("broken", seen, "look at CUDA_VISIBLE_DEVICES, or:\nexport VLAC_DEVICE=auto")
    remedy = (
        "look at nvidia-smi and CUDA_VISIBLE_DEVICES; pip install torch in a build for your CUDA;\n"
        "or, slow:\nexport VLAC_DEVICE=cpu"
    )
    built = f"for CUDA {build}" if build else "without CUDA"
    return Finding("broken", f"torch (a build {built}) sees no GPU", remedy)


def judge_gpu(config: VlacConfig, name: str, free: int, total: int) -> Finding:
    """Judge whether a GPU's memory (bytes) does for the weights and `gpu_memory_fraction`."""
    folder = Path(config.model_path).expanduser()
    weights = weight_bytes(folder) if config.model_path and folder.is_dir() else _VLAC_BYTES
    allowed = int(total * config.gpu_memory_fraction)
    found = f"{name}, {size(free)} of {size(total)} free; the critic may use {size(allowed)}"
    if allowed < weights:
        # A third more, for the images of a call.
        fraction = math.ceil(weights * 4 / 3 / total * 20) / 20
        if fraction > 1:
            return Finding("broken", f"{found}; its weights take {size(weights)}", "use a GPU with more memory")
        remedy = f"export VLAC_GPU_MEMORY_FRACTION={fraction:g}"
        return Finding("broken", f"{found}, its weights take {size(weights)}", remedy)
    if free < allowed:
        remedy = "look at nvidia-smi; end what is not needed, or use another GPU:\nexport CUDA_VISIBLE_DEVICES=N"
        return Finding("warning", f"{found}; others hold the rest (a running critic worker counts)", remedy)
    return Finding("ok", found)
