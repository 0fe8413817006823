"""Plays episodes as a trainer does: training episodes through `RolloutGate`, evaluation without the critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vlac_queue.client import CriticClient
from vlac_queue.commands.demo.rollouts import Rollout
from vlac_queue.commands.demo.simulator import MetaWorldEpisode
from vlac_queue.frames import Frames
from vlac_queue.gate import RolloutGate

#: Called with a number of steps after they were played.
Progress = Callable[[int], None]


class Environment(Protocol):
    """One episode of an environment, a chunk of control steps at a time."""

    task: str

    def reset(self) -> Frames:
        """The first frame, uint8 (H,W,3)."""

    def step_chunk(self) -> tuple[Frames, bool]:
        """The frame after the next chunk, and the environment's own done flag."""


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


@dataclass(frozen=True)
class Run:
    """An episode to play.

    Attributes:
        name: what the table calls it.
        make: makes its environment.
        max_step: chunks after which it ends.
        reference: uint8 (T,H,W,3), a successful run of the same task.
    """

    name: str
    make: Callable[[], Environment]
    max_step: int
    reference: Frames = field(repr=False)


@dataclass(frozen=True)
class Report:
    """How an episode went.

    Attributes:
        name, task: which one, and what was to be done.
        mode: "train" or "eval".
        finish_step: chunk at which it ended.
        ended_by: "critic", "max_step" or "environment".
        reward: 0..1.
        environment_done: first chunk at which the environment's own flag says done, or would have said so had
            the critic not ended the episode before; None: never. Training does not use it.
        queries: critic queries of the training rule.
        sent_bytes, raw_bytes: frames as they crossed the wire, and their pixels.
        latency_ms: mean milliseconds from asking until the answer stood on Redis; None where nothing was asked.
        frames: uint8 (T,H,W,3), all that was seen.
        values: the critic's value list over `frames`, 0..100, asked for the picture; empty in evaluation.
    """

    name: str
    task: str
    mode: str
    finish_step: int
    ended_by: str
    reward: float
    environment_done: int | None
    queries: int
    sent_bytes: int
    raw_bytes: int
    latency_ms: float | None
    frames: Frames = field(repr=False)
    values: tuple[float, ...] = ()


def train(client: CriticClient, runs: Sequence[Run], progress: Progress) -> list[Report]:
    """Plays `runs` together as training episodes: the environment's done is only noted."""
    environments = [run.make() for run in runs]
    seen = [[environment.reset()] for environment in environments]
    truth: dict[int, int | None] = {}
    tasks = [environment.task for environment in environments]
    with RolloutGate(client, tasks, references=[run.reference for run in runs]) as gate:
        gate.push({index: frames[0] for index, frames in enumerate(seen)})
        active = set(range(len(runs)))
        for step in range(1, max(run.max_step for run in runs) + 1):
            for index in sorted(active):
                frame, done = environments[index].step_chunk()
                seen[index].append(frame)
                if done:
                    truth.setdefault(index, step)
            gate.observe(step, {index: seen[index][-1] for index in active})
            progress(len(active))
            active -= gate.finished() | {index for index, run in enumerate(runs) if run.max_step == step}
        outcomes = gate.settle()
        for index in range(len(runs)):
            if index not in truth:
                truth[index] = _done_later(environments[index], len(seen[index]), runs[index].max_step)
        for index, episode in enumerate(gate.episodes):
            client.note_truth(episode, truth[index])
        reports = []
        counters = [(e.queries, e.sent_bytes, e.raw_bytes, e.answer_s, e.answers) for e in gate.episodes]
        # For the picture only; training asks no value where the critic said done.
        curves = client.ask_value_many(gate.episodes)
        client.wait(curves)
    for index, (run, outcome, counted, curve) in enumerate(zip(runs, outcomes, counters, curves, strict=True)):
        queries, sent_bytes, raw_bytes, answer_s, answers = counted
        # on_failure is "raise" here, so no outcome is masked.
        assert outcome.reward is not None
        reports.append(
            Report(
                name=run.name,
                task=tasks[index],
                mode="train",
                finish_step=outcome.finish_step,
                ended_by="critic" if outcome.done else "max_step",
                reward=outcome.reward,
                environment_done=truth[index],
                queries=queries,
                sent_bytes=sent_bytes,
                raw_bytes=raw_bytes,
                latency_ms=1000 * answer_s / answers,
                frames=np.stack(seen[index]),
                values=curve.verdict().values,
            )
        )
    _close(environments)
    return reports


def _done_later(environment: Environment, step: int, max_step: int) -> int | None:
    """Play on from chunk `step`, unseen by the critic, until the environment says done; None: never.

    An episode that the critic ended too early is judged by what the environment would have said.
    """
    return next((later for later in range(step, max_step + 1) if environment.step_chunk()[1]), None)


def evaluate(runs: Sequence[Run], progress: Progress) -> list[Report]:
    """Plays `runs` together as evaluation episodes: the environment's done ends them, and nobody is asked."""
    environments = [run.make() for run in runs]
    seen = [[environment.reset()] for environment in environments]
    done_at: dict[int, int] = {}
    active = set(range(len(runs)))
    for step in range(1, max(run.max_step for run in runs) + 1):
        for index in sorted(active):
            frame, done = environments[index].step_chunk()
            seen[index].append(frame)
            if done:
                done_at[index] = step
        progress(len(active))
        active -= set(done_at) | {index for index, run in enumerate(runs) if run.max_step == step}
    _close(environments)
    return [
        Report(
            name=run.name,
            task=environments[index].task,
            mode="eval",
            finish_step=done_at.get(index, run.max_step),
            ended_by="environment" if index in done_at else "max_step",
            reward=float(index in done_at),
            environment_done=done_at.get(index),
            queries=0,
            sent_bytes=0,
            raw_bytes=0,
            latency_ms=None,
            frames=np.stack(seen[index]),
        )
        for index, run in enumerate(runs)
    ]


def recorded_runs(rollouts: Sequence[Rollout]) -> list[Run]:
    """The shipped rollouts (but for the references themselves) as runs."""
    references = {rollout.env: rollout.frames for rollout in rollouts if rollout.kind == "reference"}
    return [
        Run(
            name=f"{rollout.kind} {rollout.seed}",
            make=lambda rollout=rollout: RecordedEpisode(rollout),  # type: ignore[misc]
            max_step=len(rollout.frames) - 1,
            reference=references[rollout.env],
        )
        for rollout in rollouts
        if rollout.kind != "reference"
    ]


def live_runs(env: str, max_step: int = 16) -> list[Run]:
    """Meta-World itself: an expert's run as reference, then three experts and a random policy.

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
    policies = [("expert", 1), ("expert", 2), ("expert", 3), ("random", 21)]
    return [
        Run(
            name=f"{policy} {seed}",
            make=lambda policy=policy, seed=seed: MetaWorldEpisode(env, seed=seed, policy=policy),  # type: ignore[misc]
            max_step=max_step,
            reference=np.stack(frames),
        )
        for policy, seed in policies
    ]


def _close(environments: Sequence[Environment]) -> None:
    for environment in environments:
        if isinstance(environment, MetaWorldEpisode):
            environment.close()
