"""Stable-Baselines3's PPO learns to move a dot to the right edge, by the critic's rewards alone.

    pip install -e '.[gymnasium]' stable-baselines3
    VLAC_CRITIC=reference vlac-queue worker          # in another terminal, with Redis running
    python examples/ppo_stable_baselines3.py --steps 4096

Prints how often the dot arrives by the environment's own word, before learning and after it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from vlac_queue.integrations.gymnasium import CriticReward, HiddenEnds

TASK = "move the dot to the right edge"
PLACES = 12


class Dot(gymnasium.Env):
    """A dot on a line of 12 places, which starts on the left half. Its own reward is always 0.0."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)  # left, stay, right

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = int(self.np_random.integers(PLACES // 2))
        return self._observation(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._place = int(np.clip(self._place + int(action) - 1, 0, PLACES - 1))
        return self._observation(), 0.0, self._place == PLACES - 1, False, {}

    def render(self) -> Any:
        return picture(self._place)

    def _observation(self) -> Any:
        return np.array([self._place / (PLACES - 1)], np.float32)


def picture(place: int) -> np.ndarray:
    """Return the dot at a place, uint8 (8,48,3)."""
    frame = np.zeros((8, 4 * PLACES, 3), np.uint8)
    frame[2:6, 4 * place : 4 * place + 4] = 255
    return frame


class Vectorized(VecEnv):
    """A vector environment of gymnasium's, with autoreset_mode SAME_STEP, as Stable-Baselines3 wants it."""

    def __init__(self, envs: VectorEnv) -> None:
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        observations, _ = self.envs.reset(seed=None if None in self._seeds else self._seeds)
        self._reset_seeds()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        observations, rewards, terminated, truncated, info = self.envs.step(self._actions)
        ended = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(ended):
            # At the time limit the critic's value is the whole reward: PPO must not add what it expects to follow.
            infos[index] = {"terminal_observation": info["final_obs"][index], "TimeLimit.truncated": False}
        return observations, rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        self.envs.close()

    def get_images(self) -> Any:
        return self.envs.render()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [self.envs.render_mode] * self.num_envs
        return self._chosen(self.envs.unwrapped.get_attr(attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        if indices is not None:
            raise NotImplementedError("set it for all environments")
        self.envs.unwrapped.set_attr(attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return self._chosen(self.envs.unwrapped.call(method_name, *args, **kwargs), indices)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return self._chosen([False] * self.num_envs, indices)

    def _chosen(self, values: Sequence[Any], indices: Any) -> list[Any]:
        return [values[index] for index in self._get_indices(indices)]


def make(count: int, *, evaluation: bool = False) -> CriticReward:
    """Return `count` dots, rewarded by the critic, or in evaluation by their own word."""
    envs = SyncVectorEnv(
        [lambda: HiddenEnds(TimeLimit(Dot(), 20))] * count, autoreset_mode=AutoresetMode.SAME_STEP
    )
    success = np.stack([picture(place) for place in range(PLACES)])
    return CriticReward(envs, TASK, references=[success] * count, evaluation=evaluation)


def success_rate(model: PPO, count: int = 20) -> float:
    """Return how many of `count` dots arrive within their time, by their own word."""
    envs = make(count, evaluation=True)
    observations, _ = envs.reset(seed=100)
    arrived, ended = np.zeros(count, bool), np.zeros(count, bool)
    while not ended.all():
        actions, _ = model.predict(observations)
        observations, _, terminated, truncated, _ = envs.step(actions)
        arrived |= terminated & ~ended
        ended |= terminated | truncated
    envs.close()
    return float(arrived.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4096, help="environment steps to learn from")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    envs = Vectorized(make(8))
    model = PPO(
        "MlpPolicy", envs, n_steps=64, batch_size=128, learning_rate=1e-3, seed=arguments.seed, device="cpu"
    )
    print(f"before: {success_rate(model):.2f} of the dots arrive")
    model.learn(arguments.steps)
    envs.close()
    print(f"after {model.num_timesteps} steps: {success_rate(model):.2f} of the dots arrive")


if __name__ == "__main__":
    main()
