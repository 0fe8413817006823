"""This host's GPU, as torch sees it in a process of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from vlac_queue.config import VlacConfig
from vlac_queue.finding import Finding
from vlac_queue.packages import install_command, installed_version
from vlac_queue.texts import clean, many, size
from vlac_queue.weights import weight_bytes

#: Seconds that torch may take to be imported and to look at a GPU; from a cold disk it is slow.
_PROBE_S = 90.0
#: Bytes that VLAC's weights take, where their files can't be looked at.
_VLAC_BYTES = 5 << 30

# Asks torch about one GPU. In a process of its own: an import that crashes takes nothing along, and the
# memory that CUDA takes for itself is given back at once.
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
        gpu = _probe_gpu(index)
    except (OSError, RuntimeError, ValueError, LookupError, subprocess.TimeoutExpired) as error:
        return Finding("broken", f"torch can't look at the GPU: {clean(error)}", install_command(config))
    if "total" not in gpu:
        return _no_gpu(gpu["build"], int(gpu["count"]), device)
    return judge_gpu(config, clean(gpu["name"]), int(gpu["free"]), int(gpu["total"]))


def _no_gpu(build: str | None, count: int, device: str) -> Finding:
    if count:
        seen = f"torch sees {many(count, 'GPU')}, and VLAC_DEVICE={device}"
        return Finding("broken", seen, "look at CUDA_VISIBLE_DEVICES, or:\nexport VLAC_DEVICE=auto")
    return Finding(
        "broken",
        f"torch (a build {f'for CUDA {build}' if build else 'without CUDA'}) sees no GPU",
        "look at nvidia-smi and CUDA_VISIBLE_DEVICES; pip install torch in a build for your CUDA;\n"
        "or, slow:\nexport VLAC_DEVICE=cpu",
    )


def judge_gpu(config: VlacConfig, name: str, free: int, total: int) -> Finding:
    """Whether a GPU's memory (bytes) does for the weights and `gpu_memory_fraction`."""
    folder = Path(config.model_path).expanduser()
    weights = weight_bytes(folder) if config.model_path and folder.is_dir() else _VLAC_BYTES
    allowed = int(total * config.gpu_memory_fraction)
    found = f"{name}, {size(free)} of {size(total)} free; the critic may use {size(allowed)}"
    if allowed < weights:
        # A third more, for the images of a call.
        fraction = math.ceil(weights * 4 / 3 / total * 20) / 20
        if fraction > 1:
            return Finding("broken", f"{found}; its weights take {size(weights)}", "use a GPU with more memory")
        return Finding(
            "broken",
            f"{found}, its weights take {size(weights)}",
            f"export VLAC_GPU_MEMORY_FRACTION={fraction:g}",
        )
    if free < allowed:
        return Finding(
            "warning",
            f"{found}; others hold the rest (a running critic worker counts)",
            "look at nvidia-smi; end what is not needed, or use another GPU:\nexport CUDA_VISIBLE_DEVICES=N",
        )
    return Finding("ok", found)


def _probe_gpu(index: int) -> dict[str, Any]:
    """What torch sees.

    Raises:
        RuntimeError: torch can't be imported, or fails; the last line that it printed.
        subprocess.TimeoutExpired: it takes too long.
    """
    command = [sys.executable, "-c", _PROBE, str(index)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
