"""A policy of Meta-World learns from a critic that sees pictures alone. Needs the extra `learn`: see `make learn`.

    python examples/train_metaworld.py --task door-open-v3 --done-confirm 2 --json figures.json --png figures.png

Each iteration plays 32 episodes from one fixed start. The critic `reference`, asked through Redis and two workers,
says when an episode is done and what it is worth, and a clipped policy gradient follows that reward. The
simulator's own success is noted beside it; it reaches training with `--reward environment` alone.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from metaworld_scene import CHUNK_STEPS, CHUNKS, Scene
from torch import nn
from training_picture import draw

from vlac_queue import CriticClient, RolloutGate, VlacConfig
from vlac_queue.commands.demo.processes import wait_until_ready, worker_processes
from vlac_queue.commands.demo.simulator import ENVS
from vlac_queue.server import RedisServer
from vlac_queue.trust import Signs, fooled, fooled_from

EPISODES = 32
DEVIATION = 0.3  # of actions around what the policy means; at the end half of it
IMITATION_ERROR = 0.105  # mean squared
LEARNING_RATE, PASSES, BATCHES, CLIP = 4e-4, 4, 4, 0.2  # the rate falls to 0
FARTHEST = 0.03  # from the policy that played: Kullback-Leibler divergence at which an update ends
LEAST_SPREAD = 0.05  # of rewards: a single failure must not count ten times as much


class Policy(nn.Module):
    """Two layers of 128 on the state; actions are drawn around what it means."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(39, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 4))
        self.optimizer = torch.optim.Adam(self.parameters())
        self.calm(1.0)

    def calm(self, left: float) -> None:
        """Take smaller steps the less (1..0) of the training is left; large ones would undo what was learned."""
        self.deviation = DEVIATION * (1 + left) / 2
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * left

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.net(states)

    def descend(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def imitate(self, states: np.ndarray, actions: np.ndarray) -> None:
        """Warm up: so near to the expert's actions that it succeeds now and then."""
        loss = torch.tensor(torch.inf)
        while loss.item() > IMITATION_ERROR:
            loss = ((self(_tensor(states)) - _tensor(actions)) ** 2).mean()
            self.descend(loss)


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
                action = policy(state) + policy.deviation * torch.randn(EPISODES, 4)
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
        reward = np.array([outcome.reward for outcome in outcomes])
        done = np.array([outcome.done for outcome in outcomes])
        finish = np.array([outcome.finish_step for outcome in outcomes])
    else:
        done = success_at <= CHUNKS
        reward, finish = done.astype(float), np.minimum(success_at, CHUNKS)
    return Played(torch.stack(states), torch.stack(actions), reward, done, finish, success_at <= finish)


def improve(policy: Policy, played: Played) -> None:
    """Clipped policy gradient; what was simulated after an episode's end does not count."""
    reward = _tensor(played.reward)
    advantage = (reward - reward.mean()) / (reward.std() + LEAST_SPREAD)
    counts = (torch.arange(len(played.states))[:, None] // CHUNK_STEPS < torch.as_tensor(played.finish)).float()

    def log_likelihood(some: torch.Tensor) -> torch.Tensor:
        return -(((played.actions[:, some] - policy(played.states[:, some])) / policy.deviation) ** 2).sum(-1) / 2

    before = log_likelihood(torch.arange(EPISODES)).detach()
    for _ in range(PASSES):
        for some in torch.randperm(EPISODES).chunk(BATCHES):
            change, weights = log_likelihood(some) - before[:, some], counts[:, some] / counts[:, some].sum()
            ratio = change.exp()
            if ((ratio - 1 - change) * weights).sum() > FARTHEST:
                return
            gain = torch.minimum(ratio * advantage[some], ratio.clamp(1 - CLIP, 1 + CLIP) * advantage[some])
            policy.descend(-(gain * weights).sum())


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

    @classmethod
    def of(cls, number: int, played: Played, seconds: float) -> Iteration:
        false_done = played.done & ~played.success
        shares = (played.reward, played.done, played.success, false_done, played.finish)
        return cls(number, *(each.mean().item() for each in shares), seconds)

    def signs(self) -> Signs:
        """What it shows of the critic."""
        return Signs(self.done, denied=self.false_done / self.done if self.done else math.nan)


@contextmanager
def critic(done_confirm: int) -> Iterator[CriticClient]:
    """A Redis, two workers and a client, until the block ends."""
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vlac-learn-")))
        url = stack.enter_context(RedisServer()).url
        workers = stack.enter_context(worker_processes(2, url, logs))
        client = stack.enter_context(CriticClient(VlacConfig(redis_url=url, done_confirm=done_confirm)))
        wait_until_ready(workers, client, logs)
        yield client


def train(options: argparse.Namespace) -> tuple[list[Iteration], dict[str, torch.Tensor]]:
    """Warm a policy up by imitation, then let it learn; return the iterations, and the policy that results."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    scene, policy = Scene(options.task, EPISODES), Policy()
    states, actions, reference = scene.expert_run()
    policy.imitate(states, actions)
    history: list[Iteration] = []
    policies = [deepcopy(policy.state_dict())]  # before the first iteration, and after each
    with critic(options.done_confirm) if options.reward == "critic" else nullcontext() as client:
        print("iteration  reward  done  true success  false dones  chunks  seconds")
        while len(history) < options.iterations:
            began = time.monotonic()
            policy.calm(1 - len(history) / options.iterations)
            if client:
                with RolloutGate(client, [scene.words] * EPISODES, references=[reference] * EPISODES) as gate:
                    played = play(scene, policy, gate)
            else:
                played = play(scene, policy, None)
                played.reward *= options.reward == "environment"
            improve(policy, played)
            policies.append(deepcopy(policy.state_dict()))
            history.append(Iteration.of(len(history) + 1, played, time.monotonic() - began))
            print("{:9d}  {:6.2f}  {:4.2f}  {:12.2f}  {:11.2f}  {:6.1f}  {:7.1f}".format(*astuple(history[-1])))
            if options.stop_when_fooled and fooled([each.signs() for each in history]):
                print(f"stopped; the result is the policy of iteration {len(history) - 1}")
                policies = policies[: len(history) - 1]
                break
    scene.renderer.close()
    return history, policies[-1]


def told(history: list[Iteration]) -> str:
    """Return in words whether the critic was fooled."""
    signs = [each.signs() for each in history]
    if (index := fooled_from(signs)) is not None:
        return f"the critic was fooled from iteration {history[index].number} on: {fooled(signs)}"
    seen = [str(each.number) for i, each in enumerate(history) if fooled(signs[: i + 1])]
    return f"the critic was fooled in iterations {', '.join(seen)}" if seen else "the critic was not fooled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(ENVS), default="door-open-v3")
    parser.add_argument("--reward", choices=("critic", "environment", "none"), default="critic")
    parser.add_argument("--done-confirm", type=int, default=1, metavar="K", help="K dones in a row end an episode")
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-when-fooled", action="store_true", help="end at the first sign that the critic is")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--png", type=Path, help="draw them to this file")
    parser.add_argument("--policy", type=Path, help="write the weights of the resulting policy to this file")
    options = parser.parse_args()
    history, policy = train(options)
    print(told(history))
    run = {name: getattr(options, name) for name in ("task", "reward", "done_confirm", "seed")}
    run |= {"told": told(history), "iterations": [asdict(each) for each in history]}
    if options.json:
        options.json.write_text(json.dumps(run, indent=1) + "\n")
    if options.png:
        draw([run], options.png)
    if options.policy:
        torch.save(policy, options.policy)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


if __name__ == "__main__":
    main()
