"""A bare loop over two Redis lists: one producer, one consumer, plain lz4, nothing else.

No episodes, no batches across clients, no failures, no second worker: what is left out is what a queue is for.
In groups, `group` frames go in one round trip and one reply, and the consumer answers as many at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.peers import Asker, connect, look, pack, unpack
from benchmarks.processes import module
from vlac_queue.frames import Frames


@contextmanager
def start(url: str, episodes: int, *, group: int) -> Iterator[Asker]:
    """Start one consumer."""
    with module(__name__, url, group), connect(url) as connection:

        def ask(frames: Sequence[Frames]) -> list[bool]:
            for first in range(0, len(frames), group):
                connection.rpush("frames", *[pack(frame) for frame in frames[first : first + group]])
            answers: list[bool] = []
            while len(answers) < len(frames):
                _, said = connection.blpop(["answers"], timeout=60)
                answers += [each == ord("1") for each in said]
            return answers

        yield Asker(ask)


def consume(url: str, group: int) -> None:
    """Take frames and answer them, for ever."""
    with connect(url) as connection:
        while True:
            _, first = connection.blpop(["frames"])
            others = connection.lpop("frames", group - 1) or [] if group > 1 else []
            said = "".join("1" if look(unpack(packed)) else "0" for packed in (first, *others))
            connection.rpush("answers", said)


if __name__ == "__main__":
    consume(sys.argv[1], int(sys.argv[2]))
