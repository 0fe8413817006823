"""What is wrong with an installation: settings, Redis, workers, packages, weights and GPU (`vlac-queue doctor`).

Each check is a small function that returns a `Finding`; the tables of checks in examination.py say which
there are. Nothing is changed on Redis, and nothing heavy is imported: versions come from package metadata,
and torch is asked about the GPU in a process of its own.
"""

from vlac_queue.commands.doctor.examination import Host, examine
from vlac_queue.commands.doctor.finding import Finding
from vlac_queue.commands.doctor.gpu_checks import judge_gpu
from vlac_queue.commands.doctor.redis_checks import Server
from vlac_queue.commands.doctor.report import any_broken, as_json, remedies, summary, table

__all__ = [
    "Finding",
    "Host",
    "Server",
    "any_broken",
    "as_json",
    "examine",
    "judge_gpu",
    "remedies",
    "summary",
    "table",
]
