"""Show how far long work is: a bar with the time left, or now and then a line where nothing can be redrawn."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.progress import TaskID

from vlac_queue.console import progress_bar
from vlac_queue.texts import duration, many, number

#: Seconds between two lines.
_LINE_S = 60.0


class Progress:
    """Counts episodes and frames on stderr.

    Args:
        total: episodes in all.
        before: those that were done before.
    """

    def __init__(self, total: int, before: int) -> None:
        self._total, self._before = total, before
        self._episodes, self._frames = 0, 0
        self._began = self._told = time.monotonic()
        self._bar = progress_bar("episodes", left=True)
        self._task = TaskID(0)

    def sent(self, count: int) -> None:
        """Count frames."""
        self._frames += count
        self._bar.update(self._task, description=f"labelling, {number(self._rate())} frames/s")
        if self._bar.disable and time.monotonic() - self._told > _LINE_S:
            self._told = time.monotonic()
            click.echo(self._line(), err=True)

    def finished(self) -> None:
        """Count an episode."""
        self._episodes += 1
        self._bar.advance(self._task)

    def _rate(self) -> float:
        return self._frames / max(1e-3, time.monotonic() - self._began)

    def _line(self) -> str:
        left = self._total - self._before - self._episodes
        took = time.monotonic() - self._began
        when = f", some {duration(took / self._episodes * left)} left" if self._episodes else ""
        done = f"{self._before + self._episodes:,} of {many(self._total, 'episode')}"
        return f"labelled {done}, {number(self._rate())} frames/s{when}"

    def __enter__(self) -> Progress:
        self._bar.start()
        self._task = self._bar.add_task("labelling", total=self._total, completed=self._before)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._bar.stop()
