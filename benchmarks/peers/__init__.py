"""What the queue is compared with: other ways to have frames looked at by another process.

Each module here does the same work in the form that its documentation recommends: one client process asks about
many frames at once (uint8 (256,256,3)) and gets a bool for each; one worker looks at them with `look`, which costs
nothing. Frames travel lossless, packed with plain lz4 where they go through a socket. Each has

    start(url, episodes) -> context manager of an Asker

with the URL of an empty Redis, and the most frames that will be asked about at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lz4.frame
import numpy as np
import redis

from vlac_queue.frames import Frames

SIDE = 256


@dataclass(frozen=True)
class Asker:
    """A peer that is up.

    Attributes:
        ask: asks about frames, one of each episode, and returns the answers.
        wire_bytes: tells the bytes sent and received so far, or None where nothing counts them; itself None where
            Redis carries them, which counts.
    """

    ask: Callable[[Sequence[Frames]], Sequence[bool]]
    wire_bytes: Callable[[], int | None] | None = None


def uncounted() -> None:
    """The `wire_bytes` of a peer whose bytes nothing counts."""


@dataclass(frozen=True)
class Peer:
    """One row of the comparison.

    Attributes:
        title: in the table.
        module: here, which starts it.
        packages: distributions that it needs; their versions are published with the figures.
        arguments: of the module's `start`.
    """

    title: str
    module: str
    packages: Sequence[str]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def start(self, url: str, episodes: int) -> AbstractContextManager[Asker]:
        """Bring it up."""
        module = importlib.import_module(f"benchmarks.peers.{self.module}")
        started: AbstractContextManager[Asker] = module.start(url, episodes, **self.arguments)
        return started

    def versions(self) -> dict[str, str] | None:
        """Return its packages' versions; None where one is not installed."""
        try:
            return {package: version(package) for package in self.packages}
        except PackageNotFoundError:
            return None


_HTTP = ("fastapi", "uvicorn", "uvloop", "httptools", "aiohttp")
_CELERY = ("celery", "celery-batches")

OURS = "vlac-queue"
#: By their names on the command line, in the order of the table. The first is what all others are compared with.
PEERS = {
    "vlac-queue": Peer("vlac-queue", "ours", ("rq", "redis", "hiredis", "lz4")),
    "rq": Peer("RQ, frames in jobs", "plain_rq", ("rq",), {"by_key": False}),
    "rq-keys": Peer("RQ, frames by key", "plain_rq", ("rq",), {"by_key": True}),
    "celery": Peer("Celery, celery-batches", "celery_batches", _CELERY),
    "fastapi": Peer("FastAPI, a request a frame", "http_service", _HTTP, {"together": False}),
    "fastapi-step": Peer("FastAPI, a request a step", "http_service", _HTTP, {"together": True}),
    "ray": Peer("Ray Serve, a call a frame", "ray_serve", ("ray",), {"together": False}),
    "ray-step": Peer("Ray Serve, a call a step", "ray_serve", ("ray",), {"together": True}),
    "list": Peer("bare Redis list, lz4", "bare_list", ("redis",), {"group": 1}),
    "list-grouped": Peer("bare Redis list, lz4, groups of 8", "bare_list", ("redis",), {"group": 8}),
    "redis": Peer("Redis' own round trip", "bare_list", ("redis",), {"group": 1, "encoded": True}),
    "memory": Peer("shared memory, one process", "memory", ()),
}


def connect(url: str) -> redis.Redis:
    """Return a connection on which a blocking read may wait as long as it says: redis-py's own limit is 5 s."""
    return redis.Redis.from_url(url, socket_timeout=None)


def look(frame: Frames) -> bool:
    """Return, as the critic of all peers, whether a pixel is brighter than any can be."""
    return bool(frame[0, 0, 0] > 255)


def pack(frame: Frames) -> bytes:
    """Return a frame (256,256,3) as bytes: lz4, with a checksum as our codec has one."""
    packed: bytes = lz4.frame.compress(frame.data, content_checksum=True)
    return packed


def unpack(packed: bytes | memoryview) -> Frames:
    """Return the frame that `pack` packed."""
    return np.frombuffer(lz4.frame.decompress(packed), np.uint8).reshape(SIDE, SIDE, 3)
