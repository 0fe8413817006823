"""Plays episodes as a trainer does: training episodes through `RolloutGate`, evaluation without the critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from vlac_queue.client import CriticClient
from vlac_queue.commands.demo.rollouts import Rollout
from vlac_queue.commands.demo.simulator import MetaWorldEpisode, Policy
from vlac_queue.frames import Frames
from vlac_queue.gate import RolloutGate

#: Called with a number of steps after they were played.
Progress = Callable[[int], None]


class Environment(Protocol):
    """One episode of an environment, a chunk of control steps at a time."""

    task: str

    def reset(self) -> Frames:
        """Begin the episode; return its first frame, uint8 (H,W,3)."""

    def step_chunk(self) -> tuple[Frames, bool]:
        """Play a chunk; return the frame after it, and the environment's own done flag."""

    def close(self) -> None:
        """Free what it holds."""


class RecordedEpisode:
    """A recorded rollout as an environment."""

    def __init__(self, rollout: Rollout) -> None:
        self.task = rollout.task
        self._rollout = rollout
        self._step = 0

    def reset(self) -> Frames:
        self._step = 0
        return self._rollout.frames[0]

    def step_chunk(self) -> tuple[Frames, bool]:
        self._step += 1
        return self._rollout.frames[self._step], bool(self._rollout.success[self._step])

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Run:
    """An episode to play."""

    name: str  # what the table calls it
    make: Callable[[], Environment]
    max_step: int  # chunks after which it ends
    reference: Frames = field(repr=False)  # uint8 (T,H,W,3), a successful run of the same task


@dataclass(frozen=True)
class Report:
    """How an episode went."""

    name: str
    task: str
    mode: str  # "train" or "eval"
    finish_step: int  # chunk at which it ended
    ended_by: str  # "critic", "max_step" or "environment"
    reward: float  # 0..1
    # First chunk at which the environment's own flag says done, or would have said so had the critic not ended the
    # episode before; None: never. Training does not use it.
    environment_done: int | None
    queries: int = 0  # those of the training rule
    sent_bytes: int = 0  # frames as they crossed the wire
    raw_bytes: int = 0  # their pixels
    latency_ms: float | None = None  # mean, from asking until the answer stood on Redis; None: nothing was asked
    frames: Frames = field(repr=False, kw_only=True)  # uint8 (T,H,W,3), all that was seen
    values: tuple[float, ...] = ()  # over `frames`, 0..100, asked for the picture; empty in evaluation


def train(client: CriticClient, runs: Sequence[Run], progress: Progress) -> list[Report]:
    """Play `runs` together as training episodes: the environment's done is only noted."""
    with _Played(runs) as played:
        with RolloutGate(client, played.tasks, references=[run.reference for run in runs]) as gate:
            gate.push({index: frames[0] for index, frames in enumerate(played.seen)})

            def observe(step: int, frames: dict[int, Frames]) -> Set[int]:
                gate.observe(step, frames)
                return gate.finished()

            played.play(observe, progress)
            outcomes = gate.settle()
            truth = [played.done_later(index) for index in range(len(runs))]
            for episode, step in zip(gate.episodes, truth, strict=True):
                client.note_truth(episode, step)
            counted = [
                {
                    "queries": episode.queries,
                    "sent_bytes": episode.sent_bytes,
                    "raw_bytes": episode.raw_bytes,
                    "latency_ms": 1000 * episode.answer_s / episode.answers,
                }
                for episode in gate.episodes
            ]
            # For the picture only; training asks no value where the critic said done.
            curves = client.ask_value_many(gate.episodes)
            client.wait(curves)
        return [
            played.report(
                index,
                mode="train",
                finish_step=outcome.finish_step,
                ended_by="critic" if outcome.done else "max_step",
                reward=outcome.reward,  # on_failure is "raise" here, so no outcome is masked
                environment_done=truth[index],
                values=curves[index].verdict().values,
                **counted[index],
            )
            for index, outcome in enumerate(outcomes)
        ]


def evaluate(runs: Sequence[Run], progress: Progress) -> list[Report]:
    """Play `runs` together as evaluation episodes: the environment's done ends them, and nobody is asked."""
    with _Played(runs) as played:
        played.play(lambda step, frames: set(played.done_at), progress)
        return [
            played.report(
                index,
                mode="eval",
                finish_step=played.done_at.get(index, run.max_step),
                ended_by="environment" if index in played.done_at else "max_step",
                reward=float(index in played.done_at),
                environment_done=played.done_at.get(index),
            )
            for index, run in enumerate(runs)
        ]


class _Played:
    """Episodes that are played together; closes their environments with its `with` block."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._environments = [run.make() for run in runs]
        self.tasks = [environment.task for environment in self._environments]
        #: The frames of each, uint8 (H,W,3).
        self.seen = [[environment.reset()] for environment in self._environments]
        #: Episode -> first chunk at which its environment said done.
        self.done_at: dict[int, int] = {}

    def play(self, finished: Callable[[int, dict[int, Frames]], Set[int]], progress: Progress) -> None:
        """Play all to their end; `finished` gets each chunk's number and frames, and returns who ended."""
        active = set(range(len(self._runs)))
        for step in range(1, max(run.max_step for run in self._runs) + 1):
            for index in sorted(active):
                frame, done = self._environments[index].step_chunk()
                self.seen[index].append(frame)
                if done:
                    self.done_at.setdefault(index, step)
            progress(len(active))
            active -= finished(step, {index: self.seen[index][-1] for index in active})
            active -= {index for index, run in enumerate(self._runs) if run.max_step == step}

    def done_later(self, index: int) -> int | None:
        """Play on, unseen by the critic, until the environment says done; return that chunk, or None.

        An episode that the critic ended too early is judged by what the environment would have said.
        """
        if index in self.done_at:
            return self.done_at[index]
        rest = range(len(self.seen[index]), self._runs[index].max_step + 1)
        return next((step for step in rest if self._environments[index].step_chunk()[1]), None)

    def report(self, index: int, **fields: Any) -> Report:
        """Return how an episode went; `fields` are the rest of `Report`."""
        name, task, frames = self._runs[index].name, self.tasks[index], np.stack(self.seen[index])
        return Report(name=name, task=task, frames=frames, **fields)

    def __enter__(self) -> _Played:
        return self

    def __exit__(self, *raised: object) -> None:
        for environment in self._environments:
            environment.close()


def recorded_runs(rollouts: Sequence[Rollout]) -> list[Run]:
    """Return the shipped rollouts, all but the references themselves, as runs."""
    references = {rollout.env: rollout.frames for rollout in rollouts if rollout.kind == "reference"}
    return [
        Run(
            f"{rollout.kind} {rollout.seed}",
            partial(RecordedEpisode, rollout),
            max_step=len(rollout.frames) - 1,
            reference=references[rollout.env],
        )
        for rollout in rollouts
        if rollout.kind != "reference"
    ]


def live_runs(env: str, max_step: int = 16) -> list[Run]:
    """Return runs of Meta-World itself, with an expert's run as reference: three experts and a random policy.

    Raises:
        ImportError, RuntimeError: the simulator is not installed or can't render; the message says what to do.
    """
    with MetaWorldEpisode(env, seed=3) as expert:
        frames = [expert.reset()]
        done = False
        while not done and len(frames) <= max_step:
            frame, done = expert.step_chunk()
            frames.append(frame)
        frames.append(expert.step_chunk()[0])
    reference = np.stack(frames)
    policies: list[tuple[Policy, int]] = [("expert", 1), ("expert", 2), ("expert", 3), ("random", 21)]
    return [
        Run(f"{policy} {seed}", partial(MetaWorldEpisode, env, seed=seed, policy=policy), max_step, reference)
        for policy, seed in policies
    ]
