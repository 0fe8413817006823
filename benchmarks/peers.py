"""What the queue is compared with: plain RQ, and a bare loop over Redis lists."""

from __future__ import annotations

import lz4.frame
import numpy as np
import redis

from vlac_queue.frames import Frames


def look(frame: Frames) -> bool:
    """The job of plain RQ: a frame in, an answer out."""
    return bool(frame[0, 0, 0] > 255)


def consume(url: str, side: int) -> None:
    """The consumer of the bare loop: takes a frame, answers, until it gets an empty one."""
    connection = redis.Redis.from_url(url)
    while True:
        _, payload = connection.blpop(["bare:frames"])  # type: ignore[misc]
        if not payload:
            return
        frame = np.frombuffer(lz4.frame.decompress(payload), np.uint8).reshape(side, side, 3)
        connection.rpush("bare:answers", b"1" if look(frame) else b"0")
