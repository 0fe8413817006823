"""What asking costs: CPU seconds of client, Redis and workers, and bytes on the wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import psutil
import redis


@dataclass(frozen=True)
class Costs:
    """Totals so far, or the difference of two.

    Attributes:
        client_s, redis_s, workers_s: CPU seconds, user and system. Workers are all descendants of this process
            but Redis: schedulers, services, daemons.
        wire_bytes: sent and received; None where nothing can count them.
    """

    client_s: float
    redis_s: float
    workers_s: float
    wire_bytes: int | None

    def __sub__(self, other: Costs) -> Costs:
        wire = None
        if self.wire_bytes is not None and other.wire_bytes is not None:
            wire = self.wire_bytes - other.wire_bytes
        return Costs(
            self.client_s - other.client_s,
            self.redis_s - other.redis_s,
            self.workers_s - other.workers_s,
            wire,
        )

    def per_query(self, queries: int) -> dict[str, float | None]:
        """CPU seconds and bytes of one query."""
        totals = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: None if total is None else total / queries for name, total in totals.items()}


class Meter:
    """Reads what this process, its Redis and its descendants have cost.

    Args:
        connection: to the Redis that this process started, if it uses one.
        wire_bytes: counts the bytes where Redis does not carry them.
    """

    def __init__(self, connection: redis.Redis | None, wire_bytes: Callable[[], int | None] | None = None) -> None:
        self._connection = connection
        self._wire_bytes = wire_bytes
        self._redis_pid = int(connection.info("server")["process_id"]) if connection else 0

    def read(self) -> Costs:
        """The totals at this moment."""
        client = psutil.Process()
        others = client.children(recursive=True)
        return Costs(
            client_s=_cpu_s(client),
            redis_s=sum(_cpu_s(each) for each in others if each.pid == self._redis_pid),
            workers_s=sum(_cpu_s(each) for each in others if each.pid != self._redis_pid),
            wire_bytes=self._wire(),
        )

    def _wire(self) -> int | None:
        if self._wire_bytes is not None:
            return self._wire_bytes()
        if self._connection is None:
            return None
        said = self._connection.info("stats")
        return int(said["total_net_input_bytes"]) + int(said["total_net_output_bytes"])


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
