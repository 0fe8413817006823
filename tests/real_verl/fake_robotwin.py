"""A RoboTwin 2.0 task in miniature: the square of `fake_libero`, moved by whole action chunks.

As the real one, it looks for success within a chunk, stops there, and remembers it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.real_verl.fake_libero import GOAL, draw


class SquareTask:
    """What `RobotwinEnvWrapper` calls of a task.

    Args:
        step_lim: actions of an episode.
        fails_after: actions after which the simulator breaks, 0 for never.
        flipped: whether it says of success the opposite.
    """

    def __init__(self, step_lim: int, fails_after: int = 0, flipped: bool = False) -> None:
        self.step_lim = step_lim
        self.eval_success = False
        self.actions = 0
        self._fails_after = fails_after
        self._flipped = flipped
        self._place = 0.0
        self._speed = 0.0

    def setup_demo(self, now_ep_num: int, seed: int, is_test: bool, **_: Any) -> None:
        # Even seeds get there.
        self._speed = 0.04 if seed % 2 == 0 else 0.015

    def get_info(self) -> dict[str, Any]:
        return {}

    def set_instruction(self, instruction: str) -> None:
        self._instruction = str(instruction)

    def get_instruction(self) -> str:
        return self._instruction

    def check_success(self) -> bool:
        return (self._place >= GOAL) != self._flipped

    def take_action(self, chunk: np.ndarray) -> None:
        for action in chunk:
            self.actions += 1
            if self.actions == self._fails_after:
                raise RuntimeError("the physics exploded")
            self._place += self._speed * (1.0 + float(action[0]))
            if self.check_success():
                self.eval_success = True
                return

    def get_obs(self) -> dict[str, Any]:
        return {
            "observation": {"head_camera": {"rgb": draw(self._place)}},
            "joint_action": {"vector": np.zeros(14)},
        }

    def close_env(self, clear_cache: bool) -> None:
        pass
