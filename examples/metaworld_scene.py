"""Meta-World as `train_metaworld.py` wants it: many episodes of one start, and a cheap camera."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as TASKS
from metaworld.policies import ENV_POLICY_MAP as EXPERTS

from vlac_queue.commands.demo.simulator import ENVS

CHUNKS, CHUNK_STEPS = 15, 8  # of an episode, and control steps of a chunk
PIXELS = 64
#: Cameras nearer to what happens than the demo's: name, and degrees from the picture's top to its bottom.
CLOSER = {"door-open-v3": ("corner3", 36.0)}


class Scene:
    """Environments of one task that all begin at the same start, and a camera."""

    def __init__(self, task: str, count: int) -> None:
        self.task, self.words = task, ENVS[task].task
        self.environments = [TASKS[f"{task}-goal-observable"](seed=0) for _ in range(count)]
        model = self.environments[0].model
        # With a buffer no larger than the picture, without shadows and fine meshes, it takes 5 ms in place of 130.
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = PIXELS
        self.renderer = mujoco.Renderer(model, PIXELS, PIXELS)
        camera, degrees = CLOSER.get(task, (ENVS[task].camera, None))
        self._camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        model.cam_fovy[self._camera] = degrees or model.cam_fovy[self._camera]
        self._coarse = mujoco.MjvOption()
        self._coarse.flags[mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = True

    def reset(self) -> np.ndarray:
        """Begin all episodes; return their states, float64 (count, 39)."""
        return np.stack([environment.reset()[0] for environment in self.environments])

    def picture(self, index: int) -> np.ndarray:
        """Return what the camera sees of an episode, uint8 (PIXELS, PIXELS, 3)."""
        self.renderer.update_scene(self.environments[index].data, self._camera, self._coarse)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.renderer.scene.flags[flag] = 0
        return self.renderer.render()[::-1].copy()  # Meta-World's cameras hang upside down

    def expert_run(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Let the scripted expert act, until two chunks after its success.

        So its last two pictures, which mean done to the critic, are beyond the goal, and near misses before them.

        Returns:
            States, float64 (T, 39), and actions, (T, 4), without those of the last chunk; a picture a chunk, uint8
            (C, PIXELS, PIXELS, 3).
        """
        expert, environment, success = EXPERTS[self.task](), self.environments[0], 0
        state = environment.reset()[0]
        states, actions, pictures = [], [], [self.picture(0)]
        while success < 3 and len(pictures) <= CHUNKS:
            for _ in range(CHUNK_STEPS):
                states.append(state)
                actions.append(np.clip(expert.get_action(state), -1, 1))
                state, *_, info = environment.step(actions[-1])
            pictures.append(self.picture(0))
            success += bool(info["success"])
        return np.stack(states[:-CHUNK_STEPS]), np.stack(actions[:-CHUNK_STEPS]), np.stack(pictures)
