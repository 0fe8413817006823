"""A stand-in for the loaded VLAC model: no torch, no evo_vlac, no weights; it says what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed
from workers.critics.vlac import VlacCritic
from workers.critics.vlac.calls import Completion
from workers.critics.vlac.rows import Row


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


class StandInGac:
    """Prompts that show what was asked for, and a recursion that adds up; none of it is VLAC's."""

    def get_done_prompt(self, task: str) -> str:
        return f"done: {task}"

    def get_in_context_done_prompt(self, task: str | None = None) -> str:
        return f"goal: {task}"

    def get_score_prompt(self, task: str, trajectory_len: int = 0, think: bool = False) -> str:
        return f"{'think' if think else 'score'} with {trajectory_len}: {task}"

    def critic_to_value_simple(self, critic_list: list[float], simple: bool | str = True) -> list[float]:
        values = [0.0 if simple is True else 1.0]
        for score in critic_list:
            values.append(values[-1] + 1000 / (100 + score))
        return values


class StandInModel:
    """Answers each row with `say(row)`; an exception that it returns is raised for the whole call.

    Args:
        say: what the model says to a row.
        memory: images (rows times the longest) that one call can hold.
    """

    special_tokens = ("[UNUSED_TOKEN_1]",)
    system_prompt = "look closely"

    def __init__(self, say: Callable[[Row], str | Exception], memory: int = 10_000) -> None:
        self.gac = StandInGac()
        self.say = say
        self.memory = memory
        #: The rows of each call that came through.
        self.calls: list[list[Row]] = []
        #: Rows of each call tried.
        self.tried: list[int] = []
        self.asleep = False
        self.freed = 0

    def complete(self, rows: Sequence[Row]) -> list[Completion]:
        assert not self.asleep
        self.tried.append(len(rows))
        if len(rows) * max(len(row.images) for row in rows) > self.memory:
            raise OutOfMemoryError("stand-in out of memory")
        answers = [self.say(row) for row in rows]
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, CriticFailed):
                raise answer
        self.calls.append(list(rows))
        return answers  # type: ignore[return-value]

    def free_memory(self) -> None:
        self.freed += 1

    def offload(self) -> None:
        self.asleep = True

    def wake(self) -> None:
        self.asleep = False

    def close(self) -> None:
        self.asleep = True


def colour(row: Row) -> str:
    """The top left red of the last image: an answer that depends on the row alone."""
    return str(int(row.images[-1][0, 0, 0]))


LOST_ONCE = "tests.workers.vlac_stand_in:LostOnceCritic"


class LostOnceCritic(VlacCritic):
    """The critic vlac on the stand-in; the first one in a folder to be asked loses its accelerator."""

    def __init__(self, config: VlacConfig) -> None:
        super().__init__(config, StandInModel(self._say))

    def _say(self, row: Row) -> str | Exception:
        if Path("lost").exists():
            return "1"
        Path("lost").touch()
        return RuntimeError("CUDA error: an illegal memory access was encountered")
