"""The critic `reference`: progress along one successful run, by likeness of pictures. No weights.

It learns from its mistakes by example: frames that it took for the end, and that are not (`reference_negatives`).
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

Features = NDArray[np.float32]


class ReferenceCritic:
    """Finds each frame's place along a successful run of the same task.

    A frame is shrunk to 32x32 and compared with every frame of the reference; what never changes in the
    reference (table, wall) counts for little. Its progress is the place of the most similar reference frame,
    0 at the first and 1 at the last. Done: the progress is above the query's threshold (strictly). Values:
    100 times the progress of each frame, or of every value_stride-th and the last. Where negatives are given, a
    frame that is more like one of them than like any of the reference has that one's progress, 0 by default.

    What it can't do: it does not know what it sees. It needs a reference from nearly the same viewpoint,
    lighting and scene, whose last frame shows the goal reached; it takes for progress whatever looks like
    it (an arm that moves along the reference's path without the object), and it is lost where the object
    may be anywhere. It serves for demos, desktops and tests; training wants `vlac`.
    """

    def __init__(self, config: VlacConfig | None = None) -> None:
        self._references: dict[str, tuple[Features, Features]] = {}
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
        known = self._references.get(query.reference_id)
        if known is None:
            features = shrink(query.reference)
            # Where the reference changes is where the task happens.
            weights = features.std(axis=0).mean(axis=-1, keepdims=True)
            known = (features, weights / max(float(weights.mean()), 1e-6))
            if len(self._references) >= 64:
                self._references.pop(next(iter(self._references)))
            self._references[query.reference_id] = known
        reference, weights = known
        # One frame at a time: the same sums in the same order, whatever else is asked.
        negatives, known_progress = self._negatives.of(query.task, reference.shape[1:])
        progress = []
        for frame in shrink(query.frames):
            away = ((frame - reference) ** 2 * weights).sum(axis=(1, 2, 3))
            from_negatives = ((frame - negatives) ** 2 * weights).sum(axis=(1, 2, 3))
            if len(negatives) and from_negatives.min() < away.min():
                progress.append(float(known_progress[from_negatives.argmin()]))
            else:
                progress.append(int(away.argmin()) / (len(reference) - 1))
        return np.array(progress, np.float64)


@dataclass(frozen=True)
class Negatives:
    """Frames that look like the end of a task and are not.

    Attributes:
        features: float32 (N,h,w,3), as `shrink` gives them.
        tasks: the task of each; "" for all.
        progress: what is known of each, 0..1.
    """

    features: Features = field(default_factory=lambda: np.zeros((0, _SIDE, _SIDE, 3), np.float32))
    tasks: tuple[str, ...] = ()
    progress: tuple[float, ...] = ()

    def of(self, task: str, shape: tuple[int, ...]) -> tuple[Features, list[float]]:
        """Return those of a task, and their progress; `shape` is that of the features they are compared with.

        Raises:
            CriticFailed: they are so small that they can't be compared.
        """
        places = [place for place, each in enumerate(self.tasks) if each in ("", task)]
        features = self.features[places]
        if places and features.shape[1:] != shape:
            raise CriticFailed(
                f"the negatives are frames of another size than this episode's reference; {_NEGATIVES}."
            )
        return features.reshape(len(places), *shape), [self.progress[place] for place in places]


_NEGATIVES = "VLAC_REFERENCE_NEGATIVES takes an .npz as `vlac-queue export --format negatives` writes it"


def read_negatives(path: Path) -> Negatives:
    """Read a file of negatives: `frames`, uint8 (N,H,W,3), and perhaps `task`, N texts, and `progress`, N of 0..1.

    Raises:
        FrameError: it can't be read, or does not hold that.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            frames = as_batch(stored["frames"])
            tasks = [str(task) for task in stored["task"]] if "task" in stored else [""] * len(frames)
            progress = stored["progress"].astype(float) if "progress" in stored else np.zeros(len(frames))
    except FrameError as error:
        raise FrameError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile, zlib.error, TypeError) as error:
        raise FrameError(f"{path} holds no negatives ({error}); {_NEGATIVES}.") from None
    if not len(tasks) == len(progress) == len(frames) or not ((progress >= 0) & (progress <= 1)).all():
        raise FrameError(
            f"{path}: each of its {len(frames)} frames needs a task and a progress of 0..1; {_NEGATIVES}."
        )
    return Negatives(shrink(frames), tuple(tasks), tuple(map(float, progress)))


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
