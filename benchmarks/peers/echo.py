"""Redis' own round trip: the payload there by LPUSH, an answer back, both taken by BLPOP.

The payload is the frame as our codec encodes it, encoded beforehand: nothing but Redis, two sockets and two
processes is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.peers import Asker, connect
from benchmarks.processes import module
from benchmarks.workloads import EPISODE_STEPS, simulator
from vlac_queue.frames import Base, Frames, encode

#: As long as one of our answers.
_ANSWER = b"0" * 80


@contextmanager
def start(url: str, episodes: int) -> Iterator[Asker]:
    """Start one process that echoes."""
    payloads = list(_encoded_run())
    step = 0
    with module(__name__, url), connect(url) as connection:

        def ask(frames: Sequence[Frames]) -> list[bool]:
            nonlocal step
            for _ in frames:
                connection.lpush("frames", payloads[step % EPISODE_STEPS])
                step += 1
            return [connection.blpop(["answers"], timeout=60) is None for _ in frames]

        yield Asker(ask)


def _encoded_run() -> Iterator[bytes]:
    """Yield the frames of an episode, each encoded after the one before."""
    base = None
    for step in range(EPISODE_STEPS):
        batch = simulator().step(step, 1)[0][None]
        payload = encode(batch, first=step, base=base)
        base = Base.after(batch, payload)
        yield payload


def echo(url: str) -> None:
    """Answer whatever comes, for ever."""
    with connect(url) as connection:
        while True:
            connection.blpop(["frames"])
            connection.lpush("answers", _ANSWER)


if __name__ == "__main__":
    echo(sys.argv[1])
