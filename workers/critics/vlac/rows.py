"""Make the rows that VLAC is asked for a query, and read its answers.

Rows are those of `GAC_model.get_trajectory_done` and `get_trajectory_critic` (evo_vlac.utils.model_utils),
but each stands for itself, so that rows of different episodes and tasks can share a call.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed
from vlac_queue.frames import Frames
from workers.critics import CriticQuery

#: Most tokens of an answer that is a number; a sign, digits, a point and the end are far fewer.
NUMBER_TOKENS = 16
#: Most tokens of an answer that begins with reasoning.
THINK_TOKENS = 512
#: Most characters of the model's words in an error.
_SHOWN_CHARS = 120
#: Stands for the task where prompts are compared.
_PLACEHOLDER = "TASK"
#: Why a value list over one frame fails.
NO_PAIR = "a value list over one frame has no pair to compare; push more frames before asking."

# "<image>", "</task>", "<|im_end|>": a "<" that is followed by text, up to the next ">".
_TAG = re.compile(r"<[^<>\s][^<>]*>")


@dataclass(frozen=True, eq=False)  # comparing arrays with == has no single answer
class Row:
    """One prompt with its images: one answer of the model."""

    prompt: str  # VLAC's, with an "<image>" in it for each image
    images: tuple[Frames, ...] = field(repr=False)  # uint8 (H,W,3), RGB; rows that show a frame share the array
    read: Callable[[str], float]  # the number in the answer's text; raises ValueError where there is none
    rich: bool = False  # whether digits are weighed by their probability (GAC_model.results_format)
    max_tokens: int = NUMBER_TOKENS  # an answer of that many tokens counts as cut off


class Prompts(Protocol):
    """The methods of GAC_model that make prompts."""

    def get_done_prompt(self, task: str) -> str: ...
    def get_in_context_done_prompt(self, task: str | None = None) -> str: ...
    def get_score_prompt(self, task: str, trajectory_len: int = 0, think: bool = False) -> str: ...


def done_rows(query: CriticQuery, prompts: Prompts, config: VlacConfig, task: str) -> list[Row]:
    """Return the row that asks whether the task is done; none for the first frame where done is progress.

    Args:
        query: of kind "done".
        task: its task, cleaned.

    Raises:
        CriticFailed: a goal is asked for and there are no reference frames.
    """
    now = query.frames[-1]
    if config.done_by == "goal":
        if query.reference is None:
            raise CriticFailed(
                "VLAC_DONE_BY=goal compares with the last reference frame, and this episode has no reference: "
                "give client.episode(task, reference=frames), or set VLAC_DONE_BY=image."
            )
        prompt = prompts.get_in_context_done_prompt(task=task)
        return [Row(prompt, (query.reference[-1], now), read_done, rich=config.done_rich)]
    if config.done_by == "reference" and query.reference is not None:
        if query.frame == 0:
            return []
        shown = spread(query.reference, config.ref_num)
        before = query.frames[max(0, query.frame - query.value_stride)]
        prompt = prompts.get_score_prompt(task=task, trajectory_len=config.ref_num, think=True)
        images = (*shown, query.frames[0], before, now)
        return [Row(prompt, images, read_progress, rich=config.done_rich, max_tokens=THINK_TOKENS)]
    return [Row(prompts.get_done_prompt(task=task), (now,), read_done, rich=config.done_rich)]


def pair_rows(
    query: CriticQuery, pairs: Sequence[tuple[int, int]], prompts: Prompts, config: VlacConfig, task: str
) -> list[Row]:
    """Return the rows that compare pairs of an episode's frames; all of a value query's make its list.

    VLAC's own function leaves out what is behind the last multiple of the stride, and with it the outcome.

    Args:
        query: of kind "value".
        pairs: indices of frames, the earlier one first.
        task: its task, cleaned.

    Raises:
        CriticFailed: there is no pair; a value list without one would be 0 by nobody's judgement.
    """
    if not pairs:
        raise CriticFailed(NO_PAIR)
    before: tuple[Frames, ...] = ()
    if query.reference is not None:
        before = (*spread(query.reference, config.ref_num), query.frames[0])
    prompt = prompts.get_score_prompt(task=task, trajectory_len=max(0, len(before) - 1), think=False)
    # One array for each frame, however many pairs show it.
    frames = {index: query.frames[index] for pair in pairs for index in pair}
    return [
        Row(prompt, (*before, frames[first], frames[second]), read_number, rich=config.value_rich)
        for first, second in pairs
    ]


def prompt_hash(prompts: Prompts, config: VlacConfig, system_prompt: str = "") -> str:
    """Return 12 hexadecimal digits that stand for all prompts of this configuration: others where one differs.

    Args:
        system_prompt: what is said before each of them.
    """
    frames = np.zeros((2, 1, 1, 3), np.uint8)
    said = [system_prompt]
    for reference in (None, np.zeros((2, 1, 1, 3), np.uint8)):
        query = CriticQuery("done", _PLACEHOLDER, frames, frame=1, reference=reference)
        try:
            said += [row.prompt for row in done_rows(query, prompts, config, _PLACEHOLDER)]
        except CriticFailed:
            said.append("")  # nothing is asked without a reference
        said += [row.prompt for row in pair_rows(query, [(0, 1)], prompts, config, _PLACEHOLDER)]
    return hashlib.sha256("\0".join(said).encode()).hexdigest()[:12]


def spread(reference: Frames, count: int) -> list[Frames]:
    """Return `count` frames spread evenly over the reference, first and last among them (VLAC's choice)."""
    step = (len(reference) - 1) / (count - 1)
    # One array for each frame, however often it is shown.
    distinct = {index: reference[index] for index in (int(i * step) for i in range(count))}
    return [distinct[int(i * step)] for i in range(count)]


def clean_task(text: str, special_tokens: Collection[str] = ()) -> str:
    """Return the task's text without what a tokenizer or a prompt takes for more than words.

    Removes tags in angle brackets ("<image>", "</task>") and `special_tokens`; a text without any stays
    exactly as it is, "a < b" included.

    Raises:
        CriticFailed: nothing is left.
    """
    cleaned, before = text, ""
    while cleaned != before:  # taking one out may join the halves of another
        before, cleaned = cleaned, _TAG.sub(" ", cleaned)
        for token in special_tokens:
            cleaned = cleaned.replace(token, " ")
    if cleaned != text:
        cleaned = " ".join(cleaned.split())
    if not cleaned.strip():
        raise CriticFailed(f"the task {shown(text)} holds no words beside markup; give it in plain words.")
    return cleaned


def read_number(text: str) -> float:
    """Return a pair's score, nominally -100..100, not clamped.

    Raises:
        ValueError: the text is not one finite number.
    """
    try:
        number = float(text)
    except ValueError:
        raise ValueError("not a number") from None  # Python's message would repeat the text at full length
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def read_done(text: str) -> float:
    """Return a done score.

    Raises:
        ValueError: the text is not a number within 0..1: it answers another question.
    """
    number = read_number(text)
    if not 0 <= number <= 1:
        raise ValueError("not within 0..1")
    return number


def read_progress(text: str) -> float:
    """Return the progress of the second image, 0..1, in an answer with reasoning (GAC_model.get_in_context_done).

    Raises:
        ValueError: the text does not have the form of such an answer.
    """
    try:
        read_number(text.split("</think>")[1])
        read_number(text.split("first image progressing: ")[1].split("%")[0])
        percent = read_number(text.split("second image progressing: ")[1].split("%")[0])
    except IndexError:
        raise ValueError("not an answer with reasoning") from None
    return float(f"{percent / 100.0:.3f}")


def shown(text: str) -> str:
    """Return the text as it stands in errors: quoted, cut short."""
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")
