"""VLAC's own prompts, taken from the evo_vlac that is installed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlac_queue.frames import Frames

#: "<image>", "</task>": what a prompt takes for more than words.
_TAG = re.compile(r"<[^<>\s][^<>]*>")


@dataclass(frozen=True)
class Prompts:
    """What VLAC is asked, and how its images are prepared."""

    system: str  # said before each prompt
    _gac: Any = field(repr=False)

    def done(self, task: str) -> str:
        """Return the prompt for one image: is the task done? The answer is 1 or 0."""
        return str(self._gac.get_done_prompt(task=_words(task)))

    def pair(self, task: str) -> str:
        """Return the prompt for two images: how much closer is the second? The answer is a number, -100..100."""
        return str(self._gac.get_score_prompt(task=_words(task), trajectory_len=0, think=False))

    def write_image(self, frame: Frames, path: Path) -> None:
        """Write a frame, uint8 (H,W,3), as a PNG of the size at which VLAC looks at it."""
        from PIL import Image

        self._gac._process_image_to_pil(Image.fromarray(frame)).save(path)


def load_prompts() -> Prompts:
    """Return the prompts.

    Raises:
        ImportError: evo_vlac can't be imported; the message says how to get it.
    """
    try:
        from evo_vlac.utils import model_utils
    except ImportError as error:
        raise ImportError(
            f"a fine-tuning set has VLAC's own prompts, and evo_vlac can't be imported here ({error}): run this "
            "where the worker with the critic vlac runs; `vlac-queue doctor --host worker` says what is missing."
        ) from error
    gac = model_utils.GAC_model(tag="critic")
    gac.set_system_prompt()
    return Prompts(gac.system_prompt or "", gac)


def _words(task: str) -> str:
    return " ".join(_TAG.sub(" ", task).split()) or task
