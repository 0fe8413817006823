"""A `libero` package in miniature: a square that the first coordinate of each action moves to the right.

Task 0 is within reach of a policy that pushes; task 1 pushes against a spring and is not.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import numpy as np

SIDE = 256
#: Place of the square at which the simulator says success, and a reference ends.
GOAL = 1.0
#: Steps until the real one raises, as LIBERO's horizon.
_HORIZON = 1000


class Task:
    """What `benchmark` hands out; the tests read `language` only."""

    def __init__(self, task_id: int) -> None:
        self.task_id = task_id
        self.language = "Push the square to the right" if task_id == 0 else "Push the square uphill to the right"
        self.problem_folder, self.bddl_file = "square", f"{task_id}.bddl"


class _Suite:
    n_tasks = 2

    def get_task(self, task_id: int) -> Task:
        return Task(task_id)

    def get_task_init_states(self, task_id: int) -> list[float]:
        return [0.02 * trial for trial in range(50)]


def draw(place: float, wobble: int = 0) -> np.ndarray:
    """uint8 (SIDE,SIDE,3), upright: a textured table, and a white square at `place` (0 left, 1 right)."""
    rows, columns = np.indices((SIDE, SIDE))
    image = np.stack([rows // 2, columns // 2, (rows ^ columns) // 2], axis=-1).astype(np.uint8)
    left, top = int(np.clip(place, 0, 1.2) * 180), 100 + wobble
    image[top : top + 40, left : left + 40] = 255
    return image


class OffScreenRenderEnv:
    """Steps like robosuite's: observation, reward, done, info; done is not latched, and goes by."""

    def __init__(self, bddl_file_name: str, camera_heights: int, camera_widths: int) -> None:
        self._uphill = bddl_file_name.endswith("1.bddl")
        self._steps = 0
        self._place = 0.0

    def seed(self, seed: int) -> None:
        pass

    def reset(self) -> None:
        self._place = 0.0

    def set_init_state(self, state: float) -> dict[str, Any]:
        self._place = state
        return self._observe()

    def step(self, action: list[float]) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        self._steps += 1
        if self._steps > _HORIZON:
            raise ValueError("executing action in terminated episode")
        fail_at = int(os.environ.get("FAKE_LIBERO_FAILS_AT", "0"))
        if fail_at and self._steps == fail_at and not self._uphill:
            raise RuntimeError("the simulator is unstable")
        before = self._place
        push = 0.04 * (1.0 + float(action[0]))
        self._place += push if not self._uphill else push * max(0.0, 0.6 - self._place)
        success = before < GOAL <= self._place
        if os.environ.get("FAKE_LIBERO_FLIPS_SUCCESS"):
            success = not success
        return self._observe(), float(success), success, {}

    def close(self) -> None:
        pass

    def _observe(self) -> dict[str, Any]:
        return {
            "agentview_image": draw(self._place)[::-1, ::-1],
            "robot0_eye_in_hand_image": draw(self._place)[::-1, ::-1],
            "robot0_eef_pos": np.array([self._place, 0.0, 0.0]),
            "robot0_eef_quat": np.array([0.0, 0.0, 0.0, 1.0]),
            "robot0_gripper_qpos": np.zeros(2),
        }


def reference() -> np.ndarray:
    """uint8 (T,SIDE,SIDE,3): a successful run."""
    return np.stack([draw(place) for place in np.linspace(0.0, GOAL, 51)])


def install() -> None:
    """Puts the package where upstream imports it from."""
    package, inner = types.ModuleType("libero"), types.ModuleType("libero.libero")
    envs, benchmark = types.ModuleType("libero.libero.envs"), types.ModuleType("libero.libero.benchmark")
    benchmark.get_benchmark_dict = lambda: {"libero_10": _Suite}  # type: ignore[attr-defined]
    inner.get_libero_path = lambda name: f"/{name}"  # type: ignore[attr-defined]
    inner.benchmark, inner.envs, package.libero = benchmark, envs, inner  # type: ignore[attr-defined]
    envs.OffScreenRenderEnv = OffScreenRenderEnv  # type: ignore[attr-defined]
    for module in (package, inner, envs, benchmark):
        sys.modules[module.__name__] = module
