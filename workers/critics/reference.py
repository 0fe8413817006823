"""The critic `reference`: progress along one successful run, by likeness of pictures. No weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed
from vlac_queue.frames import Frames
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
    100 times the progress of each frame, or of every value_stride-th and the last.

    What it can't do: it does not know what it sees. It needs a reference from nearly the same viewpoint,
    lighting and scene, whose last frame shows the goal reached; it takes for progress whatever looks like
    it (an arm that moves along the reference's path without the object), and it is lost where the object
    may be anywhere. It serves for demos, desktops and tests; training wants `vlac`.
    """

    def __init__(self, config: VlacConfig | None = None) -> None:
        self._references: dict[str, tuple[Features, Features]] = {}

    def load(self) -> None:
        """Load nothing."""

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
        progress = self._progress(query)
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
        nearest = [
            int(np.argmin(((frame - reference) ** 2 * weights).sum(axis=(1, 2, 3))))
            for frame in shrink(query.frames)
        ]
        return np.array(nearest, np.float64) / (len(reference) - 1)


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
