"""Ray Serve: a deployment with @serve.batch, called by its handle from asyncio.

The handle is quicker than HTTP and needs no proxy. Frames go unpacked: packing them made it slower. A step is a
call for each frame, all in flight together, with Ray's settings for throughput; or one call with all frames in one
array, which Ray puts into shared memory, where a worker on the same host reads it without a copy.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.peers import Asker, look, uncounted
from benchmarks.processes import ROOT
from vlac_queue.frames import Frames

_NODE: dict[str, Any] = {
    "num_cpus": 2,
    "object_store_memory": 512 << 20,  # room for a step of 512 frames several times
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": "error",
    "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}},
    "_node_ip_address": "127.0.0.1",
}


@contextmanager
def start(url: str, episodes: int, *, together: bool) -> Iterator[Asker]:
    """Start one replica; it has no use for Redis."""
    # Calls straight over gRPC, which carries no more than 4 MiB: too little for a step in one call.
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "0" if together else "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import serve

    @serve.deployment(num_replicas=1, max_ongoing_requests=1024)
    class Critic:
        @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)
        async def answer(self, asked: list[Frames]) -> list[list[bool]]:
            return [[look(frame) for frame in frames] for frames in asked]

        async def __call__(self, frames: Frames) -> list[bool]:
            answers: list[bool] = await self.answer(frames)
            return answers

    ray.init(**_NODE)
    loop = asyncio.new_event_loop()
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        deployment: Any = Critic  # Ray's decorator makes one of the class
        handle = serve.run(deployment.bind(), name="bench", route_prefix=None)

        async def call(frames: Sequence[Frames]) -> list[bool]:
            calls = [np.stack(frames)] if together else [frame[None] for frame in frames]
            answered = await asyncio.gather(*[handle.remote(each) for each in calls])
            return [answer for answers in answered for answer in answers]

        yield Asker(lambda frames: loop.run_until_complete(call(frames)), uncounted)
    finally:
        serve.shutdown()
        ray.shutdown()
        loop.close()
