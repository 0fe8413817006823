"""The training rule and the gate, against a table of cases and against the blocking variant."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vlac_queue.scripted import FAILED, Script, ScriptedClient
from vlac_queue.errors import (
    ConfigError,
    CriticFailed,
    FrameError,
    NoWorkers,
    ProtocolError,
    QueueFull,
    VlacQueueError,
)
from vlac_queue.gate import RolloutGate
from vlac_queue.messages import ValueVerdict
from vlac_queue.rule import Course, Outcome, value_reward

FRAME = np.zeros((1, 2, 2, 3), np.uint8)


def play(
    client: Any, count: int, steps: int, *, chance: random.Random | None = None, **options: Any
) -> list[Outcome]:
    """A rollout loop as a trainer writes it; `chance` decides when it looks for finished episodes."""
    with RolloutGate(client, ["task"] * count, **options) as gate:
        active = set(range(count))
        for step in range(1, steps + 1):
            gate.observe(step, {index: FRAME for index in sorted(active)})
            if chance is None or chance.random() < 0.5:
                active -= gate.finished()
        return gate.settle()


def script(text: str, *values: Any) -> Script:
    """ "..d" is not done, not done, done; "x" a failure; "(xd)" a failure, then done when asked again."""
    answers: list[list[bool | VlacQueueError]] = []
    tries: list[bool | VlacQueueError] | None = None
    for letter in text:
        if letter == "(":
            tries = []
        elif letter == ")":
            assert tries is not None
            answers.append(tries)
            tries = None
        else:
            answer: bool | VlacQueueError = {".": False, "d": True, "x": FAILED}[letter]
            if tries is None:
                answers.append([answer] * 10)
            else:
                tries.append(answer)
    return Script(answers, list(values) or [(0.0, 50.0)])


BOTH = pytest.mark.parametrize("overlap", [False, True])


@BOTH
@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("d...", (), Outcome(1, True, 1.0)),
        (".d..", (), Outcome(2, True, 1.0)),
        ("...d", (), Outcome(4, True, 1.0)),  # done at the last step wins over value
        ("....", ((0.0, 25.0),), Outcome(4, False, 0.25, values=(0.0, 25.0))),
        ("....", ((0.0, -30.0),), Outcome(4, False, 0.0, values=(0.0, -30.0))),
        ("....", ((90.0, 130.0),), Outcome(4, False, 1.0, values=(90.0, 130.0))),
        ("....", ((100.0, 0.0),), Outcome(4, False, 0.0, values=(100.0, 0.0))),  # the last value counts
        ("d.d.", (), Outcome(1, True, 1.0)),
        ("d.x.", (), Outcome(1, True, 1.0)),  # a failure after the end counts for nothing
    ],
)
def test_an_episode_ends_as_the_rule_says(text: str, values: Any, expected: Outcome, overlap: bool) -> None:
    client = ScriptedClient([script(text, *values)])
    assert play(client, 1, 4, overlap=overlap) == [expected]


@BOTH
@pytest.mark.parametrize(
    ("text", "confirm", "expected"),
    [
        ("dd..", 2, Outcome(2, True, 1.0)),
        ("d.dd", 2, Outcome(4, True, 1.0)),
        ("d.d.", 2, Outcome(4, False, 0.5, values=(0.0, 50.0))),
        ("...d", 2, Outcome(4, False, 0.5, values=(0.0, 50.0))),  # no step is left to say it again
        (".ddd", 3, Outcome(4, True, 1.0)),
        ("dd.d", 3, Outcome(4, False, 0.5, values=(0.0, 50.0))),
        ("dd.x", 2, Outcome(2, True, 1.0)),
        ("d(xd)..", 2, Outcome(2, True, 1.0)),  # asked again, and then done
    ],
)
def test_done_must_be_said_at_as_many_steps_in_a_row_as_is_set(
    text: str, confirm: int, expected: Outcome, overlap: bool
) -> None:
    client = ScriptedClient([script(text)], done_confirm=confirm)
    assert play(client, 1, 4, overlap=overlap, on_failure="retry") == [expected]
    client = ScriptedClient([script(text)])
    assert play(client, 1, 4, overlap=overlap, on_failure="retry", done_confirm=confirm) == [expected]


@BOTH
def test_a_failure_between_two_dones_ends_its_episode(overlap: bool) -> None:
    (failed,) = play(ScriptedClient([script("dxd.")]), 1, 4, overlap=overlap, on_failure="mask", done_confirm=2)
    assert (failed.masked, failed.finish_step) == (True, 2)


@BOTH
def test_no_value_is_asked_where_the_task_was_done(overlap: bool) -> None:
    client = ScriptedClient([script(".d.."), script("....")])
    play(client, 2, 4, overlap=overlap)
    assert [episode.asked.count("value") for episode in client.opened] == [0, 1]


def test_without_overlap_nothing_is_asked_after_the_end() -> None:
    client = ScriptedClient([script(".d..")])
    play(client, 1, 4, overlap=False)
    assert client.opened[0].asked == ["done", "done"]


@BOTH
def test_episodes_close_whatever_happens(overlap: bool) -> None:
    client = ScriptedClient([script("x..."), script("....")])
    with pytest.raises(CriticFailed, match="nonsense"):
        play(client, 2, 4, overlap=overlap, on_failure="raise")
    assert all(episode.closed for episode in client.opened)


@BOTH
def test_a_failure_masks_its_episode_alone(overlap: bool) -> None:
    client = ScriptedClient([script(".x.d"), script("..d."), script("....", FAILED)])
    failed, done, no_value = play(client, 3, 4, overlap=overlap, on_failure="mask")
    assert (failed.masked, failed.reward, failed.finish_step) == (True, None, 2)
    assert "nonsense" in failed.error
    assert done == Outcome(3, True, 1.0)
    assert (no_value.masked, no_value.reward, no_value.finish_step) == (True, None, 4)


@BOTH
def test_a_failure_is_retried_and_then_raised(overlap: bool) -> None:
    client = ScriptedClient([script(".(xxd).")])
    assert play(client, 1, 3, overlap=overlap, on_failure="retry", retries=2) == [Outcome(2, True, 1.0)]
    client = ScriptedClient([script(".(xxd).")])
    with pytest.raises(CriticFailed):
        play(client, 1, 3, overlap=overlap, on_failure="retry", retries=1)


def test_a_failed_value_is_retried() -> None:
    client = ScriptedClient([script("..", FAILED, (0.0, 40.0))])
    assert play(client, 1, 2, on_failure="retry", retries=1)[0].reward == 0.4


ANSWERS = st.lists(st.sampled_from(["d", "d", ".", ".", "x", "(xd)", "(x.)", "(xx.)"]), min_size=6, max_size=6)
VALUES = st.lists(st.one_of(st.just(FAILED), st.floats(-200, 200).map(lambda v: (0.0, v))), min_size=1, max_size=1)


@settings(max_examples=400, deadline=None)
@given(
    scripts=st.lists(st.tuples(ANSWERS.map("".join), VALUES), min_size=1, max_size=4),
    on_failure=st.sampled_from(["raise", "mask", "retry"]),
    confirm=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_late_answers_in_any_order_change_nothing(scripts: Any, on_failure: str, confirm: int, seed: int) -> None:
    def run(overlap: bool) -> Any:
        chance = random.Random(seed) if overlap else None
        made = [script(text, *values * 3) for text, values in scripts]
        client = ScriptedClient(made, chance)
        options = {"overlap": overlap, "on_failure": on_failure, "retries": 2, "done_confirm": confirm}
        try:
            return play(client, len(made), 6, chance=chance, **options)
        except CriticFailed as error:
            return str(error)

    assert run(overlap=True) == run(overlap=False)


@BOTH
def test_a_value_that_contradicts_done_is_noted_and_changes_nothing(overlap: bool) -> None:
    scripts = [
        script("d..", (0.0, 20.0)),
        script("d..", (0.0, 90.0)),
        script("d..", FAILED),
        script("...", (0.0, 20.0)),
    ]

    def run(**config: Any) -> list[Outcome]:
        return play(ScriptedClient(scripts, **config), 4, 3, overlap=overlap)

    outcomes = run(audit_share=1.0, audit_value=50.0)
    assert [outcome.contradicted for outcome in outcomes] == [True, False, None, None]
    assert outcomes == run(audit_share=0.0)
    assert [outcome.contradicted for outcome in run(audit_share=0.0)] == [None] * 4
    assert [outcome.contradicted for outcome in run(audit_share=1.0, audit_value=10.0)] == [
        False,
        False,
        None,
        None,
    ]


@BOTH
def test_an_audit_that_fails_is_left_out(overlap: bool) -> None:
    client = ScriptedClient([script("d."), script("..")], audit_share=1.0)
    client.audit_errors = [NoWorkers("none")]
    assert [outcome.contradicted for outcome in play(client, 2, 2, overlap=overlap)] == [None, None]


def test_about_the_share_that_is_set_is_audited() -> None:
    client = ScriptedClient([script("d.")] * 400, audit_share=0.25)
    play(client, 400, 2)
    assert 50 < sum(episode.asked.count("value") for episode in client.opened) < 150


def test_push_failures_follow_the_policy() -> None:
    full = QueueFull("full")

    client = ScriptedClient([script(".."), script("d.")])
    client.push_errors = [full]
    masked, done = play(client, 2, 2, on_failure="mask")
    assert masked.masked and masked.finish_step == 1 and "full" in masked.error
    assert done == Outcome(1, True, 1.0)

    # The client has waited and tried again already, for patience_s.
    for on_failure in ("retry", "raise"):
        client = ScriptedClient([script("d.")])
        client.push_errors = [full]
        with pytest.raises(QueueFull):
            play(client, 1, 2, on_failure=on_failure)


def test_a_queue_without_workers_follows_the_policy() -> None:
    client = ScriptedClient([script(".."), script("..")])
    client.ask_errors = [NoWorkers("none")]
    assert all(outcome.masked for outcome in play(client, 2, 2, on_failure="mask"))

    for on_failure in ("retry", "raise"):
        client = ScriptedClient([script("d.")])
        client.ask_errors = [NoWorkers("none")]
        with pytest.raises(NoWorkers):
            play(client, 1, 2, on_failure=on_failure)


def test_the_callers_mistakes_are_raised_even_when_failures_are_masked() -> None:
    client = ScriptedClient([script("....")])
    client.push_errors = [FrameError("wrong dtype")]
    with pytest.raises(FrameError):
        play(client, 1, 2, on_failure="mask")
    with RolloutGate(ScriptedClient([script("....")]), ["task"]) as gate:
        gate.observe(2, {0: FRAME})
        with pytest.raises(ProtocolError, match="must be later"):
            gate.observe(2, {0: FRAME})
    with (
        RolloutGate(ScriptedClient([script("....")]), ["task"]) as gate,
        pytest.raises(ProtocolError, match="never observed"),
    ):
        gate.settle()
    with pytest.raises(ConfigError, match="on_failure"):
        RolloutGate(ScriptedClient([]), [], on_failure="ignore")
    with pytest.raises(ConfigError, match="done_confirm"):
        RolloutGate(ScriptedClient([]), [], done_confirm=0)


def test_frames_of_all_episodes_may_be_one_array() -> None:
    for frames in (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 1, 4, 4, 3), np.uint8)):
        client = ScriptedClient([script(".d"), script("..")])
        with RolloutGate(client, ["task", "task"]) as gate:
            gate.push(frames)
            gate.observe(1, frames)
            assert [outcome.done for outcome in gate.settle()] == [True, False]


@pytest.mark.parametrize(
    "frames", [np.zeros((4, 4, 3), np.uint8), np.zeros((3, 4, 4, 3), np.uint8), [FRAME, FRAME]]
)
def test_other_frames_are_refused_with_what_is_wanted(frames: Any) -> None:
    with RolloutGate(ScriptedClient([script("."), script(".")]), ["task", "task"]) as gate:
        for send in (gate.push, lambda seen: gate.observe(1, seen)):
            with pytest.raises(FrameError, match=r"a mapping .* or an array of all 2 episodes, uint8 \(N,H,W,3\)"):
                send(frames)


@pytest.mark.parametrize("index", [-1, 2, "0", None])
def test_an_index_that_is_no_episode_is_refused(index: Any) -> None:
    client = ScriptedClient([script("."), script(".")])
    with RolloutGate(client, ["task", "task"]) as gate:
        for send in (gate.push, lambda seen: gate.observe(1, seen)):
            with pytest.raises(ProtocolError, match="this gate has 2, counted from 0"):
                send({0: FRAME, index: FRAME})
        assert not any(episode.frames for episode in client.opened)


def test_one_text_is_not_a_list_of_tasks() -> None:
    with pytest.raises(ProtocolError, match="a list of texts"):
        RolloutGate(ScriptedClient([]), "open the drawer")


def test_settling_again_counts_nothing_twice() -> None:
    client = ScriptedClient([script("d"), script(".")])
    with RolloutGate(client, ["task", "task"]) as gate:
        gate.observe(1, {0: FRAME, 1: FRAME})
        first = gate.settle()
        client.outcomes = []
        assert gate.settle() == first
        assert client.outcomes == [] and [episode.asked for episode in client.opened] == [
            ["done"],
            ["done", "value"],
        ]


def test_episodes_are_settled_and_opened_again_while_others_go_on() -> None:
    client = ScriptedClient([script("..", (0.0, 30.0)), script("..d"), script(".")])
    with RolloutGate(client, ["a", "b"], references=[None, FRAME], overlap=False) as gate:
        gate.observe(None, {0: FRAME, 1: FRAME})
        gate.observe(None, {0: FRAME, 1: FRAME})
        first, other = client.opened
        assert gate.settle([0]) == [Outcome(2, False, 0.3, values=(0.0, 30.0))]
        assert gate.finished() == {0} and gate.scores == [0.0, 0.0]
        gate.reopen([0])
        assert first.closed and not other.closed and math.isnan(gate.scores[0])
        gate.observe(None, {0: FRAME, 1: FRAME})
        assert gate.settle() == [Outcome(1, False, 0.5, values=(0.0, 50.0)), Outcome(3, True, 1.0)]
        assert gate.scores == [0.0, 1.0] and first.asked == ["done", "done", "value"]


def test_frames_before_the_first_step_are_pushed_but_not_asked_about() -> None:
    client = ScriptedClient([Script([[True], [False], [False]])])
    with RolloutGate(client, ["task"], overlap=False) as gate:
        gate.push({0: FRAME})
        gate.observe(1, {0: FRAME})
        gate.observe(2, {0: FRAME})
        assert gate.settle()[0].done is False
    assert client.opened[0].asked == ["done", "done", "value"]


def test_the_decisive_step_waits_for_the_answers_before_it() -> None:
    course = Course()
    course.steps = [1, 2, 3]
    for answers, decisive, first_open in (
        ({2: True}, None, 1),
        ({1: False, 2: True, 3: True}, 2, None),
        ({1: False, 2: False, 3: False}, None, None),
    ):
        course.answers = dict(answers)
        assert (course.decisive, course.first_open) == (decisive, first_open)


@pytest.mark.parametrize(("last", "reward"), [(0, 0.0), (37.5, 0.375), (100, 1.0), (-1e9, 0.0), (1e9, 1.0)])
def test_the_value_reward_is_the_last_value_clipped(last: float, reward: float) -> None:
    assert value_reward(ValueVerdict((99.0, float(last)), ())) == reward


def test_an_earlier_done_that_comes_late_beats_a_push_that_failed() -> None:
    client = ScriptedClient([script("d..")], random.Random(1))
    client.poll = lambda pendings: None  # type: ignore[method-assign]  # nothing comes before settle()
    with RolloutGate(client, ["task"], overlap=True, on_failure="mask") as gate:
        gate.observe(1, {0: FRAME})
        client.push_errors = [QueueFull("full")]
        gate.observe(2, {0: FRAME})
        assert gate.finished() == {0}
        assert gate.settle() == [Outcome(1, True, 1.0)]


@pytest.mark.parametrize("overlap", [True, False])
def test_what_waiting_would_have_taken_counts_up_to_the_end(overlap):
    """Answers take 0.06 s each; episodes of a step are asked together."""
    client = ScriptedClient([script(".d."), script("..")])
    with RolloutGate(client, ["a", "b"], overlap=overlap) as gate:
        gate.observe(1, {0: FRAME, 1: FRAME})
        gate.observe(2, {0: FRAME, 1: FRAME})
        gate.observe(3, {0: FRAME})
        gate.settle()
        # Steps 1 and 2, and the value of the second episode.
        assert gate.critic_s == pytest.approx(3 * 0.06)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_callers_failure_after_done_does_not_matter(overlap):
    with RolloutGate(ScriptedClient([script("d.")]), ["task"], overlap=overlap) as gate:
        gate.observe(1, {0: FRAME})
        gate.fail(2, {0: VlacQueueError("the simulator broke")})
        assert gate.settle() == [Outcome(1, done=True, reward=1.0)]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_callers_failure_masks_its_episode_alone(overlap):
    client = ScriptedClient([script(".."), script("..")])
    with RolloutGate(client, ["a", "b"], overlap=overlap, on_failure="mask") as gate:
        gate.observe(1, {0: FRAME, 1: FRAME})
        gate.fail(2, {0: VlacQueueError("the simulator broke")})
        gate.observe(2, {1: FRAME})
        failed, other = gate.settle()
    assert failed == Outcome(2, done=False, reward=None, masked=True, error="the simulator broke")
    assert other.reward == 0.5


@pytest.mark.parametrize("on_failure", ["raise", "retry"])
def test_a_callers_failure_is_raised_once_nothing_earlier_ended_the_episode(on_failure):
    with RolloutGate(ScriptedClient([script("..")]), ["task"], on_failure=on_failure) as gate:
        gate.observe(1, {0: FRAME})
        gate.fail(2, {0: VlacQueueError("the simulator broke")})
        with pytest.raises(VlacQueueError, match="the simulator broke"):
            gate.settle()


def test_a_callers_failure_must_come_after_what_was_observed():
    with RolloutGate(ScriptedClient([script("..")]), ["task"]) as gate:
        gate.observe(1, {0: FRAME})
        with pytest.raises(ProtocolError, match="step 1 must be later"):
            gate.fail(1, {0: VlacQueueError("the simulator broke")})
