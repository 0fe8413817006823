"""`VlacCritic`: queries in, verdicts out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery, compared
from workers.critics.vlac.ahead import PairsAhead
from workers.critics.vlac.calls import Reading, RowCalls, most_images
from workers.critics.vlac.rows import Row, clean_task, done_rows, prompt_hash, value_rows

if TYPE_CHECKING:
    from workers.critics.vlac.model import VlacModel


class VlacCritic:
    """The VLAC model. Its answers are GAC_model's own, row for row, and values never leave out the last frame.

    Done: VLAC's judgement of the frame (`done_by`), done where it is above the query's threshold (strictly).
    Values: VLAC's pair scores along the episode, made a list by VLAC's own recursion; reference frames, where
    the query has them, are shown with every pair.

    Rows of all queries share calls of the model, whatever their tasks and kinds. A row that can't be read
    fails its own query, with what the model said. With `eager_value`, pairs of open episodes are asked while
    nobody waits (`work_ahead`), and a value query asks what is left.
    """

    def __init__(self, config: VlacConfig | None = None, model: VlacModel | None = None) -> None:
        self.config = config or VlacConfig()
        self._model = model
        #: A short hash of VLAC's prompts as they are asked, but for the task; "" until `load`.
        self.prompt_hash = ""
        self._asleep = False
        self._calls: RowCalls | None = None
        self._ahead: PairsAhead | None = None

    @property
    def done_history(self) -> bool:
        """Return whether done queries need all frames of their episode."""
        return self.config.done_by == "reference" or self.config.eager_value

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
        if self.config.eager_value:
            self._ahead = PairsAhead(self._pairs, self._calls.ask)

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        """Return one answer for each query, in order; the failure of one is its own answer."""
        model, calls = self._awake()
        # A row, the number that is known instead of one, or why there is neither.
        plans = [self._plan(model, query) for query in queries]
        rows = [item for plan in plans if isinstance(plan, list) for item in plan if isinstance(item, Row)]
        readings = iter(calls.ask(rows))
        answers: list[CriticAnswer] = []
        for query, plan in zip(queries, plans, strict=True):
            if isinstance(plan, CriticFailed):
                answers.append(plan)
                continue
            numbers = [next(readings) if isinstance(item, Row) else item for item in plan]
            answers.append(self._verdict(model, query, numbers))
        self._look_ahead(queries, answers)
        return answers

    def work_ahead(self) -> bool:
        """Ask some pairs of open episodes, if there are any; a part of a full call, so that queries wait little.

        Returns:
            Whether there was anything to ask; false as well while the weights are offloaded.
        """
        return self._ahead is not None and not self._asleep and self._ahead.work(self.config.max_images // 4 or 1)

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
        self._model = self._calls = self._ahead = None

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
            rows = done_rows if query.kind == "done" else value_rows
            return rows(query, model.gac, self.config, task)
        except CriticFailed as error:
            return error

    def _pairs(self, query: CriticQuery) -> list[Row]:
        """Return the rows of the value query that the episode of `query` could ask now; none where it would fail.

        Without a last pair that is closer than the stride: it is another one once there are more frames.
        """
        assert self._model is not None
        whole = len(query.frames) - 1 - (len(query.frames) - 1) % query.value_stride
        rows = self._rows(self._model, replace(query, kind="value", frames=query.frames[: whole + 1]))
        return rows if isinstance(rows, list) else []

    def _plan(self, model: VlacModel, query: CriticQuery) -> list[Row | float] | CriticFailed:
        """Return the query's rows, with the score in place of a row where it was asked ahead."""
        rows = self._rows(model, query)
        if isinstance(rows, CriticFailed):
            return rows
        known = self._ahead.scores(query) if self._ahead and query.kind == "value" else {}
        return [known.get(index, row) for index, row in enumerate(rows)]

    def _look_ahead(self, queries: Sequence[CriticQuery], answers: Sequence[CriticAnswer]) -> None:
        if self._ahead is None:
            return
        for query, answer in zip(queries, answers, strict=True):
            # Nobody asks for the value of an episode that is done, or again for one that has it.
            if query.kind == "value" or (isinstance(answer, DoneVerdict) and answer.done):
                self._ahead.drop(query.token)
            elif query.token:
                self._ahead.add(query)

    def _verdict(self, model: VlacModel, query: CriticQuery, readings: Sequence[Reading]) -> CriticAnswer:
        numbers = [reading for reading in readings if not isinstance(reading, CriticFailed)]
        for index, reading in enumerate(readings):
            if isinstance(reading, CriticFailed) and query.kind == "value":
                first, second = compared(len(query.frames), query.value_stride)[index : index + 2]
                where = f"comparing frames {first} and {second}"
                return CriticFailed(f"{where}: {reading.args[0]}", reading.traceback)
            if isinstance(reading, CriticFailed):
                return reading
        if query.kind == "done":
            # Progress begins at 0 by VLAC's definition: the first frame is not asked about.
            score = numbers[0] if numbers else 0.0
            return DoneVerdict(done=score > query.done_threshold, score=score, frame=query.frame)
        return self._values(model, numbers)

    def _values(self, model: VlacModel, critics: list[float]) -> CriticAnswer:
        simple = "mix_f" if self.config.value_recursion == "mix_f" else True
        try:
            values = [float(value) for value in model.gac.critic_to_value_simple(critics, simple=simple)]
        except (ZeroDivisionError, OverflowError) as error:
            return CriticFailed(f"VLAC's recursion has no value for the pair scores {critics[:20]} ({error}).")
        if not all(map(math.isfinite, values)):
            return CriticFailed(f"VLAC's recursion leaves all bounds with the pair scores {critics[:20]}.")
        return ValueVerdict(tuple(values), tuple(critics))
