"""A bare loop over two Redis lists: one producer, one consumer, plain lz4, nothing else.

No episodes, no batches across clients, no failures, no second worker: what is left out is what a queue is for.
In groups, `group` frames go in one round trip and one reply, and the consumer answers as many at once.

As Redis' own round trip, the payloads are frames that our codec has encoded beforehand, and nobody looks at them:
nothing but Redis, two sockets and two processes is measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

from benchmarks.peers import Asker, connect, look, pack, unpack
from benchmarks.processes import module
from benchmarks.workloads import EPISODE_STEPS, simulator
from vlac_queue.frames import Base, Frames, encode


@contextmanager
def start(url: str, episodes: int, *, group: int, encoded: bool = False) -> Iterator[Asker]:
    """Start one consumer."""
    run = cycle(list(_encoded_run()) if encoded else ())
    with module(__name__, url, group, encoded), connect(url) as connection:

        def ask(frames: Sequence[Frames]) -> list[bool]:
            for first in range(0, len(frames), group):
                part = frames[first : first + group]
                connection.rpush("frames", *[next(run) if encoded else pack(frame) for frame in part])
            answers: list[bool] = []
            while len(answers) < len(frames):
                _, said = connection.blpop(["answers"], timeout=60)
                answers += [each == ord("1") for each in said]
            return answers

        yield Asker(ask)


def _encoded_run() -> Iterator[bytes]:
    """Yield the frames of an episode, each encoded after the one before."""
    base = None
    for step in range(EPISODE_STEPS):
        batch = simulator().step(step, 1)[0][None]
        payload = encode(batch, first=step, base=base)
        base = Base.after(batch, payload)
        yield payload


def consume(url: str, group: int, encoded: bool) -> None:
    """Take frames and answer them, for ever."""
    with connect(url) as connection:
        while True:
            _, first = connection.blpop(["frames"])
            others = connection.lpop("frames", group - 1) or [] if group > 1 else []
            bright = [not encoded and look(unpack(packed)) for packed in (first, *others)]
            connection.rpush("answers", "".join("1" if each else "0" for each in bright))


if __name__ == "__main__":
    consume(sys.argv[1], int(sys.argv[2]), encoded=sys.argv[3] == "True")
