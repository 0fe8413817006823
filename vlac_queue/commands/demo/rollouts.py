"""The recorded rollouts that ship with the package: camera frames of Meta-World tasks done and failed.

`recording.py` makes the files. Reading them needs numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KINDS = ("reference", "expert", "random", "stalled")


@dataclass(frozen=True, eq=False)  # comparing arrays with == has no single answer
class Rollout:
    """One recorded episode, one frame per action chunk (every 8th control step), the first before any action.

    Kinds: "reference" (the scripted expert, ending one chunk after its first success), "expert" (the same
    policy, other object positions, going on for some chunks beyond success), "random" (random actions, fails)
    and "stalled" (the expert until half-way, then random actions: comes near and fails).
    """

    name: str  # "<env>_<kind>_s<seed>", unique
    env: str  # Meta-World's name of the environment, such as "drawer-open-v3"
    task: str  # a plain English instruction, such as "open the drawer"
    kind: str  # one of KINDS
    seed: int  # fixes the object positions and any random actions
    frames: NDArray[np.uint8]  # (T, 256, 256, 3), RGB 0..255, upright, read-only
    success: NDArray[np.bool_]  # (T,), the environment's own flag at each frame, not latched, read-only


def load_rollouts(kind: str | None = None) -> list[Rollout]:
    """Return the shipped rollouts, all or those of one kind, sorted by name; ValueError for an unknown kind."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose one of: {', '.join(KINDS)}")
    rollouts = []
    for entry in sorted((files(__package__) / "rollouts").iterdir(), key=lambda entry: entry.name):
        # The kind is in the file's name: frames of other kinds need not be decompressed.
        if not entry.name.endswith(".npz") or (kind is not None and f"_{kind}_" not in entry.name):
            continue
        with as_file(entry) as path:
            rollouts.append(read_rollout(path))
    return rollouts


def read_rollout(path: Path) -> Rollout:
    """Read one file made by `recording.py`."""
    with np.load(path, allow_pickle=False) as data:
        frames, success = data["frames"], data["success"]
        frames.setflags(write=False)
        success.setflags(write=False)
        return Rollout(
            name=path.stem,
            env=str(data["env"]),
            task=str(data["task"]),
            kind=str(data["kind"]),
            seed=int(data["seed"]),
            frames=frames,
            success=success,
        )


def success_step(rollout: Rollout) -> int | None:
    """Return the index of the first frame at which the environment reports success; None where it never does."""
    hits = np.flatnonzero(rollout.success)
    return int(hits[0]) if hits.size else None
