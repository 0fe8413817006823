"""Meta-World behind the `libero` surface that upstream uses: real physics and real pictures, no LIBERO assets.

Task `n` is the n-th of `TASKS`, trial `n` the object positions of seed `n`. An action moves nothing by its
values: a positive first coordinate lets the scripted expert act, a negative one a seeded random policy.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlac_queue.commands.demo.simulator import CHUNK_STEPS, ENVS, FRAME_SIZE, MetaWorldEpisode, Policy

TASKS = ("drawer-open-v3", "door-open-v3")
_ROOT = Path(__file__).parents[2]


class Task:
    """What `benchmark` hands out; the environment's name travels as the file of its description."""

    def __init__(self, task_id: int) -> None:
        self.language = ENVS[TASKS[task_id]].task
        self.problem_folder, self.bddl_file = "metaworld", f"{TASKS[task_id]}.bddl"


class _Suite:
    n_tasks = len(TASKS)

    def get_task(self, task_id: int) -> Task:
        return Task(task_id)

    def get_task_init_states(self, task_id: int) -> list[int]:
        return list(range(50))


class Simulator:
    """A `MetaWorldEpisode` in an interpreter of its own, which ends when this one does.

    Upstream's children are forks of a process that holds TensorFlow and threads; rendering in one crashed.

    Raises:
        RuntimeError: the simulator ended; it printed why.
    """

    def __init__(self, name: str, seed: int) -> None:
        command = [sys.executable, "-m", __name__, name, str(seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT)
        self.first: np.ndarray = self._read()

    def step_chunk(self, policy: Policy) -> tuple[np.ndarray, bool]:
        """As `MetaWorldEpisode.step_chunk`, by that policy."""
        assert self._process.stdin is not None
        pickle.dump(policy, self._process.stdin)
        self._process.stdin.flush()
        answer: tuple[np.ndarray, bool] = self._read()
        return answer

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)  # noqa: S301  (our own child)
        except EOFError:
            raise RuntimeError(f"the simulator ended with status {self._process.wait()}") from None


def serve(name: str, seed: int) -> None:
    """The other end of `Simulator`: a frame, then an answer to each policy's name, until there are no more."""
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    # What libraries print must not come between the answers.
    sys.stdout = sys.stderr
    with MetaWorldEpisode(name, seed=seed) as episode:
        answer: Any = episode.reset()
        while True:
            pickle.dump(answer, answers)
            answers.flush()
            try:
                episode.policy = pickle.load(asked)  # noqa: S301  (our own parent)
            except EOFError:
                return
            answer = episode.step_chunk()


class OffScreenRenderEnv:
    """Steps like robosuite's, but moves and looks once in `CHUNK_STEPS` actions, since a picture takes 0.1 s.

    In between it shows what it last saw, and says not done.
    """

    def __init__(self, bddl_file_name: str, camera_heights: int, camera_widths: int) -> None:
        if (camera_heights, camera_widths) != (FRAME_SIZE, FRAME_SIZE):
            raise ValueError(f"pictures are {FRAME_SIZE} pixels wide and high")
        self._name = Path(bddl_file_name).stem
        self._simulator: Simulator | None = None
        self._waiting = 0
        self._shown: dict[str, Any] = {}

    def seed(self, seed: int) -> None:
        """The initial state alone decides, as LIBERO's do."""

    def reset(self) -> None:
        self.close()

    def set_init_state(self, state: int) -> dict[str, Any]:
        # Not in __init__: upstream tries that again for ever, and no error would be seen.
        self._simulator = Simulator(self._name, seed=state)
        self._waiting = 0
        return self._observe(self._simulator.first)

    def step(self, action: list[float]) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        assert self._simulator is not None, "set_init_state() comes first"
        assert len(action) == 7
        if not action[0]:
            # Upstream's settling steps, which are not the episode's.
            return self._shown, 0.0, False, {}
        self._waiting += 1
        if self._waiting < CHUNK_STEPS:
            return self._shown, 0.0, False, {}
        self._waiting = 0
        frame, success = self._simulator.step_chunk("expert" if action[0] > 0 else "random")
        return self._observe(frame), float(success), success, {}

    def close(self) -> None:
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def _observe(self, frame: np.ndarray) -> dict[str, Any]:
        # LIBERO's camera hangs upside down; upstream turns its pictures by 180 degrees.
        turned = frame[::-1, ::-1]
        self._shown = {
            "agentview_image": turned,
            "robot0_eye_in_hand_image": turned,
            "robot0_eef_pos": np.zeros(3),
            "robot0_eef_quat": np.array([0.0, 0.0, 0.0, 1.0]),
            "robot0_gripper_qpos": np.zeros(2),
        }
        return self._shown


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts it where upstream's child processes, which are forked, look for LIBERO, until the test ends."""
    from verl.utils import libero_utils

    benchmark = sys.modules["libero.libero"].benchmark
    monkeypatch.setattr(benchmark, "get_benchmark_dict", lambda: {"libero_10": _Suite})
    monkeypatch.setattr(libero_utils, "OffScreenRenderEnv", OffScreenRenderEnv)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
