"""What a worker says of itself every second, for dashboards (docs/protocol.md)."""

from __future__ import annotations

import os
import sys

import psutil

from vlac_queue.config import VlacConfig
from vlac_queue.messages import PROTOCOL_VERSION
from workers.asker import WorkerStats
from workers.replies import Replies


def describe(config: VlacConfig, stats: WorkerStats, replies: Replies) -> dict[str, str | int | float]:
    """Fields of `vlac:<queue>:worker:<name>`; the worker adds its host, its state and its times."""
    device, reserved, limit = _accelerator(config.gpu_memory_fraction)
    error, error_at = replies.last_error
    return {
        **vars(stats),
        "pid": os.getpid(),
        "protocol": PROTOCOL_VERSION,
        "critic": replies.critic.name,
        "model": replies.critic.model,
        "prompt": replies.critic.prompt,
        "engine": config.engine if config.critic == "vlac" else "",
        "device": device,
        "max_batch": config.max_batch,
        "rss_bytes": psutil.Process().memory_info().rss,
        "accelerator_bytes": reserved,
        "accelerator_limit_bytes": limit,
        "last_error": error,
        "last_error_at": error_at,
        **{f"latency_{phase}": histogram.encode() for phase, histogram in replies.latency.items()},
    }


def _accelerator(fraction: float) -> tuple[str, int, int]:
    """The device in use, the bytes of its memory that this process has reserved, and how many it may."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return "cpu", 0, 0
    reserved = {device: int(torch.cuda.memory_reserved(device)) for device in range(torch.cuda.device_count())}
    device = max(reserved, key=lambda each: reserved[each])
    total = torch.cuda.get_device_properties(device).total_memory
    return f"cuda:{device}", sum(reserved.values()), int(fraction * total)
