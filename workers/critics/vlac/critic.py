"""`VlacCritic`: queries in, verdicts out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery, Pair, compared, failed_pair
from workers.critics.vlac.calls import Reading, RowCalls, most_images
from workers.critics.vlac.rows import NO_PAIR, Row, clean_task, done_rows, pair_rows, prompt_hash

if TYPE_CHECKING:
    from workers.critics.vlac.model import VlacModel


class VlacCritic:
    """The VLAC model. Its answers are GAC_model's own, row for row, and values never leave out the last frame.

    Done: VLAC's judgement of the frame (`done_by`), done where it is above the query's threshold (strictly).
    Values: VLAC's pair scores along the episode, made a list by VLAC's own recursion; reference frames, where
    the query has them, are shown with every pair.

    Rows of all queries share calls of the model, whatever their tasks and kinds. A row that can't be read
    fails its own query, or its own pair, with what the model said.
    """

    def __init__(self, config: VlacConfig | None = None, model: VlacModel | None = None) -> None:
        self.config = config or VlacConfig()
        self._model = model
        #: A short hash of VLAC's prompts as they are asked, but for the task; and of all that pair scores
        #: depend on (`PairCritic`); "" until `load`.
        self.prompt_hash = self.scored_by = ""
        self._asleep = False
        self._calls: RowCalls | None = None

    @property
    def done_history(self) -> bool:
        """Return whether done queries need all frames of their episode."""
        return self.config.done_by == "reference"

    @property
    def max_images(self) -> int:
        """Most images in one call of the model: fewer than the setting's where memory ran out since it woke."""
        return self._calls.limit if self._calls else self.config.max_images

    def load(self) -> None:
        """Load the weights.

        Raises:
            ConfigError: something is not installed or does not fit; the message names the command to run.
        """
        if self._model is None:
            from workers.critics.vlac.model import VlacModel

            self._model = VlacModel.load(self.config)
        self._calls = RowCalls(self._model.complete, self._model.free_memory, most_images(self.config))
        self.prompt_hash = prompt_hash(self._model.gac, self.config, self._model.system_prompt)
        config = self.config
        depends_on = (
            config.model_path,
            self.prompt_hash,
            config.ref_num,
            config.value_rich,
            config.engine,
            config.dtype,
        )
        self.scored_by = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:12]

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        """Return one answer for each query, in order; the failure of one is its own answer."""
        model, calls = self._awake()
        # Rows, or why there are none.
        plans = [self._rows(model, query) for query in queries]
        readings = iter(calls.ask([row for plan in plans if isinstance(plan, list) for row in plan]))
        return [
            plan if isinstance(plan, CriticFailed) else self._verdict(query, [next(readings) for _ in plan])
            for query, plan in zip(queries, plans, strict=True)
        ]

    def pairs_at_once(self, query: CriticQuery) -> int:
        """Return how many pairs fill a call of `max_images`; what they begin with, they share."""
        shared = 0 if query.reference is None else self.config.ref_num + 1
        return max(1, (min(self.max_images, self.config.max_images) - shared) // 2)

    def score(self, pairs: Sequence[Pair]) -> list[Reading]:
        """Return VLAC's score of each pair, nominally -100..100, or why there is none."""
        model, calls = self._awake()
        plans = [self._pair_row(model, pair) for pair in pairs]
        readings = iter(calls.ask([plan for plan in plans if isinstance(plan, Row)]))
        return [next(readings) if isinstance(plan, Row) else plan for plan in plans]

    def value(self, scores: Sequence[float]) -> CriticAnswer:
        """Return the value list by VLAC's own recursion over pair scores."""
        if not scores:
            return CriticFailed(NO_PAIR)
        model, _ = self._awake()
        simple = "mix_f" if self.config.value_recursion == "mix_f" else True
        try:
            values = [float(value) for value in model.gac.critic_to_value_simple(list(scores), simple=simple)]
        except (ZeroDivisionError, OverflowError) as error:
            return CriticFailed(
                f"VLAC's recursion has no value for the pair scores {list(scores[:20])} ({error})."
            )
        if not all(map(math.isfinite, values)):
            return CriticFailed(f"VLAC's recursion leaves all bounds with the pair scores {list(scores[:20])}.")
        return ValueVerdict(tuple(values), tuple(scores))

    def offload(self) -> None:
        """Move the weights to host memory; `wake`, or the next `answer`, brings them back."""
        if self._model is not None and not self._asleep:
            self._model.offload()
            self._asleep = True

    def wake(self) -> None:
        """Bring the weights back, if they are away."""
        self._awake()

    def close(self) -> None:
        """Free the model."""
        if self._model is not None:
            self._model.close()
        self._model = self._calls = None

    def _awake(self) -> tuple[VlacModel, RowCalls]:
        if self._model is None or self._calls is None:
            raise CriticFailed("the critic vlac is not loaded; call load() first.")
        if self._asleep:
            self._model.wake()
            # Others may have left the accelerator meanwhile.
            self._calls.reset()
            self._asleep = False
        return self._model, self._calls

    def _rows(self, model: VlacModel, query: CriticQuery) -> list[Row] | CriticFailed:
        try:
            task = clean_task(query.task, model.special_tokens)
            if query.kind == "done":
                return done_rows(query, model.gac, self.config, task)
            pairs = list(pairwise(compared(len(query.frames), query.value_stride)))
            return pair_rows(query, pairs, model.gac, self.config, task)
        except CriticFailed as error:
            return error

    def _pair_row(self, model: VlacModel, pair: Pair) -> Row | CriticFailed:
        try:
            task = clean_task(pair.query.task, model.special_tokens)
        except CriticFailed as error:
            return error
        (row,) = pair_rows(pair.query, [(pair.first, pair.second)], model.gac, self.config, task)
        return row

    def _verdict(self, query: CriticQuery, readings: Sequence[Reading]) -> CriticAnswer:
        numbers = [reading for reading in readings if not isinstance(reading, CriticFailed)]
        for index, reading in enumerate(readings):
            if isinstance(reading, CriticFailed) and query.kind == "value":
                return failed_pair(reading, *compared(len(query.frames), query.value_stride)[index : index + 2])
            if isinstance(reading, CriticFailed):
                return reading
        if query.kind == "done":
            # Progress begins at 0 by VLAC's definition: the first frame is not asked about.
            score = numbers[0] if numbers else 0.0
            return DoneVerdict(done=score > query.done_threshold, score=score, frame=query.frame)
        return self.value(numbers)
