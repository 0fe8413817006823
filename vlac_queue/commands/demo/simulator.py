"""Live Meta-World episodes: one camera frame per action chunk, and the simulator's own success flag.

The simulator is an optional extra (`pip install 'vlac-queue[sim]'`). Importing this module needs numpy only;
`metaworld` is imported when the first `MetaWorldEpisode` is made.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Policy = Literal["expert", "random", "stalled"]

FRAME_SIZE = 256
CHUNK_STEPS = 8
HORIZON = 500  # Meta-World refuses any step after this many in one episode.

INSTALL_HINT = "--live needs the simulator: pip install 'vlac-queue[sim]'"
RENDER_HINT = (
    "the simulator could not start off-screen rendering. Set MUJOCO_GL=egl (or MUJOCO_GL=osmesa) before "
    "starting Python; on Debian: apt-get install libegl1 libgl1-mesa-dri (for egl) or libosmesa6 (for osmesa)"
)


@dataclass(frozen=True)
class EnvSpec:
    """What a Meta-World environment is called in plain English, and the fixed camera that shows it best."""

    task: str
    camera: str


# One camera per task: "corner" is close to the drawer, "corner2" sees the whole swing of the door.
ENVS: dict[str, EnvSpec] = {
    "drawer-open-v3": EnvSpec("open the drawer", "corner"),
    "door-open-v3": EnvSpec("open the door of the safe", "corner2"),
    "door-close-v3": EnvSpec("close the door of the safe", "corner2"),
}


class MetaWorldEpisode:
    """One Meta-World environment driven by a seeded policy, a chunk of control steps at a time.

    Policies:
      - "expert": Meta-World's scripted policy. It goes on after success, so it never ends by itself.
      - "random": uniform actions in [-1, 1].
      - "stalled": the expert for `stall_after` control steps, then random: it comes near, rarely succeeds.

    The seed fixes both the object positions and the random actions: the same seed and the same calls give the
    same physics. Every `reset()` draws the next positions of the seed's sequence. Pixels may differ slightly
    between OpenGL implementations.
    """

    def __init__(
        self, env: str, *, seed: int = 0, policy: Policy = "expert", stall_after: int = 40, size: int = FRAME_SIZE
    ) -> None:
        if env not in ENVS:
            raise ValueError(f"unknown environment {env!r}; choose one of: {', '.join(sorted(ENVS))}")
        self.env = env
        self.task = ENVS[env].task
        self.policy = policy
        self._stall_after = stall_after
        self._rng = np.random.default_rng(seed)
        self._steps_left = 0
        self._obs: NDArray[np.float64] | None = None
        self._sim, self._expert = _make(env, seed, size)

    def reset(self) -> NDArray[np.uint8]:
        """Start an episode; return its first frame, (size, size, 3) uint8 RGB, upright."""
        self._obs, _ = self._sim.reset()
        self._steps_left = HORIZON
        return self._frame()

    def step_chunk(self, n: int = CHUNK_STEPS) -> tuple[NDArray[np.uint8], bool]:
        """Run `n` control steps (fewer where the horizon is nearer) and look.

        Returns the frame after them, (size, size, 3) uint8 RGB, upright, and the environment's success flag
        at that moment. The flag is not latched: it goes back to False if the goal is lost.
        Raises RuntimeError at the horizon and before the first `reset()`.
        """
        if self._obs is None or self._steps_left == 0:
            raise RuntimeError(f"{self.env}: no step is left of {HORIZON}, or none was begun; call reset()")
        success = False
        for _ in range(min(n, self._steps_left)):
            self._obs, _, _, _, info = self._sim.step(self._action(self._obs))
            self._steps_left -= 1
            # Meta-World leaves `terminated` False on success: only `info` tells.
            success = bool(info["success"])
        return self._frame(), success

    def close(self) -> None:
        """Free the simulator and its OpenGL context. Calling it twice is fine."""
        self._obs = None
        self._sim.close()

    def __enter__(self) -> MetaWorldEpisode:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _action(self, obs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the next action, (4,) float64 in [-1, 1]: hand velocity x, y, z and gripper effort."""
        taken = HORIZON - self._steps_left
        if self.policy == "random" or (self.policy == "stalled" and taken >= self._stall_after):
            return self._rng.uniform(-1.0, 1.0, size=4)
        # The scripted policies ask for more than the action space allows.
        return np.clip(self._expert.get_action(obs), -1.0, 1.0)

    def _frame(self) -> NDArray[np.uint8]:
        try:
            upside_down = self._sim.render()
        except Exception as error:  # the OpenGL back ends raise whatever they like, AttributeError included
            raise RuntimeError(RENDER_HINT) from error
        # A flipped view has negative strides, which torch and others refuse.
        return np.ascontiguousarray(upside_down[::-1])


def _make(env: str, seed: int, size: int) -> tuple[Any, Any]:
    """Import the simulator; return the environment and its scripted policy."""
    try:
        import gymnasium
        import metaworld  # noqa: F401  (importing it registers its environments)
        from metaworld.policies import ENV_POLICY_MAP
    except ModuleNotFoundError as error:
        raise ImportError(f"{INSTALL_HINT} (missing: {error.name})", name=error.name) from error
    except Exception as error:  # mujoco loads OpenGL while it is imported
        raise RuntimeError(RENDER_HINT) from error
    # The scripted policies warn about their own gains; their actions are clipped in `_action` anyway.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high", category=UserWarning)
    sim = gymnasium.make(
        "Meta-World/MT1",
        env_name=env,
        seed=seed,
        render_mode="rgb_array",
        camera_name=ENVS[env].camera,
        width=size,
        height=size,
        # The checker only warns, on every run, about Meta-World's own observation bounds.
        disable_env_checker=True,
    )
    policies: dict[str, Any] = ENV_POLICY_MAP
    return sim, policies[env]()
