"""`Painted`: an environment that shows what it is told to show, for `PixelCritic`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from tests.verl_adapter.pixel_critic import picture


class Painted(gymnasium.Env):
    """Plays episodes by letters, a step each, one text after another at each reset.

    "." nothing, "d" the critic finds it done, "x" the critic fails, "t" its own termination; after the last letter
    its time is up. The critic's value is 10 at the first frame and grows by 10 a step. The observation is the
    number of the episode and of the step, and the picture too if `pixels`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, *plans: str, pixels: bool = False, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Discrete(3)
        place = gymnasium.spaces.Box(-1, 1000, (2,), np.int64)
        picture_space = gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8)
        self.observation_space: Any = (
            gymnasium.spaces.Dict({"place": place, "pixels": picture_space}) if pixels else place
        )
        self._plans = plans
        self._pixels = pixels
        self._episode, self._step = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        # With a seed, the same episodes again.
        self._episode = 0 if seed is not None else self._episode + 1
        self._step = 0
        return self._observation(), {"began": self._episode}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return (
            self._observation(),
            0.25,
            self._letter() == "t",
            self._step >= len(self._plan()),
            {"action": int(action)},
        )

    def render(self) -> Any:
        letter = self._letter() if self._step else "."
        return picture(score=255 * (letter == "d"), value=10 * (1 + self._step), fails=letter == "x")

    def _plan(self) -> str:
        return self._plans[self._episode % len(self._plans)]

    def _letter(self) -> str:
        return self._plan()[min(self._step, len(self._plan())) - 1]

    def _observation(self) -> Any:
        place = np.array([self._episode, self._step])
        return {"place": place, "pixels": self.render()} if self._pixels else place
