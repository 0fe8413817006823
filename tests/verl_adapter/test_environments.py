"""What stands around an environment, on small ones made here."""

from __future__ import annotations

import pickle
import queue

import numpy as np
import pytest

from verl_adapter.environments import (
    CHUNK_KEY,
    Chunk,
    LiberoWatch,
    RobotwinLatch,
    Signal,
    WatchedActions,
)


class Counter:
    """An environment that shows how many steps it took, is successful at some and breaks at one."""

    def __init__(self, successes: tuple[int, ...] = (), breaks_at: int = 0) -> None:
        self.steps = 0
        self.closed = False
        self._successes = successes
        self._breaks_at = breaks_at

    def set_init_state(self, state):
        return self._observe()

    def step(self, action):
        self.steps += 1
        if self.steps == self._breaks_at:
            raise RuntimeError("mujoco gave up")
        return self._observe(), 1.0, self.steps in self._successes, {"info": 1}

    def close(self):
        self.closed = True

    def _observe(self):
        image = np.zeros((2, 2, 3), np.uint8)
        image[1, 1] = self.steps  # upside down: turned, it comes first
        return {"agentview_image": image, "state": self.steps}


def play(watch: LiberoWatch, actions: list) -> tuple[list[Chunk], list[bool]]:
    """Runs chunks of actions as upstream's `env_worker` does; the last chunk shown and done of each."""
    chunks, dones = [], []
    for chunk in actions:
        for _ in watch.begin(chunk):
            observation, _, done, _ = watch.step([0.0])
            if done:
                break
        chunks.append(observation[CHUNK_KEY])
        dones.append(done)
    return chunks, dones


def test_done_is_hidden_and_latched():
    watch = LiberoWatch(Counter(successes=(3, 4, 7)), warmup=0, stride=0)
    chunks, dones = play(watch, [range(2), range(2), range(4)])
    assert dones == [False, False, False]
    assert [chunk.success_step for chunk in chunks] == [None, 3, 3]
    assert [chunk.step for chunk in chunks] == [2, 4, 8]


def test_settling_steps_do_not_count():
    watch = LiberoWatch(Counter(successes=(1, 2, 5)), warmup=2, stride=0)
    assert watch.set_init_state(0)[CHUNK_KEY].step == 0
    for _ in range(2):
        first = watch.step([0.0])[0][CHUNK_KEY]
    assert (first.step, first.success_step) == (0, None)
    chunks, _ = play(watch, [range(4)])
    assert (chunks[0].step, chunks[0].success_step) == (4, 3)


def test_the_picture_is_turned_as_upstream_turns_it():
    watch = LiberoWatch(Counter(), warmup=0, stride=0)
    (chunk,), _ = play(watch, [range(2)])
    assert chunk.frames.shape == (1, 2, 2, 3) and chunk.frames.flags.c_contiguous
    assert chunk.frames[0, 0, 0].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("stride", "expected"), [(0, [[4], [8]]), (1, [[1, 2, 3, 4], [5, 6, 7, 8]]), (3, [[3, 4], [6, 8]])]
)
def test_frames_within_a_chunk_are_taken_by_stride(stride, expected):
    watch = LiberoWatch(Counter(), warmup=0, stride=stride)
    chunks, _ = play(watch, [range(4), range(4)])
    assert [chunk.frames[:, 0, 0, 0].tolist() for chunk in chunks] == expected


def test_stop_ends_the_episode_without_a_step():
    env = Counter()
    watch = LiberoWatch(env, warmup=0, stride=0)
    chunks, dones = play(watch, [range(3), Signal.STOP])
    assert dones == [False, True] and env.steps == 3
    assert chunks[1] is chunks[0]


def test_a_simulator_that_breaks_ends_the_episode_and_says_why():
    watch = LiberoWatch(Counter(successes=(2,), breaks_at=5), warmup=0, stride=0)
    chunks, dones = play(watch, [range(4), range(4)])
    assert dones == [False, True]
    assert (chunks[1].step, chunks[1].success_step) == (5, 2)
    assert "mujoco gave up" in chunks[1].error and not chunks[0].error


def test_a_simulator_that_breaks_while_settling_is_upstreams_business():
    watch = LiberoWatch(Counter(breaks_at=1), warmup=2, stride=0)
    watch.set_init_state(0)
    with pytest.raises(RuntimeError, match="mujoco gave up"):
        watch.step([0.0])


def test_everything_else_is_the_environments_own():
    env = Counter()
    LiberoWatch(env, warmup=0, stride=0).close()
    assert env.closed


def test_chunks_and_signals_cross_processes():
    chunk = Chunk("e", 8, np.zeros((1, 2, 2, 3), np.uint8), 3, "no")
    back = pickle.loads(pickle.dumps(chunk))  # noqa: S301
    assert (back.episode, back.step, back.success_step, back.error) == ("e", 8, 3, "no")
    assert pickle.loads(pickle.dumps(Signal.STOP)) is Signal.STOP  # noqa: S301


def test_the_end_of_the_process_is_not_an_action():
    actions: queue.Queue = queue.Queue()
    env = Counter()
    watched = WatchedActions(actions, lambda: LiberoWatch(env, warmup=0, stride=0))
    for item in ([1, 2], Signal.STOP, None):
        actions.put(item)
    assert watched.get() == [1, 2]
    assert np.shape(watched.get()) == (1, 7)
    assert watched.get() is None


class Task:
    """Of a RoboTwin task what the latch touches."""

    def __init__(self) -> None:
        self.succeeds = False

    def check_success(self):
        return self.succeeds

    def take_action(self, action):
        if action == "break":
            raise RuntimeError("the physics exploded")
        return self.check_success()


def test_robotwins_success_is_hidden_and_latched():
    task = Task()
    latch = RobotwinLatch(task)
    assert task.take_action("push") is False and not latch.success
    task.succeeds = True
    assert task.take_action("push") is False and latch.success
    task.succeeds = False
    assert task.check_success() is False and latch.success


def test_robotwins_failure_is_remembered_and_raised():
    task = Task()
    latch = RobotwinLatch(task)
    with pytest.raises(RuntimeError):
        task.take_action("break")
    assert "the physics exploded" in latch.error
