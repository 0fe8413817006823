"""What a worker counts, and says of itself every second, for dashboards (docs/protocol.md)."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

import psutil

from vlac_queue.config import VlacConfig
from vlac_queue.control import WorkerInfo
from vlac_queue.messages import PROTOCOL_VERSION, UNNAMED, CriticIdentity
from vlac_queue.metrics import PHASES, Histogram, first_line
from workers.flow import Answered


@dataclass
class WorkerStats:
    """Totals since the worker started; published with every beat.

    Attributes:
        critic: who answers.
        loads, jobs, rejected_jobs, queries, failures, batches: totals; failures are among the queries.
        busy_s: seconds that the critic worked.
        pairs_ahead: pairs of frames scored before a value query needed them.
        pairs_unused: pairs scored of episodes that were then found done; this worker noticed.
        last_error: first line of the last failure, or "".
        last_error_at: when it was, seconds since 1970 on Redis' clock.
        latency: where the time of all queries went, by phase.
    """

    critic: CriticIdentity = UNNAMED
    loads: int = 0
    jobs: int = 0
    rejected_jobs: int = 0
    queries: int = 0
    failures: int = 0
    batches: int = 0
    busy_s: float = 0.0
    pairs_ahead: int = 0
    pairs_unused: int = 0
    last_error: str = ""
    last_error_at: float = 0.0
    latency: dict[str, Histogram] = field(default_factory=lambda: {phase: Histogram() for phase in PHASES})

    def count(self, answered: Answered, finished_jobs: int, written: float) -> None:
        """Count replies that stand on Redis since `written` (seconds on its clock)."""
        answers = [reply for reply in answered.replies if reply.text]
        for reply in answers:
            since_asked = answered.began - reply.to.query.asked
            self.latency["waiting"].observe(since_asked - reply.to.decoding_s)
            self.latency["decoding"].observe(reply.to.decoding_s)
            self.latency["total"].observe(written - reply.to.query.asked)
        if answers:
            self.latency["critic"].observe(answered.ended - answered.began, len(answers))
            self.latency["answering"].observe(written - answered.ended, len(answers))
        self.jobs += finished_jobs
        self.queries += len(answers)
        self.failures += sum(bool(reply.failure) for reply in answers)

    def failed(self, message: str, when: float) -> None:
        """Note the last failure."""
        self.last_error, self.last_error_at = first_line(message), when

    def described(self, config: VlacConfig, **life: Any) -> dict[str, str | int | float]:
        """Return the hash that describes a worker.

        Args:
            config: the worker's.
            life: what `WorkerInfo` holds of its name, host, state and times.
        """
        totals = {name: value for name, value in vars(self).items() if name not in ("critic", "latency")}
        device, reserved, limit = _accelerator(config.gpu_memory_fraction)
        info = WorkerInfo(
            **life,
            **totals,
            pid=os.getpid(),
            protocol=str(PROTOCOL_VERSION),
            critic=self.critic.name,
            model=self.critic.model,
            prompt=self.critic.prompt,
            engine=config.engine if config.critic == "vlac" else "",
            device=device,
            max_batch=config.max_batch,
            rss_bytes=psutil.Process().memory_info().rss,
            accelerator_bytes=reserved,
            accelerator_limit_bytes=limit,
        )
        latency = {f"latency_{phase}": histogram.encode() for phase, histogram in self.latency.items()}
        return {**info.to_hash(), **latency}


def _accelerator(fraction: float) -> tuple[str, int, int]:
    """Return the device in use, the bytes of its memory that this process has reserved, and how many it may."""
    torch = sys.modules.get("torch")
    # The thread of the critic may be importing it: then it lacks parts.
    is_initialized = getattr(getattr(torch, "cuda", None), "is_initialized", None)
    if torch is None or is_initialized is None or not is_initialized():
        return "cpu", 0, 0
    reserved = {device: int(torch.cuda.memory_reserved(device)) for device in range(torch.cuda.device_count())}
    device = max(reserved, key=lambda each: reserved[each])
    total = torch.cuda.get_device_properties(device).total_memory
    return f"cuda:{device}", sum(reserved.values()), int(fraction * total)
