"""Make calls of the model of rows: how many at once, and what happens to those that fail."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TypeAlias

from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed
from workers.critics import AcceleratorLost
from workers.critics.vlac.rows import Row, shown

logger = logging.getLogger(__name__)

#: What the model said to a row, or why it said nothing that can be used.
Completion: TypeAlias = "str | CriticFailed"
#: The number in what it said, or why there is none.
Reading: TypeAlias = "float | CriticFailed"

#: CUDA errors after which a process can't use its GPU again, as torch words them.
_STICKY = (
    "device-side assert triggered",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ecc error",
    "gpu is lost",
)


#: Most images of a call on vLLM: some 3 MB of main memory each.
_VLLM_IMAGES = 1024


def most_images(config: VlacConfig) -> int:
    """Return the most images of a call; vLLM chooses itself how many of them it computes at once."""
    return _VLLM_IMAGES if config.engine == "vllm" else config.max_images


class RowCalls:
    """Asks rows in as few calls of the model as fit its memory.

    Rows of like length go together, since a call costs as much as its rows would at the length of the
    longest. Out of memory, a call is halved, and calls stay that small until `reset`; any other error is
    met row by row, so that it costs only the row it belongs to. A lost accelerator raises `AcceleratorLost`.

    Args:
        complete: one call: a completion for each row, in order. Its rows have one `max_tokens`.
        free_memory: gives back what a failed call left behind.
        max_images: most images of a call: padding counted, and once what its rows begin with together.
    """

    def __init__(
        self,
        complete: Callable[[Sequence[Row]], Sequence[Completion]],
        free_memory: Callable[[], None],
        max_images: int,
    ) -> None:
        self._complete = complete
        self._free_memory = free_memory
        self._max_images = max_images
        #: Most images of a call now.
        self.limit = max_images

    def reset(self) -> None:
        """Try full calls again."""
        self.limit = self._max_images

    def ask(self, rows: Sequence[Row]) -> list[Reading]:
        """Return the answer to each row, in order."""
        waiting = sorted(range(len(rows)), key=lambda i: (rows[i].max_tokens, len(rows[i].images)))
        readings: dict[int, Reading] = {}
        while waiting:
            count = self._call_size([rows[i] for i in waiting])
            chosen, waiting = waiting[:count], waiting[count:]
            answers = self._call([rows[i] for i in chosen])
            if answers is None:
                waiting = chosen + waiting
            else:
                readings.update(zip(chosen, answers, strict=True))
        return [readings[i] for i in range(len(rows))]

    def _call_size(self, rows: Sequence[Row]) -> int:
        """Return how many of `rows` (ascending by length) go into the next call; at least one."""
        shared = len(rows[0].images)
        for count, row in enumerate(rows[1:], 1):
            shared = min(shared, _shared_images(rows[0], row))
            images = shared + (count + 1) * (len(row.images) - shared)
            if images > self.limit or row.max_tokens != rows[0].max_tokens:
                return count
        return len(rows)

    def _call(self, rows: Sequence[Row]) -> list[Reading] | None:
        """Return the answers of one call; None where it ran out of memory and must be smaller."""
        try:
            completions = list(self._complete(rows))
            if len(completions) != len(rows):
                raise CriticFailed(f"the engine gave {len(completions)} answers to {len(rows)} rows.")
            return [_read(row, completion) for row, completion in zip(rows, completions, strict=True)]
        except Exception as error:
            if is_accelerator_lost(error):
                raise AcceleratorLost(f"{type(error).__name__}: {error}; start the worker again") from error
            out_of_memory, reason = is_out_of_memory(error), f"{type(error).__name__}: {error}"
            trace = traceback.format_exc()
        # Out of the handler: the exception's frames would keep the failed call's tensors alive.
        if out_of_memory:
            self._free_memory()
        if len(rows) == 1:
            if out_of_memory:
                reason = (
                    f"out of memory on a single row of {len(rows[0].images)} images; raise "
                    f"VLAC_GPU_MEMORY_FRACTION, or lower VLAC_REF_NUM ({reason})"
                )
            return [CriticFailed(f"VLAC failed on this query: {reason[:1000]}", trace)]
        if out_of_memory:
            images = _images(rows)
            self.limit = max(1, images // 2)
            logger.warning(
                "VLAC ran out of memory on a call of %d images; going on with at most %d (%s)",
                images, self.limit, reason.splitlines()[0],
            )  # fmt: skip
            return None
        logger.warning("VLAC failed on a call of %d rows (%s); asking row by row", len(rows), reason)
        return [reading for row in rows for reading in self._call([row]) or ()]


def _images(rows: Sequence[Row]) -> int:
    """Return the images of a call: rows are padded to the length of the last; what all begin with counts once."""
    shared = min((_shared_images(rows[0], row) for row in rows[1:]), default=0)
    return shared + len(rows) * (len(rows[-1].images) - shared)


def _shared_images(one: Row, other: Row) -> int:
    """Return how many images both begin with, short of their last: each row has something of its own."""
    if one.prompt != other.prompt:
        return 0
    pairs = zip(one.images[:-1], other.images[:-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the accelerator's or the host's memory ran out; knows torch's errors without importing it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def is_accelerator_lost(error: BaseException) -> bool:
    """Return whether every later call of this process would fail too; knows torch's errors by their text."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _STICKY)


def _read(row: Row, completion: Completion) -> Reading:
    if isinstance(completion, CriticFailed):
        return completion
    try:
        return row.read(completion)
    except ValueError as error:
        return CriticFailed(f"VLAC's answer can't be used ({error}): it said {shown(completion)}.")
