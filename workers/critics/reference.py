"""The critic `reference`: progress along one successful run, by likeness of pictures. No weights.

It learns from its mistakes: from frames that it took for the end, and that are not (`reference_negatives`).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed, FrameError
from vlac_queue.frames import Frames, as_batch
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticAnswer, CriticQuery, compared

#: Frames are compared at this height and width.
_SIDE = 32
#: Grey levels by which a frame differs from another of the same thing: shadows, rendering, compression.
_NOISE = 10.0
#: Part of the way from negatives to the end by which a frame may be taken for a later one.
_SLACK = 0.25

Features = NDArray[np.float32]


class ReferenceCritic:
    """Finds each frame's place along a successful run of the same task.

    A frame is shrunk to 32x32 and compared with every frame of the reference; what never changes in the
    reference (table, wall) counts for little. Its progress is the place of the most similar reference frame,
    0 at the first and 1 at the last. Done: the progress is above the query's threshold (strictly). Values:
    100 times the progress of each frame, or of every value_stride-th and the last. Given negatives, a frame that
    has no more of the end than they have stands no later than that allows (`Lesson`).

    What it can't do: it does not know what it sees. It needs a reference from nearly the same viewpoint,
    lighting and scene, whose last frame shows the goal reached; it takes for progress whatever looks like
    it (an arm that moves along the reference's path without the object), and it is lost where the object
    may be anywhere. It serves for demos, desktops and tests; training wants `vlac`.
    """

    def __init__(self, config: VlacConfig | None = None) -> None:
        self._references: dict[tuple[str, str], tuple[Features, Features, Lesson | None]] = {}
        self._file = config.reference_negatives if config else ""
        self._negatives = Negatives()

    def load(self) -> None:
        """Read the negatives, if there are any. Raises FrameError."""
        if self._file:
            self._negatives = read_negatives(Path(self._file))

    def answer(self, queries: Sequence[CriticQuery]) -> list[CriticAnswer]:
        """Answer each query on its own; the error of one is its own answer."""
        return [self._answer(query) for query in queries]

    def offload(self) -> None:
        """Give nothing back: it holds no accelerator memory."""

    def wake(self) -> None:
        """Take nothing: it needs no accelerator memory."""

    def close(self) -> None:
        """Forget the references."""
        self._references.clear()

    def _answer(self, query: CriticQuery) -> CriticAnswer:
        if query.reference is None:
            return CriticFailed(
                "the critic 'reference' needs frames of a successful run: give "
                "client.episode(task, reference=frames), on the command line --reference FILE, or set "
                "VLAC_REFERENCE on the rollout's side."
            )
        if len(query.reference) < 2:
            return CriticFailed(
                "the reference has one frame; give a whole successful run, from its start to the goal."
            )
        try:
            progress = self._progress(query)
        except CriticFailed as error:
            return error
        if query.kind == "done":
            score = float(progress[-1])
            return DoneVerdict(done=score > query.done_threshold, score=score, frame=query.frame)
        values = 100.0 * progress[compared(len(progress), query.value_stride)]
        return ValueVerdict(tuple(map(float, values)), tuple(map(float, np.diff(values))))

    def _progress(self, query: CriticQuery) -> NDArray[np.float64]:
        """Return the progress of each of the query's frames, 0..1."""
        assert query.reference is not None
        known = self._references.get((query.reference_id, query.task))
        if known is None:
            known = self._look(shrink(query.reference), self._negatives.of(query.task))
            if len(self._references) >= 64:
                self._references.pop(next(iter(self._references)))
            self._references[query.reference_id, query.task] = known
        reference, weights, lesson = known
        nearest = []
        # One frame at a time: the same sums in the same order, whatever else is asked.
        for frame in shrink(query.frames):
            place = int(np.argmin(((frame - reference) ** 2 * weights).sum(axis=(1, 2, 3))))
            nearest.append(place if lesson is None else min(place, lesson.latest(frame)))
        return np.array(nearest, np.float64) / (len(reference) - 1)

    def _look(self, reference: Features, negatives: Features) -> tuple[Features, Features, Lesson | None]:
        """Return a reference's features, their weights, float32 (h,w,1), and what negatives teach about it."""
        # Where the reference changes is where the task happens.
        weights = reference.std(axis=0).mean(axis=-1, keepdims=True)
        weights = weights / max(float(weights.mean()), 1e-6)
        if not len(negatives):
            return reference, weights, None
        if negatives.shape[1:] != reference.shape[1:]:
            raise CriticFailed("the negatives are frames of another size than this reference; export them anew.")
        return reference, weights, Lesson(reference, weights, negatives)


@dataclass(frozen=True)
class Negatives:
    """Frames that look like the end of a task and are not.

    Attributes:
        features: float32 (N,h,w,3), as `shrink` gives them.
        tasks: the task of each; "" for all.
    """

    features: Features = field(default_factory=lambda: np.zeros((0, _SIDE, _SIDE, 3), np.float32))
    tasks: tuple[str, ...] = ()

    def of(self, task: str) -> Features:
        """Return those of a task."""
        return self.features[[place for place, each in enumerate(self.tasks) if each in ("", task)]]


def read_negatives(path: Path) -> Negatives:
    """Read a file of negatives: `frames`, uint8 (N,H,W,3), and perhaps `task`, N texts.

    Raises:
        FrameError: it can't be read, or does not hold that.
    """
    told = "VLAC_REFERENCE_NEGATIVES takes an .npz as `vlac-queue export --format negatives` writes it"
    try:
        with np.load(path, allow_pickle=False) as stored:
            frames = as_batch(stored["frames"])
            tasks = [str(task) for task in stored["task"]] if "task" in stored else [""] * len(frames)
    except FrameError as error:
        raise FrameError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile, zlib.error, TypeError) as error:
        raise FrameError(f"{path} holds no negatives ({error}); {told}.") from None
    if len(tasks) != len(frames):
        raise FrameError(f"{path} has {len(frames)} frames and {len(tasks)} tasks; {told}.")
    return Negatives(shrink(frames), tuple(tasks))


class Lesson:
    """How far frames are on the way from negatives to the reference's end: 0 for negatives, 1 for the end.

    Measured along Fisher's linear discriminant: where negatives differ from one another (an arm in any pose) says
    little, and where they all differ from the end (a drawer that is shut) says much. A frame may not stand later
    on the reference than the last of its frames that is as far on that way.

    Args:
        reference: float32 (R,h,w,3).
        weights: float32 (h,w,1).
        negatives: float32 (N,h,w,3), N >= 1.
    """

    def __init__(self, reference: Features, weights: Features, negatives: Features) -> None:
        self._scale = np.sqrt(weights, dtype=np.float64)
        flat = self._flat(negatives)
        self._origin = flat.mean(axis=0)
        spread, way = flat - self._origin, self._flat(reference[-1:])[0] - self._origin
        # (spread' spread / N + noise I)^-1 way, by a system of N equations in place of one for each cell.
        count = len(flat)
        system = spread @ spread.T / count + _NOISE**2 * np.eye(count)
        direction = way - spread.T @ np.linalg.solve(system, spread @ way) / count
        self._direction = direction / max(float(way @ direction), 1e-9)
        self._reference = self._along(reference)

    def latest(self, frame: Features) -> int:
        """Return the latest place on the reference where a frame, float32 (h,w,3), may stand."""
        (along,) = self._along(frame[None])
        return int(np.flatnonzero(self._reference <= along + _SLACK).max(initial=0))

    def _along(self, features: Features) -> NDArray[np.float64]:
        return (self._flat(features) - self._origin) @ self._direction

    def _flat(self, features: Features) -> NDArray[np.float64]:
        return np.asarray(features * self._scale, np.float64).reshape(len(features), -1)


def shrink(frames: Frames, side: int = _SIDE) -> Features:
    """Return frames as means over a grid of cells.

    Args:
        frames: uint8 (T,H,W,3).
        side: cells along height and width; a frame smaller than that keeps its own size.

    Returns:
        float32 (T, min(H, side), min(W, side), 3), 0..255.
    """
    _, height, width, _ = frames.shape
    rows = np.linspace(0, height, min(height, side), endpoint=False).astype(int)
    columns = np.linspace(0, width, min(width, side), endpoint=False).astype(int)
    cells = np.add.reduceat(np.add.reduceat(frames, rows, axis=1, dtype=np.float32), columns, axis=2)
    areas = np.diff(np.append(rows, height))[:, None] * np.diff(np.append(columns, width))[None]
    return (cells / areas[None, :, :, None]).astype(np.float32)
