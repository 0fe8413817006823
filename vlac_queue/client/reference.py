"""References: frames of a successful run, read from a file, encoded once and kept."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from vlac_queue.errors import FrameError
from vlac_queue.frames import MAX_BATCH_BYTES, Base, Frames, as_batch, encode

#: References that are kept encoded.
_KEPT = 16


@dataclass(frozen=True)
class Reference:
    """The encoded frames of a successful run, by their SHA-256; "" and nothing for none."""

    id: str = ""
    batches: tuple[bytes, ...] = field(default=(), repr=False)


class References:
    """Encodes references, and keeps the last ones. Threads may share it."""

    def __init__(self) -> None:
        # By their ids, and by the files they were read from.
        self._known: dict[Any, Reference] = {}
        self._lock = threading.Lock()

    def find(self, sources: Sequence[Frames | str | Path | None]) -> list[Reference]:
        """Return the reference of each source: frames, uint8 (T,H,W,3), a file of them, or none.

        What is given many times is hashed once.

        Raises:
            FrameError: a source is not usable.
        """
        # With the source itself: the id of one that is gone may be another's.
        found: dict[int, tuple[Any, Reference]] = {}
        for source in sources:
            if id(source) not in found:
                found[id(source)] = source, self._find(source)
        return [found[id(source)][1] for source in sources]

    def _find(self, source: Frames | str | Path | None) -> Reference:
        if source is None:
            return Reference()
        if not isinstance(source, str | Path):
            return self._remember(as_batch(source))
        path = Path(source).absolute()
        version: tuple[Any, ...] | None = None
        with suppress(OSError):  # named by load_frames
            status = path.stat()
            version = (path, status.st_ino, status.st_mtime_ns, status.st_size)
        with self._lock:
            known = self._known.get(version)
        return known or self._remember(load_frames(path), version)

    def _remember(self, batch: Frames, file: tuple[Any, ...] | None = None) -> Reference:
        """Return the reference of frames, uint8 (T,H,W,3); `file`: the version of the file they are of."""
        digest = hashlib.sha256(repr(batch.shape).encode())
        digest.update(batch.data)
        reference_id = digest.hexdigest()
        with self._lock:
            known = self._known.get(reference_id)
        if known is None:
            known = Reference(reference_id, tuple(_encode(batch)))
        with self._lock:
            # A rollout has one reference, or one a task: a few are kept, the oldest go first.
            self._known.update({reference_id: known} if file is None else {reference_id: known, file: known})
            while len(self._known) > 2 * _KEPT:
                self._known.pop(next(iter(self._known)))
        return known


def load_frames(path: Path) -> Frames:
    """Return the frames of a file: .npz with an array `frames`, or .npy.

    Returns:
        uint8 (T,H,W,3).

    Raises:
        FrameError: the file is missing, of another kind, or its array is not usable.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        frames = loaded["frames"] if path.suffix == ".npz" else loaded
    except FileNotFoundError:
        raise FrameError(f"no such file: {path}; give an .npz with an array 'frames', or a .npy.") from None
    except (OSError, ValueError, KeyError, IndexError, EOFError, BadZipFile, zlib.error) as error:
        raise FrameError(
            f"{path} holds no frames ({error}); give an .npz with an array 'frames', or a .npy."
        ) from None
    return as_batch(frames)


def _encode(batch: Frames) -> Iterable[bytes]:
    size = max(1, MAX_BATCH_BYTES // max(1, batch[0].nbytes))
    base: Base | None = None
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        payload = encode(part, first=start, base=base)
        base = Base.after(part, payload)
        yield payload
