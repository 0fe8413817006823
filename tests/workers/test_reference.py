"""The critic `reference` on recorded simulator rollouts: other object positions than in the reference."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rollouts import ROLLOUTS
from vlac_queue.commands.demo.rollouts import Rollout, success_step
from vlac_queue.config import VlacConfig
from vlac_queue.errors import CriticFailed, FrameError
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticQuery
from workers.critics.reference import ReferenceCritic, shrink

REFERENCES = {rollout.env: rollout for rollout in ROLLOUTS if rollout.kind == "reference"}
SUCCESSES = [rollout for rollout in ROLLOUTS if rollout.kind == "expert"]
FAILURES = [rollout for rollout in ROLLOUTS if rollout.kind in ("random", "stalled")]
#: The references go on for one chunk beyond the goal.
THRESHOLD = 0.85


def query(kind: str, rollout: Rollout, last: int | None = None, **more: object) -> CriticQuery:
    last = len(rollout.frames) - 1 if last is None else last
    reference = REFERENCES[rollout.env]
    return CriticQuery(
        kind=kind,  # type: ignore[arg-type]
        task=rollout.task,
        frames=rollout.frames[last : last + 1] if kind == "done" else rollout.frames[: last + 1],
        frame=last,
        reference=reference.frames,
        reference_id=reference.name,
        done_threshold=THRESHOLD,
        **more,  # type: ignore[arg-type]
    )


def value(rollout: Rollout) -> float:
    (answer,) = ReferenceCritic().answer([query("value", rollout)])
    assert isinstance(answer, ValueVerdict)
    return answer.values[-1]


@pytest.mark.parametrize("rollout", SUCCESSES, ids=lambda rollout: rollout.name)
def test_a_success_is_called_done_near_where_the_environment_does(rollout: Rollout) -> None:
    answers = ReferenceCritic().answer([query("done", rollout, frame) for frame in range(len(rollout.frames))])
    first = next(frame for frame, answer in enumerate(answers) if isinstance(answer, DoneVerdict) and answer.done)
    expected = success_step(rollout)
    assert expected is not None and abs(first - expected) <= 1


@pytest.mark.parametrize("rollout", FAILURES, ids=lambda rollout: rollout.name)
def test_a_failure_is_never_called_done(rollout: Rollout) -> None:
    answers = ReferenceCritic().answer([query("done", rollout, frame) for frame in range(len(rollout.frames))])
    assert [answer.done for answer in answers if isinstance(answer, DoneVerdict)] == [False] * len(rollout.frames)


@pytest.mark.parametrize("env", sorted(REFERENCES))
def test_failures_have_lower_values_than_successes(env: str) -> None:
    # Where a success stands when the environment first says so, against where a failure ends.
    successes = []
    for rollout in SUCCESSES:
        if rollout.env == env and (step := success_step(rollout)) is not None:
            (answer,) = ReferenceCritic().answer([query("value", rollout, step)])
            assert isinstance(answer, ValueVerdict)
            successes.append(answer.values[-1])
    failures = [value(rollout) for rollout in FAILURES if rollout.env == env]
    assert max(failures) < min(successes) - 7
    assert min(failures) < 15


@cache
def asked_alone() -> tuple[list[CriticQuery], list[Any]]:
    """A query about each rollout, and its answer in a batch of its own."""
    queries = [query("done", rollout, 7) for rollout in SUCCESSES + FAILURES]
    return queries, [ReferenceCritic().answer([each])[0] for each in queries]


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(len(SUCCESSES) + len(FAILURES))), st.integers(1, 15))
def test_what_else_is_in_the_batch_never_changes_an_answer(order: list[int], size: int) -> None:
    queries, alone = asked_alone()
    critic = ReferenceCritic()
    for start in range(0, len(order), size):
        part = order[start : start + size]
        assert critic.answer([queries[index] for index in part]) == [alone[index] for index in part]


def test_a_value_list_tells_the_progress_of_each_frame_or_every_stride_th() -> None:
    rollout = SUCCESSES[-1]
    critic = ReferenceCritic()
    every, third = critic.answer([query("value", rollout), query("value", rollout, value_stride=3)])
    assert isinstance(every, ValueVerdict) and isinstance(third, ValueVerdict)
    assert len(every.values) == len(rollout.frames) and len(every.critics) == len(every.values) - 1
    assert third.values == (*every.values[:-1:3], every.values[-1])
    assert np.cumsum((every.values[0], *every.critics)) == pytest.approx(every.values)


@pytest.mark.parametrize("stride", [1, 2, 3, 7, 1000])
def test_the_goal_in_the_last_frame_is_the_last_value(stride: int) -> None:
    reference = SUCCESSES[0].frames
    run = np.concatenate([np.repeat(reference[:1], 7, axis=0), reference[-1:]])
    (answer,) = ReferenceCritic().answer(
        [CriticQuery("value", "task", run, len(run) - 1, reference, "id", value_stride=stride)]
    )
    assert isinstance(answer, ValueVerdict) and answer.values[-1] == 100.0


def test_without_a_usable_reference_it_says_so() -> None:
    frames = SUCCESSES[0].frames[:1]
    for reference in (None, frames):
        (answer,) = ReferenceCritic().answer([CriticQuery("done", "task", frames, 0, reference, "id")])
        assert isinstance(answer, CriticFailed) and "reference" in str(answer)


def test_frames_of_any_size_are_compared() -> None:
    for height, width in ((1, 1), (5, 300), (480, 640), (33, 31)):
        frames = np.full((2, height, width, 3), 100, np.uint8)
        assert shrink(frames).shape == (2, min(height, 32), min(width, 32), 3)
        assert shrink(frames) == pytest.approx(100.0)
    big = CriticQuery("done", "task", ROLLOUTS[0].frames[:1], 0, np.zeros((2, 480, 640, 3), np.uint8), "other")
    assert isinstance(ReferenceCritic().answer([big])[0], DoneVerdict)


# Negatives.


def scene(arm: float, drawer: float, noise: np.random.Generator) -> np.ndarray:
    """uint8 (64,64,3): an arm, 0..1 of its way down, that trembles; and a drawer, 0..1 of its way out."""
    frame = np.full((64, 64, 3), 90, np.uint8)
    top, left = int(44 * arm) + noise.integers(0, 4), 20 + noise.integers(0, 4)
    frame[top : top + 14, left : left + 14] = (200, 30, 30)
    frame[48:58, 40 : 44 + int(16 * drawer)] = (30, 160, 40)
    return frame


def test_what_it_learned_from_it_does_not_take_for_the_end_again(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    # The arm comes down, and from half of the way on it pulls the drawer.
    way = np.linspace(0, 1, 13)
    reference = np.stack([scene(step, max(0, 2 * step - 1), noise) for step in way])
    fooled = np.stack([scene(1, 0, noise) for _ in range(12)])
    right = np.stack([scene(step, max(0, 2 * step - 1), noise) for step in way])

    def progress(frames: np.ndarray, task: str = "open the drawer", **settings: str) -> np.ndarray:
        critic = ReferenceCritic(VlacConfig(**settings))  # type: ignore[arg-type]
        critic.load()
        (answer,) = critic.answer([CriticQuery("value", task, frames, 0, reference=reference, reference_id="r")])
        assert isinstance(answer, ValueVerdict), answer
        return np.array(answer.values) / 100

    assert (progress(fooled) > 0.9).all()
    path = tmp_path / "negatives.npz"
    np.savez(path, frames=fooled[::2], task=["open the drawer"] * 6)
    learned = {"reference_negatives": str(path)}
    assert (progress(fooled, **learned) < 0.8).all()
    np.testing.assert_allclose(progress(right, **learned), way, atol=0.17)
    assert (progress(fooled, task="close the drawer", **learned) > 0.9).all()


@pytest.mark.parametrize(
    "stored",
    [
        {"pictures": np.zeros((1, 8, 8, 3), np.uint8)},
        {"frames": np.zeros((1, 8, 8, 3), np.float32)},
        {"frames": np.zeros((2, 8, 8, 3), np.uint8), "task": ["one"]},
    ],
    ids=["no frames", "floats", "one task"],
)
def test_negatives_that_are_none_are_refused_when_the_worker_starts(
    stored: dict[str, Any], tmp_path: Path
) -> None:
    np.savez(tmp_path / "negatives.npz", **stored)
    critic = ReferenceCritic(VlacConfig(reference_negatives=str(tmp_path / "negatives.npz")))
    with pytest.raises(FrameError, match=r"negatives\.npz"):
        critic.load()
