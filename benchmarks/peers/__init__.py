"""What the queue is compared with: other ways to have frames looked at by another process.

Each module here does the same work in the form that its documentation recommends: one client process asks about
many frames at once (uint8 (256,256,3)) and gets a bool for each; one worker looks at them with `look`, which costs
nothing. Frames travel lossless, packed with plain lz4 where they go through a socket. Each has

    start(url, episodes) -> context manager of an Asker

with the URL of an empty Redis, and the most frames that will be asked about at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
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


Start = Callable[[str, int], AbstractContextManager[Asker]]


@dataclass(frozen=True)
class Peer:
    """One row of the comparison.

    Attributes:
        name: on the command line.
        title: in the table.
        module: here, which starts it.
        arguments: of its `start`.
        packages: distributions that it needs; their versions are published with the figures.
    """

    name: str
    title: str
    module: str
    arguments: dict[str, Any]
    packages: tuple[str, ...]

    def start(self) -> Start:
        """What brings it up."""
        module = importlib.import_module(f"benchmarks.peers.{self.module}")
        return partial(module.start, **self.arguments)

    def versions(self) -> dict[str, str] | None:
        """Its packages' versions; None where one is not installed."""
        try:
            return {package: version(package) for package in self.packages}
        except PackageNotFoundError:
            return None


_HTTP = ("fastapi", "uvicorn", "uvloop", "httptools", "aiohttp")

OURS = "vlac-queue"
#: In the order of the table. The first is what all others are compared with.
PEERS = {
    peer.name: peer
    for peer in (
        Peer("vlac-queue", "vlac-queue", "ours", {}, ("rq", "redis", "hiredis", "lz4")),
        Peer("rq", "RQ, frames in jobs", "plain_rq", {"by_key": False}, ("rq",)),
        Peer("rq-keys", "RQ, frames by key", "plain_rq", {"by_key": True}, ("rq",)),
        Peer("celery", "Celery, celery-batches", "celery_batches", {}, ("celery", "celery-batches")),
        Peer("dramatiq", "Dramatiq", "dramatiq_actor", {}, ("dramatiq",)),
        Peer("fastapi", "FastAPI, a request a frame", "http_service", {"together": False}, _HTTP),
        Peer("fastapi-step", "FastAPI, a request a step", "http_service", {"together": True}, _HTTP),
        Peer("ray", "Ray Serve, a call a frame", "ray_serve", {"together": False}, ("ray",)),
        Peer("ray-step", "Ray Serve, a call a step", "ray_serve", {"together": True}, ("ray",)),
        Peer("list", "bare Redis list, lz4", "bare_list", {"group": 1}, ("redis",)),
        Peer("list-grouped", "bare Redis list, lz4, groups of 8", "bare_list", {"group": 8}, ("redis",)),
        Peer("redis", "Redis' own round trip", "echo", {}, ("redis",)),
        Peer("memory", "shared memory, one process", "memory", {}, ()),
    )
}


def connect(url: str) -> redis.Redis:
    """A connection on which a blocking read may wait as long as it says: redis-py's own limit is 5 s."""
    return redis.Redis.from_url(url, socket_timeout=None)


def look(frame: Frames) -> bool:
    """The critic of all peers: whether a pixel is brighter than any can be."""
    return bool(frame[0, 0, 0] > 255)


def pack(frame: Frames) -> bytes:
    """A frame (256,256,3) as bytes: lz4, with a checksum as our codec has one."""
    packed: bytes = lz4.frame.compress(frame.data, content_checksum=True)
    return packed


def unpack(packed: bytes | memoryview) -> Frames:
    """A frame that `pack` packed."""
    return np.frombuffer(lz4.frame.decompress(packed), np.uint8).reshape(SIDE, SIDE, 3)
