"""A policy of Meta-World learns from a critic that sees pictures alone. Needs the extra `learn`: see `make learn`.

    python examples/train_metaworld.py --task door-open-v3 --done-confirm 2 --json figures.json --png figures.png

Each iteration plays 32 episodes from one fixed start. The critic `reference`, asked through Redis and two workers,
says when an episode is done and what it is worth, and a clipped policy gradient follows that reward. The
simulator's own success is noted beside it; it reaches training with `--reward environment` alone.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco
import numpy as np
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as TASKS
from metaworld.policies import ENV_POLICY_MAP as EXPERTS
from torch import nn

from vlac_queue import CriticClient, RolloutGate, VlacConfig
from vlac_queue.commands.demo.processes import wait_until_ready, worker_processes
from vlac_queue.commands.demo.simulator import ENVS
from vlac_queue.plot import CURVE, DONE, TEXT, UNDONE, WRONG, figure_class, save
from vlac_queue.server import RedisServer

EPISODES, CHUNKS, CHUNK_STEPS = 32, 15, 8
PIXELS = 64
DEVIATION = 0.3  # of actions around what the policy means
IMITATION_ERROR, LEARNING_RATE, PASSES, CLIP = 0.105, 4e-4, 4, 0.2


class Scene:
    """Environments of one task that all begin at the same start, and a camera."""

    def __init__(self, task: str) -> None:
        self.task, self.words, self._view = task, ENVS[task].task, ENVS[task].camera
        self.environments = [TASKS[f"{task}-goal-observable"](seed=0) for _ in range(EPISODES)]
        model = self.environments[0].model
        # With a buffer no larger than the picture, and without shadows, it takes 7 ms in place of 130.
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = PIXELS
        self.renderer = mujoco.Renderer(model, PIXELS, PIXELS)

    def reset(self) -> np.ndarray:
        """Begin all episodes; return their states, float64 (EPISODES, 39)."""
        return np.stack([environment.reset()[0] for environment in self.environments])

    def picture(self, index: int) -> np.ndarray:
        """Return what the camera sees of an episode, uint8 (PIXELS, PIXELS, 3)."""
        self.renderer.update_scene(self.environments[index].data, camera=self._view)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.renderer.scene.flags[flag] = 0
        return self.renderer.render()[::-1].copy()  # Meta-World's cameras hang upside down

    def expert_run(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return states, actions and a picture a chunk of the scripted expert, to one chunk after its success."""
        expert, environment, success = EXPERTS[self.task](), self.environments[0], 0
        state = environment.reset()[0]
        states, actions, pictures = [], [], [self.picture(0)]
        while success < 2 and len(pictures) <= CHUNKS:
            for _ in range(CHUNK_STEPS):
                states.append(state)
                actions.append(np.clip(expert.get_action(state), -1, 1))
                state, *_, info = environment.step(actions[-1])
            pictures.append(self.picture(0))
            success += bool(info["success"])
        return np.stack(states), np.stack(actions), np.stack(pictures)


class Policy(nn.Module):
    """Two layers of 128 on the state; actions are drawn around what it means."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(39, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 4))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.net(states)

    def descend(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def imitate(self, states: np.ndarray, actions: np.ndarray) -> None:
        """Warm up: so near to the expert's actions that it succeeds now and then."""
        error = torch.inf
        while error > IMITATION_ERROR:
            loss = ((self(_tensor(states)) - _tensor(actions)) ** 2).mean()
            self.descend(loss)
            error = loss.item()


@dataclass
class Played:
    """A batch of N episodes with T control steps.

    States are (T, N, 39) and actions (T, N, 4). The rest is by episode: its reward, whether the critic found it
    done, the chunk at which it ended, and whether the simulator calls it successful up to there.
    """

    states: torch.Tensor
    actions: torch.Tensor
    reward: np.ndarray
    done: np.ndarray
    finish: np.ndarray
    success: np.ndarray


def play(scene: Scene, policy: Policy, gate: RolloutGate | None) -> Played:
    """Play one batch of episodes; without a gate they end by the simulator's word."""
    state = torch.as_tensor(scene.reset(), dtype=torch.float32)
    if gate:
        gate.push(np.stack([scene.picture(0)] * EPISODES))
    active, states, actions = set(range(EPISODES)), [], []
    success_at = np.full(EPISODES, CHUNKS + 1)
    for chunk in range(1, CHUNKS + 1):
        for _ in range(CHUNK_STEPS):
            # For all, active or not: what an episode does must not depend on when another's end became known.
            with torch.no_grad():
                action = policy(state) + DEVIATION * torch.randn(EPISODES, 4)
            states.append(state.clone())
            actions.append(action)
            for i in active:
                seen, *_, info = scene.environments[i].step(action[i].clamp(-1, 1).numpy().astype(np.float64))
                state[i] = torch.as_tensor(seen)
                if info["success"]:
                    success_at[i] = min(success_at[i], chunk)
        if gate:
            gate.observe(chunk, {i: scene.picture(i) for i in sorted(active)})
            active -= gate.finished()
        else:
            active -= set(np.flatnonzero(success_at <= chunk))
    if gate:
        outcomes = gate.settle()
        reward, done, finish = (
            np.array([getattr(o, f) for o in outcomes]) for f in ("reward", "done", "finish_step")
        )
    else:
        done = success_at <= CHUNKS
        reward, finish = done.astype(float), np.minimum(success_at, CHUNKS)
    return Played(torch.stack(states), torch.stack(actions), reward, done, finish, success_at <= finish)


def improve(policy: Policy, played: Played) -> None:
    """Clipped policy gradient; what was simulated after an episode's end does not count."""
    reward = _tensor(played.reward)
    advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
    chunk = torch.arange(len(played.states)) // CHUNK_STEPS
    counts = (chunk[:, None] < torch.as_tensor(played.finish)[None]).float()

    def log_likelihood() -> torch.Tensor:
        return -((played.actions - policy(played.states)) ** 2).sum(-1) / (2 * DEVIATION**2)

    before = log_likelihood().detach()
    for _ in range(PASSES):
        ratio = (log_likelihood() - before).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        policy.descend(-(gain * counts).sum() / counts.sum())


@dataclass(frozen=True)
class Iteration:
    """What one iteration came to; shares are of its episodes, 0..1."""

    number: int
    reward: float  # mean, 0..1
    done: float  # share that the critic found done
    success: float  # share that the simulator calls successful, up to where they ended
    false_done: float  # share that the critic found done and the simulator does not
    chunks: float  # mean length
    seconds: float


@contextmanager
def critic(options: argparse.Namespace) -> Iterator[CriticClient]:
    """A Redis, two workers and a client, until the block ends."""
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vlac-learn-")))
        url = stack.enter_context(RedisServer()).url
        workers = stack.enter_context(worker_processes(2, url, logs))
        client = stack.enter_context(CriticClient(VlacConfig(redis_url=url, done_confirm=options.done_confirm)))
        wait_until_ready(workers, client, logs)
        yield client


def train(options: argparse.Namespace) -> list[Iteration]:
    """Warm a policy up by imitation, then let it learn; print each iteration."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    scene, policy = Scene(options.task), Policy()
    states, actions, reference = scene.expert_run()
    policy.imitate(states, actions)
    history: list[Iteration] = []
    with critic(options) if options.reward == "critic" else nullcontext() as client:
        print("iteration  reward  done  true success  false dones  chunks  seconds")
        for number in range(1, options.iterations + 1):
            began = time.monotonic()
            if client:
                tasks = [scene.words] * EPISODES
                with RolloutGate(client, tasks, references=[reference] * EPISODES) as gate:
                    played = play(scene, policy, gate)
            else:
                played = play(scene, policy, None)
                played.reward *= options.reward == "environment"
            improve(policy, played)
            means = (
                each.mean().item()
                for each in (
                    played.reward,
                    played.done,
                    played.success,
                    played.done & ~played.success,
                    played.finish,
                )
            )
            row = Iteration(number, *means, time.monotonic() - began)
            history.append(row)
            print(
                "{:9d}  {:6.2f}  {:4.2f}  {:12.2f}  {:11.2f}  {:6.1f}  {:7.1f}".format(*astuple(row)), flush=True
            )
    scene.renderer.close()
    return history


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw runs side by side: reward, critic's done, true success and false dones by iteration."""
    figure = figure_class()(figsize=(4 * len(runs), 3), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False, sharey=True)[0], runs, strict=True):
        rows, by_critic = run["iterations"], run["reward"] == "critic"
        lines = [("reward", "reward", CURVE, "-"), ("success", "true success", DONE, "-")]
        lines += [("done", "called done", UNDONE, "--"), ("false_done", "false dones", WRONG, "-")] * by_critic
        for name, label, colour, style in lines:
            axes.plot([r["number"] for r in rows], [r[name] for r in rows], style, color=colour, label=label)
        told = f", done_confirm={run['done_confirm']}" if by_critic else ""
        axes.set_title(f"{run['task']}, reward: {run['reward']}{told}, seed {run['seed']}", fontsize=8)
        axes.set_xlabel("iteration", fontsize=8)
        axes.set_ylim(-0.03, 1.03)
        axes.tick_params(labelsize=8, colors=TEXT)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="center right")
    save(figure, path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(ENVS), default="door-open-v3")
    parser.add_argument("--reward", choices=("critic", "environment", "none"), default="critic")
    parser.add_argument(
        "--done-confirm", type=int, default=1, metavar="K", help="done counts said at K steps in a row"
    )
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--png", type=Path, help="draw them to this file")
    parser.add_argument(
        "--draw", type=Path, nargs="+", metavar="JSON", help="train nothing, draw these runs to --png"
    )
    options = parser.parse_args()
    if options.draw:
        draw([json.loads(path.read_text()) for path in options.draw], options.png)
        return
    history = train(options)
    told = ("task", "reward", "done_confirm", "seed")
    run = {name: getattr(options, name) for name in told} | {"iterations": [asdict(row) for row in history]}
    if options.json:
        options.json.write_text(json.dumps(run, indent=1) + "\n")
    if options.png:
        draw([run], options.png)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


if __name__ == "__main__":
    main()
