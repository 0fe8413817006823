"""Gymnasium: the critic's rewards and ends in place of the environments' own, as a vector wrapper.

    envs = gymnasium.make_vec("Drawer-v0", num_envs=8, vectorization_mode="async", wrappers=[HiddenEnds])
    envs = CriticReward(envs, "open the drawer")

A vector environment that saw an environment's own end would reset it. So `HiddenEnds`, around each environment,
hides that end in `info`, and `CriticReward`, around all of them, says when episodes end and has them reset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlac_queue import ConfigError, CriticClient, ProtocolError, RolloutGate, VlacConfig
from vlac_queue.frames import Frames

try:
    import gymnasium
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
    from gymnasium.vector.utils import iterate
except ImportError as error:
    raise ImportError(f"gymnasium 1.1 or newer is needed: pip install 'gymnasium>=1.1' ({error})") from error

Rows = NDArray[np.bool_]
Info = dict[str, Any]

#: What `frames` is, where frames are not a part of the observation.
_RENDER = "render"


class HiddenEnds(gymnasium.Wrapper):
    """Hides an environment's own ends, once `CriticReward` asks for it; until then it changes nothing.

    Its place is around each environment: `make_vec(..., wrappers=[HiddenEnds])`. The environment must be able to
    go on after its own termination, since that ends no episode; its time limit does.

    Attributes:
        hiding: whether ends are hidden; they are `info["vlac"]["env_terminated"]` and `["env_truncated"]` then.
        begin_anew: whether the next step is a reset, and its action counts for nothing.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.hiding = False
        self.begin_anew = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """Reset the environment."""
        self.begin_anew = False
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Info]:
        """Take a step, or reset where that was asked for."""
        if self.begin_anew:
            observation, info = self.reset()
            return observation, 0.0, False, False, info
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not self.hiding:
            return observation, reward, terminated, truncated, info
        ends = {"env_terminated": bool(terminated), "env_truncated": bool(truncated)}
        return observation, reward, False, False, {**info, "vlac": ends}


class CriticReward(VectorWrapper):
    """Puts the critic's rewards and ends in the place of the environments' own.

    After each step it asks the critic whether each task is done, and waits for the answers. Done: `terminated`,
    reward 1.0. At the environment's time limit: `truncated`, and the critic's last value / 100 is the reward. All
    other rewards are 0.0. Environments are reset as the `autoreset_mode` of `env` says.

    `info["vlac"]` holds, with masks as in all of gymnasium: `score` (0..1) of each step; `value` (0..100) and
    `masked` of each end; `env_reward`, `env_terminated` and `env_truncated`, which the environment itself said.
    With SAME_STEP, those of an episode's last step are in `info["final_info"]["vlac"]`.

    A failed query (`on_failure` of the settings) is raised by `step`, asked again and then raised ("retry"), or
    ends its episode ("mask"): `truncated`, reward NaN and `masked`, to be left out of training. After an error was
    raised, `reset` begins anew.

    Args:
        env: a SyncVectorEnv or AsyncVectorEnv with `HiddenEnds` around each environment.
        tasks: what each robot should do, in words; one text for all.
        frames: where the critic's frames come from, uint8 (H,W,3), RGB: "render" (render(), with the render_mode
            rgb_array), an entry of a Dict observation, or "observation", if that is an image itself.
        references: frames of a successful run for each environment, as `RolloutGate` takes them.
        config: the settings; None reads them from the environment variables `VLAC_*`.
        evaluation: whether to leave all as it is; nothing connects to Redis then.

    Raises:
        ConfigError: environments, frames or settings are not usable so.
    """

    def __init__(
        self,
        env: VectorEnv,
        tasks: str | Sequence[str],
        *,
        frames: str = _RENDER,
        references: Sequence[Frames | str | Path | None] | None = None,
        config: VlacConfig | None = None,
        evaluation: bool = False,
    ) -> None:
        if not evaluation:
            _check(env, frames)
        self._tasks = [tasks] * env.num_envs if isinstance(tasks, str) else list(tasks)
        if len(self._tasks) != env.num_envs:
            raise ConfigError(f"{len(self._tasks)} tasks were given for {env.num_envs} environments.")
        self._client = None if evaluation else CriticClient(config)
        super().__init__(env)
        self._source = frames
        self._references = references
        self._gate: RolloutGate | None = None
        self._ended: Rows = np.zeros(env.num_envs, bool)
        if _hides_ends(env):
            env.unwrapped.set_attr("hiding", not evaluation)  # type: ignore[attr-defined]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """Reset all environments, or those of `options["reset_mask"]`, and open their episodes.

        Raises:
            VlacQueueError: the queue failed, and `on_failure` says to raise it.
        """
        rows = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        observations, infos = super().reset(seed=seed, options=options)
        if self._client is not None:
            self._begin(rows, self._frames(observations))
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Info]:
        """Take a step in each environment, and wait for the critic.

        Raises:
            VlacQueueError: critic or queue failed, and `on_failure` says to raise it.
            ProtocolError: an environment has ended and was not reset (autoreset_mode DISABLED).
        """
        if self._client is None:
            return super().step(actions)
        if self._gate is None:
            raise gymnasium.error.ResetNeeded("call reset() before step().")
        mode = self.metadata["autoreset_mode"]
        begun = self._ended
        if begun.any():
            self._have_reset(begun, mode)
        observations, env_rewards, _, _, infos = self.env.step(actions)
        frames = self._frames(observations)
        if begun.any():
            self._begin(begun, frames)
        rewards, terminated, truncated = self._judge(self._gate, ~begun, frames, env_rewards, infos)
        self._ended = terminated | truncated
        if mode is AutoresetMode.SAME_STEP and self._ended.any():
            observations, infos = self._begin_at_once(self._ended, observations, infos)
        return observations, rewards, terminated, truncated, infos

    def close(self, **kwargs: Any) -> None:
        """Close environments, episodes and connections."""
        try:
            if self._client is not None:
                self._client.close()
        finally:
            super().close(**kwargs)

    def _have_reset(self, rows: Rows, mode: AutoresetMode) -> None:
        """Have these environments reset in the coming step."""
        if mode is AutoresetMode.DISABLED:
            raise ProtocolError(
                f"environments {np.flatnonzero(rows).tolist()} have ended; reset them before the next step with "
                'reset(options={"reset_mask": terminated | truncated}), or choose another autoreset_mode.'
            )
        self.env.unwrapped.set_attr("begin_anew", rows.tolist())  # type: ignore[attr-defined]

    def _begin(self, rows: Rows, frames: Sequence[Frames]) -> None:
        """Open episodes for environments that were just reset, and push their first frames."""
        assert self._client is not None
        indices = np.flatnonzero(rows).tolist()
        if self._gate is None:
            self._gate = RolloutGate(self._client, self._tasks, references=self._references, overlap=False)
        else:
            self._gate.reopen(indices)
        self._ended = self._ended & ~rows
        self._gate.push({index: frames[index] for index in indices})

    def _begin_at_once(self, rows: Rows, observations: Any, infos: Info) -> tuple[Any, Info]:
        """Reset environments that ended in this step; return observations and info as SAME_STEP has them."""
        final = np.full(self.num_envs, None, object)
        for index, observation in enumerate(iterate(self.observation_space, observations)):
            if rows[index]:
                final[index] = deepcopy(observation)
        final_info = {
            "final_obs": final,
            "_final_obs": rows,
            "final_info": _rows(infos, rows),
            "_final_info": rows,
        }
        observations, began = super().reset(options={"reset_mask": rows.copy()})
        self._begin(rows, self._frames(observations))
        return observations, {**_merged(began, _rows(infos, ~rows)), **final_info}

    def _judge(
        self, gate: RolloutGate, rows: Rows, frames: Sequence[Frames], env_rewards: Any, infos: Info
    ) -> tuple[NDArray[np.float64], Rows, Rows]:
        """Ask the critic about the rows that took a step; return rewards, terminated and truncated.

        Adds what it said to `infos`.
        """
        gate.observe(None, {index: frames[index] for index in np.flatnonzero(rows).tolist()})
        ends = infos.setdefault("vlac", {})
        infos["_vlac"] = rows
        timed_out = np.asarray(ends.get("env_truncated", np.zeros_like(rows)))
        over = np.isin(np.arange(self.num_envs), list(gate.finished())) | timed_out
        terminated, truncated, masked = (np.zeros(self.num_envs, bool) for _ in range(3))
        rewards = np.zeros(self.num_envs)
        values = np.full(self.num_envs, math.nan)
        ended = np.flatnonzero(over & rows).tolist()
        for index, outcome in zip(ended, gate.settle(ended), strict=True):
            terminated[index], truncated[index], masked[index] = outcome.done, not outcome.done, outcome.masked
            rewards[index] = math.nan if outcome.reward is None else outcome.reward
            values[index] = outcome.values[-1] if outcome.values else math.nan
        scores = np.array(gate.scores)
        _add(ends, "score", scores, rows & ~masked & ~np.isnan(scores))
        _add(ends, "value", values, ~np.isnan(values))
        _add(ends, "masked", masked, terminated | truncated)
        _add(ends, "env_reward", np.array(env_rewards), rows)
        return rewards, terminated, truncated

    def _frames(self, observations: Any) -> Sequence[Frames]:
        """Return the frame of each environment, as it is now."""
        if self._source == _RENDER:
            return self.env.render()  # type: ignore[return-value]
        return observations[self._source] if isinstance(observations, Mapping) else observations


def _check(env: VectorEnv, frames: str) -> None:
    """Raise ConfigError where the critic can't decide over these environments, or frames can't be had so."""
    if not isinstance(env, VectorEnv) or not isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
        raise ConfigError(
            f"CriticReward takes a SyncVectorEnv or AsyncVectorEnv; {type(env).__name__} may reset environments "
            'by their own ends: use gymnasium.make_vec(..., vectorization_mode="async"), or RolloutGate.'
        )
    if not _hides_ends(env):
        raise ConfigError(
            "the environments would end and be reset by their own success; put HiddenEnds around each: "
            "gymnasium.make_vec(..., wrappers=[HiddenEnds])."
        )
    if env.metadata.get("autoreset_mode") not in list(AutoresetMode):
        raise ConfigError(
            f"the autoreset_mode is {env.metadata.get('autoreset_mode')!r}; CriticReward knows "
            f"{', '.join(mode.name for mode in AutoresetMode)}."
        )
    space = env.single_observation_space
    entries = list(space) if isinstance(space, gymnasium.spaces.Dict) else ["observation"]
    if frames == _RENDER and env.render_mode != "rgb_array":
        raise ConfigError(
            f"the render_mode is {env.render_mode!r}; make the environments with render_mode='rgb_array', or name "
            f"the part of the observation that holds frames: frames={str(entries[0])!r}."
        )
    if frames not in (_RENDER, *entries):
        raise ConfigError(f"frames must be {_RENDER!r} or one of {entries}, not {frames!r}.")


def _hides_ends(env: VectorEnv) -> bool:
    """Return whether there is `HiddenEnds` around each environment."""
    vector = env.unwrapped
    known = isinstance(vector, SyncVectorEnv | AsyncVectorEnv)
    return known and all(vector.call("has_wrapper_attr", "begin_anew"))  # type: ignore[attr-defined]


def _add(info: Info, name: str, array: NDArray[Any], mask: Rows) -> None:
    """Add an entry as vector environments have them: with its mask, zero elsewhere."""
    info[name], info[f"_{name}"] = np.where(mask, array, array.dtype.type(0)), mask


def _rows(info: Info, rows: Rows) -> Info:
    """Return a vector environment's info for these rows alone: its masks are False elsewhere."""
    return {
        key: _rows(value, rows) if isinstance(value, dict) else value & rows if key.startswith("_") else value
        for key, value in info.items()
    }


def _merged(first: Info, second: Info) -> Info:
    """Return one info of two about different rows."""
    merged = {**second, **first}
    for key in first.keys() & second.keys():
        one, other = first[key], second[key]
        if isinstance(one, dict):
            merged[key] = _merged(one, other)
        elif key.startswith("_"):
            merged[key] = one | other
        else:
            rows = first[f"_{key}"]
            merged[key] = np.where(rows.reshape(-1, *[1] * (one.ndim - 1)), one, other)
    return merged
