"""What labels say of a dataset: VLAC's figures by task, and the best and worst episodes."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlac_queue.commands.label.labels import Labels
from vlac_queue.commands.score.figures import Score
from vlac_queue.texts import clean, percent

#: Episodes shown as the best, and as the worst.
SHOWN = 4


@dataclass
class TaskSummary:
    """The figures of one task's episodes, or of all."""

    task: str  # "" for all
    episodes: int = 0
    frames: int = 0
    done: int = 0  # episodes that have a frame that is done
    voc: list[float] = field(default_factory=list)  # of each episode that has one, -1..1
    negative_rate: list[float] = field(default_factory=list)  # likewise, 0..1
    end: list[float] = field(default_factory=list)  # last values, nominally 0..100
    done_at: list[float] = field(default_factory=list)  # place of the first done frame: part of the length, 0..1

    def add(self, score: Score, length: int) -> None:
        """Take an episode in."""
        self.episodes += 1
        self.frames += length
        self.voc += [score.voc] if score.voc is not None else []
        self.negative_rate += [score.negative_rate] if score.negative_rate is not None else []
        self.end += score.values[-1:]
        if score.first_done is not None:
            self.done += 1
            self.done_at.append(score.first_done / max(1, length - 1))

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON: means; of the done frame the median; what is undefined is None."""
        return {
            "task": self.task,
            "episodes": self.episodes,
            "frames": self.frames,
            "done": self.done,
            "voc": _mean(self.voc),
            "negative_rate": _mean(self.negative_rate),
            "end": _mean(self.end),
            "done_at": statistics.median(self.done_at) if self.done_at else None,
        }

    def cells(self) -> list[str]:
        """Return the row of a table, as `HEADERS` has it."""
        row = self.as_dict()
        numbers = [
            "-" if row[name] is None else f"{row[name]:.{digits}f}"
            for name, digits in (("voc", 2), ("negative_rate", 2), ("end", 1))
        ]
        name = clean(self.task) if self.task else "all"
        return [
            name,
            f"{self.episodes:,}",
            f"{self.frames:,}",
            *numbers,
            f"{self.done:,}",
            percent(row["done_at"]),
        ]


HEADERS = ("task", "episodes", "frames", "VOC", "negative", "end", "done", "done at")
LEGEND = (
    "VOC (-1..1): how well values keep the order of time; negative (0..1): steps that lead away;\n"
    "end (0..100): the last value; all means over episodes. done: episodes with a done frame;\n"
    "done at: where in the episode the first one is, median."
)


def _mean(numbers: Sequence[float]) -> float | None:
    return statistics.fmean(numbers) if numbers else None


@dataclass(frozen=True)
class Ranked:
    """An episode as the picture shows it."""

    episode: int
    name: str
    score: Score


@dataclass
class Summary:
    """What labels say."""

    total: TaskSummary
    tasks: list[TaskSummary]
    best: list[Ranked]
    worst: list[Ranked]

    def rows(self) -> list[list[str]]:
        """Return the rows of a table: the tasks, and all where there are several."""
        return [each.cells() for each in (*self.tasks, *([self.total] if len(self.tasks) > 1 else []))]


def summarize(labels: Labels) -> Summary:
    """Return what labels say; some numbers of each episode are in memory, and not its lists."""
    total = TaskSummary("")
    tasks: dict[str, TaskSummary] = {}
    best: list[tuple[tuple[float, float], int, Ranked]] = []
    worst: list[tuple[tuple[float, float], int, Ranked]] = []
    for made in labels:
        score = made.score(labels.how)
        total.add(score, made.length)
        tasks.setdefault(made.task, TaskSummary(made.task)).add(score, made.length)
        if not score.values:
            continue
        # Values that are all equal keep no order; among equals the last value counts.
        rank, ranked = (score.voc or 0.0, score.values[-1]), Ranked(made.episode, made.name, score)
        _keep(best, rank, ranked)
        _keep(worst, (-rank[0], -rank[1]), ranked)
    ordered = sorted(best, key=lambda each: each[:2], reverse=True)
    shown = {each[1] for each in ordered}
    lowest = sorted((each for each in worst if each[1] not in shown), key=lambda each: each[:2])
    return Summary(
        total,
        [tasks[task] for task in sorted(tasks)],
        [each[2] for each in ordered],
        [each[2] for each in lowest],
    )


def _keep(heap: list[tuple[tuple[float, float], int, Ranked]], rank: tuple[float, float], ranked: Ranked) -> None:
    """Keep the SHOWN highest ranks."""
    heapq.heappush(heap, (rank, ranked.episode, ranked))
    if len(heap) > SHOWN:
        heapq.heappop(heap)
