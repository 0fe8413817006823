"""What a training environment shows: its frames to the critic, its true success to the audit, done to nobody.

An observation travels on upstream's own path (a LIBERO child process's queue, a RoboTwin thread's return
value) and carries a `Chunk` under `CHUNK_KEY`. Towards the environment, `Signal.STOP` in place of an action
chunk says that its episode is over.
"""

from __future__ import annotations

import enum
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlac_queue.errors import VlacQueueError

Frame = NDArray[np.uint8]

#: Where an observation carries its `Chunk`; upstream reads observations by key and looks at no other.
CHUNK_KEY = "vlac_chunk"
#: Length of a LIBERO action: end effector position and rotation, gripper.
_LIBERO_ACTION = 7


class EnvironmentFailed(VlacQueueError):
    """A simulator raised while its episode was still going on. `vlac.on_failure` says what follows."""


class Signal(enum.Enum):
    """What stands in place of an action chunk. An Enum member stays itself across processes."""

    #: The critic found the task done: simulate no more.
    STOP = "stop"


@dataclass(frozen=True)
class Chunk:
    """What one environment showed in one action chunk, or before the first.

    Attributes:
        episode: the episode's key, made by the environment.
        step: environment steps taken so far; 0 before the first chunk.
        frames: uint8 (T,H,W,3), RGB, oldest first; the last is what the chunk ended with.
        success_step: environment step after which the environment first said done, or None. For the audit only.
        error: traceback of the simulator's failure in this chunk, or "".
    """

    episode: str
    step: int
    frames: Frame = field(repr=False)
    success_step: int | None = None
    error: str = ""


class ActionQueue(Protocol):
    """The end of a `multiprocessing.Queue` that upstream's `env_worker` reads."""

    def get(self) -> Any:
        """Return the next action chunk."""


class LiberoWatch:
    """Stands around one LIBERO environment in its child process, in training.

    Towards upstream's `env_worker` it is the environment (`reset`, `set_init_state`, `step`, `close`), except
    that done means "the critic said so" or "the simulator broke". Nothing in here waits for the critic.

    Args:
        env: LIBERO's `OffScreenRenderEnv`, which can be stepped on after success.
        warmup: steps that upstream takes before the episode begins (`num_steps_wait`).
        stride: environment steps between frames taken within a chunk; 0 takes the chunk's last frame only.
    """

    def __init__(self, env: Any, *, warmup: int, stride: int) -> None:
        self._env = env
        self._warmup = warmup
        self._stride = stride
        self._key = uuid.uuid4().hex
        self._step = -warmup
        self._inside: list[Frame] = []
        self._success_step: int | None = None
        self._over = False
        self._shown: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def set_init_state(self, state: Any) -> dict[str, Any]:
        """Return the environment's observation, with its chunk."""
        return self._show(self._env.set_init_state(state))

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        """Step the environment; its done is kept back and its reward is 0."""
        if self._over:
            return self._shown, 0.0, True, {}
        try:
            observation, _, done, info = self._env.step(action)
        except Exception:
            if self._step < 0:
                raise
            # The parent decides: a done that comes late may have ended the episode before this.
            self._over = True
            self._step += 1
            last: Chunk = self._shown[CHUNK_KEY]
            failed = Chunk(self._key, self._step, last.frames, self._success_step, traceback.format_exc())
            self._shown = {**self._shown, CHUNK_KEY: failed}
            return self._shown, 0.0, True, {}
        self._step += 1
        if done and self._step > 0 and self._success_step is None:
            self._success_step = self._step
        return self._show(observation), 0.0, False, info

    def begin(self, action: Any) -> Any:
        """Take the next action chunk, and return what to run instead."""
        self._inside.clear()
        if action is not Signal.STOP:
            return action
        self._over = True
        # One action, which `step` answers with done without running it: upstream's loop then ends.
        return np.zeros((1, _LIBERO_ACTION), np.float32)

    def _show(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        # The camera hangs upside down; upstream turns pictures in the same way.
        frame = np.ascontiguousarray(observation["agentview_image"][::-1, ::-1])
        chunk = Chunk(self._key, max(self._step, 0), np.stack([*self._inside, frame]), self._success_step)
        if self._stride and self._step > 0 and self._step % self._stride == 0:
            self._inside.append(frame)
        self._shown = {**observation, CHUNK_KEY: chunk}
        return self._shown


class WatchedActions:
    """The queue of action chunks as upstream's `env_worker` reads it, past the watch.

    Args:
        queue: the real one.
        watch: gives the watch once the environment is there.
    """

    def __init__(self, queue: ActionQueue, watch: Callable[[], LiberoWatch]) -> None:
        self._queue = queue
        self._watch = watch

    def get(self) -> Any:
        """Return the next action chunk; None ends the process."""
        action = self._queue.get()
        return action if action is None else self._watch().begin(action)


class RobotwinLatch:
    """Hides the success of one RoboTwin 2.0 task instance in training, and remembers it.

    RoboTwin looks for success in the middle of a chunk and stops there, so its `check_success` itself has to
    say no.

    Args:
        env: a task instance, after its set-up.
    """

    def __init__(self, env: Any) -> None:
        self.key = uuid.uuid4().hex
        #: Whether the environment was ever successful.
        self.success = False
        #: Traceback of the last failure in `take_action`, which upstream prints and forgets.
        self.error = ""
        check_success, take_action = env.check_success, env.take_action

        def hidden_success(*args: Any, **options: Any) -> bool:
            self.success = bool(check_success(*args, **options)) or self.success
            return False

        def watched_action(*args: Any, **options: Any) -> Any:
            try:
                return take_action(*args, **options)
            except Exception:
                self.error = traceback.format_exc()
                raise

        env.check_success, env.take_action = hidden_success, watched_action


def robotwin_frame(observation: Mapping[str, Any]) -> Frame:
    """Return the head camera's picture, uint8 (H,W,3), RGB."""
    return np.ascontiguousarray(observation["observation"]["head_camera"]["rgb"])
