"""The critic `vlac` itself on a model that sleeps for as long as VLAC would compute, by vlac_queue/costs.py.

`VLAC_CRITIC=benchmarks.timed_vlac:TimedVlac`, with the settings of the critic `vlac`. What is asked, in which
calls and when is the real critic's; only the model stands in, and nothing costs less than VLAC's own would: every
image of every row counts, and vision is spared only for images whose content it knows.
"""

from __future__ import annotations

import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.critics import MARKS
from vlac_queue.config import VlacConfig
from vlac_queue.costs import COSTS, Costs, read_costs
from workers.critics.vlac import VlacCritic
from workers.critics.vlac.calls import Completion
from workers.critics.vlac.rows import Row
from workers.critics.vlac.vllm_engine import arguments

#: Names a file of measured costs (`vlac_queue.costs.read_costs`) to use in place of the reckoned ones.
COSTS_FILE = "BENCH_COSTS"
#: Images whose features torch keeps: 1 MiB each, in 4 GiB (`vision_cache_bytes`).
_TORCH_IMAGES = 4096
_IMAGE_TOKENS = 256
#: Images whose keys and values vLLM keeps for prompts that begin alike: 25 MB each, in 25 GB.
_KEPT_PREFIXES = 1000
#: Images to spare from which on torch reads what rows begin with by itself (workers/critics/vlac/prefix.py).
_LEAST_SPARED = 4


@dataclass
class Work:
    """What a model has computed since it was made: calls, rows, images and seconds.

    Attributes:
        vision: images through the vision tower.
        language: images whose tokens went through the language model, padding included.
        shown: images of all rows.
        seconds: what all of it took.
    """

    calls: int = 0
    rows: int = 0
    shown: int = 0
    vision: int = 0
    language: int = 0
    seconds: float = 0.0


class Recent:
    """The `size` keys that were used last."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._keys: OrderedDict[Hashable, None] = OrderedDict()

    def add(self, key: Hashable) -> bool:
        """Note the use of a key; return whether it was new."""
        new = key not in self._keys
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._size:
            self._keys.popitem(last=False)
        return new


class TimedModel:
    """In the place of `VlacModel`: says, after the time that VLAC takes, that nothing is done or has moved.

    Args:
        config: of its worker.
        costs: of its engine.
        report: file to write its work to.
    """

    special_tokens = ()
    system_prompt = ""

    def __init__(self, config: VlacConfig, costs: Costs, report: Path | None = None) -> None:
        self.gac = _Prompts()
        self.work = Work()
        self._costs = costs
        self._report = report
        self._images = Recent(_kept_images(config))
        self._prefixes = Recent(_KEPT_PREFIXES)
        self._read: list[Hashable] = []  # the prompt and images that torch has read last for several rows

    def complete(self, rows: Sequence[Row]) -> list[Completion]:
        """Sleep for a call; answer "0" to each row."""
        started = time.perf_counter()
        took = self._count(rows)
        time.sleep(max(0.0, started + took - time.perf_counter()))
        if self._report:
            self._report.write_bytes(msgspec.json.encode(asdict(self.work)))
        return ["0"] * len(rows)

    def _count(self, rows: Sequence[Row]) -> float:
        """Count what a call computes; return the seconds that it takes."""
        images = {id(image): image for row in rows for image in row.images}
        contents = {name: zlib.crc32(np.ascontiguousarray(image).data) for name, image in images.items()}
        # Of each row its prompt and then its images, by content.
        shown: list[list[Hashable]] = [
            [row.prompt, *(contents[id(image)] for image in row.images)] for row in rows
        ]
        new = self._unknown(shown) if self._costs.keeps_prefixes else self._unread(shown)
        vision = sum(self._images.add(image) for image in new)
        costs, work = self._costs, self.work
        took = costs.call_s + vision * costs.vision_s + len(new) * costs.language_s
        work.calls += 1
        work.rows += len(rows)
        work.shown += sum(len(row.images) for row in rows)
        work.vision += vision
        work.language += len(new)
        work.seconds += took
        return took

    def _unknown(self, rows: Sequence[Sequence[Hashable]]) -> list[Hashable]:
        """Return the images that follow upon another beginning than in any row before, as vLLM computes them."""
        found = []
        for prompt, *images in rows:
            prefix = prompt
            for image in images:
                prefix = hash((prefix, image))
                if self._prefixes.add(prefix):
                    found.append(image)
        return found

    def _unread(self, rows: Sequence[Sequence[Hashable]]) -> list[Hashable]:
        """Return the images that torch computes: of each row, padded; what all begin with once, if it is new."""
        lengths = set(map(len, rows))
        if len(lengths) > 1:
            return [image for row in rows for image in (*row[1:], *[row[-1]] * (max(lengths) - len(row)))]
        shared = min(_alike(*rows) if len(rows) > 1 else max(lengths), max(lengths) - 1)
        known = min(shared, _alike(rows[0], self._read))
        found: list[Hashable] = []
        if (shared - max(1, known)) * (len(rows) - 1) >= _LEAST_SPARED:
            self._read, found = list(rows[0][:shared]), list(rows[0][max(1, known) : shared])
            known = shared
        if (known - 1) * len(rows) < _LEAST_SPARED:
            known = 1
        return found + [image for row in rows for image in row[known:]]

    def free_memory(self) -> None:
        """Do nothing: it takes none."""

    offload = wake = close = free_memory


class _Prompts:
    """Prompts in the place of GAC_model's, and a recursion that stays at 0."""

    def get_done_prompt(self, task: str) -> str:
        return f"done: {task}"

    def get_in_context_done_prompt(self, task: str | None = None) -> str:
        return f"goal: {task}"

    def get_score_prompt(self, task: str, trajectory_len: int = 0, think: bool = False) -> str:
        return f"score after {trajectory_len}: {task}"

    def critic_to_value_simple(self, critic_list: Sequence[float], simple: bool | str = True) -> list[float]:
        return [0.0] * (len(critic_list) + 1)


class TimedVlac(VlacCritic):
    """`VlacCritic` on a `TimedModel`, which writes its work to a file where `MARKS` names a folder.

    Args:
        config: its engine chooses the costs, where `COSTS_FILE` names none.
    """

    def __init__(self, config: VlacConfig, model: TimedModel | None = None) -> None:
        file, folder = os.environ.get(COSTS_FILE), os.environ.get(MARKS)
        costs = read_costs(Path(file), config.engine) if file else COSTS[config.engine]
        #: What sleeps.
        self.model = model or TimedModel(config, costs, Path(folder) / str(os.getpid()) if folder else None)
        super().__init__(config, self.model)  # type: ignore[arg-type]


def _kept_images(config: VlacConfig) -> int:
    """Return how many images' features an engine keeps; vLLM as many as a step of its model has."""
    if config.engine == "pt":
        return _TORCH_IMAGES
    return int(arguments(config, device="cuda:0")["max_num_batched_tokens"]) // _IMAGE_TOKENS


def _alike(*rows: Sequence[Hashable]) -> int:
    """Return how many things all rows begin with."""
    return [*(len(set(column)) == 1 for column in zip(*rows, strict=False)), False].index(False)


def total_work(folder: Path) -> Work:
    """Return the work of all models that reported to `folder`."""
    works = [Work(**msgspec.json.decode(file.read_bytes())) for file in folder.iterdir()]
    return Work(*(sum(column) for column in zip(*(asdict(work).values() for work in works), strict=True)))
