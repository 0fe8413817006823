"""The simulator: plays a plan, a letter for each step that moves.

"." nothing, "d" both cameras show the task done, "w" the wrist's alone, "s" the simulator's own success, which no
picture shows, "x" the critic fails. The critic's value is 10 times the number of the step in the first camera, and
5 times in the second.
"""

import numpy as np

from tests.verl_adapter.pixel_critic import picture


class OffScreenRenderEnv:
    def __init__(self, **options: object) -> None:
        self._plan, self._step = "", 0

    def seed(self, seed: int) -> None:
        pass

    def reset(self) -> dict:
        self._step = 0
        return self._observe()

    def set_init_state(self, plan: str) -> dict:
        self._plan, self._step = plan, 0
        return self._observe()

    def step(self, action: np.ndarray) -> tuple:
        # The steps with which RLinf lets the scene settle do not move.
        if np.any(np.asarray(action)[:6]):
            self._step += 1
        success = self._letter() == "s"
        return self._observe(), float(success), success, {}

    def close(self) -> None:
        pass

    def _letter(self) -> str:
        return self._plan[min(self._step, len(self._plan)) - 1] if self._step else "."

    def _observe(self) -> dict:
        letter = self._letter()
        front = picture(score=255 * (letter == "d"), value=10 * self._step, fails=letter == "x")
        wrist = picture(score=255 * (letter in "dw"), value=5 * self._step)
        # RLinf turns the pictures upright.
        return {
            "agentview_image": front[::-1, ::-1],
            "robot0_eye_in_hand_image": wrist[::-1, ::-1],
            "robot0_eef_pos": np.zeros(3),
            "robot0_eef_quat": np.array([0.0, 0.0, 0.0, 1.0]),
            "robot0_gripper_qpos": np.zeros(2),
        }
