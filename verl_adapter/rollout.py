"""Upstream's rollout with the critic beside it (verl/workers/rollout/rob_rollout.py).

The loop stays upstream's, line for line. In training, and only for the time of one minibatch, what it builds
its environments with is exchanged (`env_worker`, `RobotwinEnvWrapper`), and four methods that it calls anyway
say where it is: an observation came in, a policy step begins, actions are ready, the loop has ended.
Validation never comes here: it runs upstream's own methods, and no client is made.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from verl.workers.rollout import rob_rollout

from verl_adapter.environments import (
    CHUNK_KEY,
    Chunk,
    LiberoWatch,
    RobotwinLatch,
    Signal,
    WatchedActions,
    robotwin_frame,
)
from verl_adapter.settings import read_node
from verl_adapter.watch import Ending, RolloutWatch
from vlac_queue import CriticClient
from vlac_queue.errors import ConfigError

#: Upstream's own, to call from ours; read before anything is exchanged.
_ENV_WORKER = rob_rollout.env_worker
#: Seconds for a LIBERO process to end after SIGTERM.
_TERMINATE_S = 5.0
#: Of an `Ending`, what goes into the batch as it is.
_FIELDS = {
    "reward": torch.float32,
    "masked": torch.bool,
    "queries": torch.int64,
    "sent_bytes": torch.int64,
    "waited_s": torch.float32,
    "saved_s": torch.float32,
}


class VlacRollout(rob_rollout.RobHFRollout):
    """`RobHFRollout` whose training episodes end and are rewarded as the critic says.

    Args:
        module: the policy.
        config: upstream's `actor_rollout_ref.rollout`, with our node `vlac`.

    Raises:
        ConfigError: there is no node `vlac`, or a value in it is refused.
    """

    def __init__(self, module: Any, config: Any) -> None:
        super().__init__(module, config)
        if config.get("vlac") is None:
            raise ConfigError(
                "actor_rollout_ref.rollout.vlac is missing; start training with `python -m verl_adapter.main_ppo`."
            )
        self._vlac, _ = read_node(config.vlac)
        if self._vlac.frame_stride and "robotwin" in config.task_suite_name:
            raise ConfigError(
                "vlac.frame_stride must be 0 with RoboTwin: it runs an action chunk as a whole and shows no "
                "picture in between."
            )
        # Made at the first training rollout, so that validation opens no connection.
        self._client: CriticClient | None = None
        self._watch: RolloutWatch | None = None
        self._tasks: Sequence[str] = ()

    def _generate_minibatch(self, prompts: Any) -> Any:
        if prompts.meta_info.get("n_samples") is None:
            return super()._generate_minibatch(prompts)
        if self._client is None:
            self._client = CriticClient(self._vlac)
        others = set(multiprocessing.active_children())
        try:
            with RolloutWatch(self._client) as self._watch, _watched_environments():
                return super()._generate_minibatch(prompts)
        except BaseException:
            # Upstream leaves its LIBERO processes behind, and they would keep this one from ending.
            _terminate([child for child in multiprocessing.active_children() if child not in others])
            raise
        finally:
            self._watch = None

    def _obs_to_input(self, obs: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        if self._watch is not None:
            self._watch.see(obs[CHUNK_KEY])
        return super()._obs_to_input(obs, *args, **options)

    def process_input(self, inputs: list[Any], task_descriptions: list[str]) -> Any:
        if self._watch is not None:
            # Ahead of the policy's step: the critic works while it does.
            self._tasks = task_descriptions
            self._watch.advance(task_descriptions)
        return super().process_input(inputs, task_descriptions)

    def _generate_one_step(self, prompts: dict[str, Any]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_one_step(prompts)
        if self._watch is not None:
            over = self._watch.over()
            # Upstream hands these to the environments one by one and keeps them for nothing else.
            output["action"] = [
                Signal.STOP if index in over else action for index, action in enumerate(output["action"])
            ]
        return output

    def _prepare_output_batch(
        self, vla_history: list[dict[str, Any]], task_records: list[dict[str, Any]], batch_size: int
    ) -> Any:
        if self._watch is None:
            return super()._prepare_output_batch(vla_history, task_records, batch_size)
        self._watch.advance(self._tasks)
        endings = self._watch.settle()
        for record, ending in zip(task_records, endings, strict=True):
            record["finish_step"], record["complete"] = ending.finish_step, ending.done
        output = super()._prepare_output_batch(vla_history, task_records, batch_size)
        for name, values in batch_fields(endings).items():
            output.batch[name] = values.to(output.batch["finish_step"].device)
        return output


def batch_fields(endings: Sequence[Ending]) -> dict[str, torch.Tensor]:
    """Return what the endings add to upstream's batch: one value an episode, since meta_info is lost on the way.

    Returns:
        vlac_reward: float32 (B,), 0..1, NaN where masked.
        vlac_masked, vlac_env_success: bool (B,). The latter is the simulator's truth, for the audit only.
        vlac_env_success_step: int64 (B,), environment steps; -1 where it was not successful.
        vlac_queries, vlac_sent_bytes: int64 (B,).
        vlac_contradicted: float32 (B,), whether the critic's value contradicts its done; NaN where not known.
        vlac_waited_s, vlac_saved_s: float32 (B,), seconds; the sum over a minibatch is what it waited for the
            critic, and what overlap spared it.
    """
    success_steps = [-1 if ending.success_step is None else ending.success_step for ending in endings]
    named = {
        f"vlac_{name}": torch.tensor([getattr(ending, name) for ending in endings], dtype=dtype)
        for name, dtype in _FIELDS.items()
    }
    contradicted = [math.nan if ending.contradicted is None else ending.contradicted for ending in endings]
    return named | {
        "vlac_contradicted": torch.tensor(contradicted, dtype=torch.float32),
        "vlac_env_success": torch.tensor([step >= 0 for step in success_steps], dtype=torch.bool),
        "vlac_env_success_step": torch.tensor(success_steps, dtype=torch.int64),
    }


def env_worker(
    task_name: str,
    task_id: int,
    trial_id: int,
    config: Any,
    input_queue: Any,
    output_queue: Any,
    is_valid: bool,
    global_steps: int,
    max_steps: int,
) -> None:
    """Run a LIBERO child process in training: upstream's own, around a watched environment.

    The process belongs to one episode, so what is exchanged here needs no putting back.
    """
    make_env = rob_rollout.get_libero_env
    watches: list[LiberoWatch] = []

    def watched_env(*args: Any, **options: Any) -> tuple[LiberoWatch, str]:
        env, description = make_env(*args, **options)
        watches.append(LiberoWatch(env, warmup=config.num_steps_wait, stride=config.vlac.frame_stride))
        return watches[-1], description

    rob_rollout.get_libero_env = watched_env
    actions = WatchedActions(input_queue, lambda: watches[-1])
    _ENV_WORKER(task_name, task_id, trial_id, config, actions, output_queue, is_valid, global_steps, max_steps)


class WatchedRobotwin(rob_rollout.RobotwinEnvWrapper):
    """A RoboTwin 2.0 environment in training: its success is hidden, its observations carry their chunk.

    A success within a chunk counts for the step at the chunk's end.
    """

    _latch: RobotwinLatch
    _shown: dict[str, Any]
    _success_step: int | None = None

    def initialize(self) -> None:
        super().initialize()
        self._latch = RobotwinLatch(self.env)

    def get_obs(self) -> dict[str, Any]:
        self._shown = self._with_chunk(super().get_obs())
        return self._shown

    def step(self, action: Any) -> tuple[dict[str, Any], bool]:
        if action is Signal.STOP:
            self.active = False
            return self._shown, True
        observation, _ = super().step(action)
        if self._latch.success and self._success_step is None:
            self._success_step = self.finish_step
        error = self._latch.error
        if observation is None:
            observation, error = self._shown, error or "RoboTwin gave no observation; upstream printed why."
        self._shown = self._with_chunk(observation, error)
        if error:
            self.active = False
        return self._shown, False

    def _with_chunk(self, observation: Mapping[str, Any], error: str = "") -> dict[str, Any]:
        frames = robotwin_frame(observation)[None]
        chunk = Chunk(self._latch.key, self.finish_step, frames, self._success_step, error)
        return {**observation, CHUNK_KEY: chunk}


@contextmanager
def _watched_environments() -> Iterator[None]:
    """Exchange what upstream's loops build their environments with."""
    theirs = rob_rollout.env_worker, rob_rollout.RobotwinEnvWrapper
    rob_rollout.env_worker, rob_rollout.RobotwinEnvWrapper = env_worker, WatchedRobotwin
    try:
        yield
    finally:
        rob_rollout.env_worker, rob_rollout.RobotwinEnvWrapper = theirs


def _terminate(children: Sequence[Any]) -> None:
    for child in children:
        child.terminate()
    for child in children:
        child.join(_TERMINATE_S)
        if child.is_alive():
            child.kill()
            child.join()
