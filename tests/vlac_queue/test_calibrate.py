"""`vlac-queue calibrate`: what is counted, what is recommended, and where episodes are read from."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Workers
from tests.workers.critics import NAME, frame
from vlac_queue import CriticClient
from vlac_queue.cli import main
from vlac_queue.commands.calibrate.choice import choose
from vlac_queue.commands.calibrate.judged import Judged, Truth
from vlac_queue.commands.calibrate.tally import CONFIRMS, THRESHOLDS, Tally, done_places, enough, rate
from vlac_queue.rule import Course

COLUMN = {float(threshold): place for place, threshold in enumerate(THRESHOLDS)}


def calibrate(*arguments: Any) -> Result:
    return CliRunner().invoke(
        main, ["calibrate", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "120"}
    )


def judged(
    scores: Sequence[float], truth: Truth, *, whole: bool = True, frames: Sequence[int] | None = None
) -> Judged:
    numbers = tuple(range(len(scores)) if frames is None else frames)
    return Judged("e", "lift", numbers, tuple(scores), whole, 0.9, truth)


def tally(*episodes: Judged) -> Tally:
    made = Tally("")
    for episode in episodes:
        made.add(episode)
    return made


# Counting.


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_an_episode_ends_where_the_rule_ends_it(scores: list[float]) -> None:
    found = done_places(scores)
    for row, confirm in enumerate(CONFIRMS):
        for column in (0, 37, 90, 99):
            course = Course(confirm)
            course.steps = list(range(len(scores)))
            course.answers = {step: bool(score > THRESHOLDS[column]) for step, score in enumerate(scores)}
            assert found[row, column] == (len(scores) if course.decisive is None else course.decisive)


def test_episodes_are_counted_by_how_they_would_have_ended() -> None:
    counted = tally(
        judged([0.1, 0.5, 0.95], Truth(True, 20), frames=[0, 10, 30]),
        judged([0.1, 0.95, 0.2], Truth(True, 2)),  # too early
        judged([0.1, 0.2, 0.3], Truth(True)),  # missed
        judged([0.1, 0.92, 0.93], Truth(False)),
        judged([0.1, 0.2, 0.3], Truth(False)),
        judged([0.1, 0.91], Truth(False), whole=False),
    )
    at_90 = counted.figures(0, COLUMN[0.9])
    assert {name: at_90[name] for name in ("right", "early", "wrong", "missed", "quiet", "unknown")} == {
        "right": 1, "early": 1, "wrong": 2, "missed": 1, "quiet": 1, "unknown": 0,
    }  # fmt: skip
    assert at_90["delay"] == 10 and at_90["precision"]["rate"] == 1 / 4
    assert at_90["recall"]["rate"] == 1 / 3 and at_90["false_done_rate"]["rate"] == 3 / 4
    twice = counted.figures(1, COLUMN[0.9])
    assert (twice["right"], twice["early"], twice["wrong"], twice["unknown"]) == (0, 0, 1, 1)
    # An episode that ended at 0.91 says nothing of 0.95.
    assert counted.figures(0, COLUMN[0.95])["unknown"] == 1
    assert counted.figures(0, COLUMN[0.3])["early"] == 2


def test_intervals_are_wilsons() -> None:
    found = rate(8, 10)
    assert found is not None
    assert found["low"] == pytest.approx(0.4902, abs=1e-4) and found["high"] == pytest.approx(0.9433, abs=1e-4)
    assert rate(0, 0) is None
    count = enough(0.02)
    none, fewer = rate(0, count), rate(0, count - 1)
    assert none is not None and fewer is not None and none["high"] <= 0.02 < fewer["high"]


def plain_figures(episodes: Sequence[Judged], threshold: float, confirm: int) -> dict[str, Any]:
    """The figures as docs/datasets.md defines them, counted episode by episode."""
    right: list[tuple[Truth, int]] = []
    false: list[tuple[Truth, int]] = []
    known: list[tuple[Truth, int | None]] = []
    for episode in episodes:
        truth = episode.truth
        assert truth is not None
        runs = [episode.scores[max(0, end - confirm) : end] for end in range(1, len(episode.scores) + 1)]
        done = [len(run) == confirm and min(run) > threshold for run in runs]
        if True not in done:
            known += [(truth, None)] * episode.whole
            continue
        frame = episode.frames[done.index(True)]
        known.append((truth, frame))
        in_time = truth.success and (truth.frame is None or frame >= truth.frame)
        (right if in_time else false).append((truth, frame))
    never_and_failed = sum(frame is None and not truth.success for truth, frame in known)
    delays = [frame - truth.frame for truth, frame in right if truth.frame is not None]
    return {
        "precision": (len(right), len(right) + len(false)),
        "recall": (len(right), sum(truth.success for truth, _ in known)),
        "false_done_rate": (len(false), len(false) + never_and_failed),
        "delay": sum(delays) / len(delays) if delays else None,
        "unknown": len(episodes) - len(known),
    }


episodes_of_any_kind = st.builds(
    lambda scores, step, truth, whole: judged(
        scores, truth, whole=whole, frames=range(0, step * len(scores), step)
    ),
    st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.51, 0.9, 0.95, 1.0]), min_size=1, max_size=6),
    st.integers(1, 7),
    st.just(Truth(False)) | st.builds(Truth, st.just(True), st.none() | st.integers(0, 40)),
    st.booleans(),
)


@given(
    st.lists(episodes_of_any_kind, min_size=1, max_size=30),
    st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    st.integers(1, 3),
)
def test_figures_are_those_of_a_plain_count(episodes: list[Judged], threshold: float, confirm: int) -> None:
    figures = tally(*episodes).figures(CONFIRMS.index(confirm), COLUMN[threshold])
    plain = plain_figures(episodes, threshold, confirm)
    assert figures["delay"] == pytest.approx(plain["delay"]) and figures["unknown"] == plain["unknown"]
    for name in ("precision", "recall", "false_done_rate"):
        part, whole = plain[name]
        if not whole:
            assert figures[name] is None
            continue
        assert figures[name]["rate"] == pytest.approx(part / whole)
        # Wilson's interval: the rates from which what was seen is 1.96 standard deviations away.
        for end in ("low", "high"):
            there = figures[name][end]
            assert (part / whole - there) ** 2 == pytest.approx(
                1.959964**2 * there * (1 - there) / whole, abs=1e-9
            )


# Recommending.


def many_episodes(failures: int) -> Tally:
    """Successes score 0.95 at their end; failures 0.6, and one of fifty 0.8."""
    successes = [judged([0.1, 0.2, 0.95], Truth(True, 2)) for _ in range(50)]
    scores = [0.8 if number % 50 == 0 else 0.6 for number in range(failures)]
    return tally(*successes, *(judged([0.1, score], Truth(False)) for score in scores))


def test_the_threshold_lies_in_the_middle_of_those_that_are_good_enough() -> None:
    choice = choose(many_episodes(500), 0.03)
    assert choice.place is not None
    row, column = choice.place
    # From 0.6 on 2 % of the failures are found done, and at 0.95 no success is.
    assert CONFIRMS[row] == 1 and 0.75 <= THRESHOLDS[column] <= 0.8 and not choice.shown
    assert "up to 3." in choice.remark and "episodes that are not done are needed" in choice.remark
    strict = choose(many_episodes(500), 0.01)
    assert (
        strict.place is not None
        and 0.8 < THRESHOLDS[strict.place[1]] < 0.95
        and strict.shown
        and not strict.remark
    )
    few = choose(many_episodes(20), 0.01)
    assert few.place is not None and not few.shown and "too few episodes" in few.remark


SUCCESS = judged([0.1, 0.95], Truth(True, 1))


@pytest.mark.parametrize(
    ("episodes", "remark"),
    [
        ([SUCCESS, *[judged([1.0, 1.0, 1.0], Truth(False))] * 9], "the least is 100.0%"),
        # What finds nothing has no false dones either.
        ([SUCCESS, *[judged([0.96, 0.96], Truth(False))] * 9], "the least is 100.0%"),
        ([SUCCESS] * 9, "no episode is known to have failed"),
        ([judged([0.1], Truth(False))] * 9, "no episode is known to have succeeded"),
        ([judged([0.0, 0.0], Truth(True)), judged([0.0], Truth(False))], "the critic finds none"),
        (
            [judged([0.1, 0.3], Truth(True, 1), whole=False), judged([0.4], Truth(False), whole=False)] * 9,
            "the least is 100.0%",
        ),
    ],
)
def test_where_no_threshold_will_do_none_is_recommended(episodes: list[Judged], remark: str) -> None:
    choice = choose(tally(*episodes), 0.02)
    assert choice.place is None and not choice.shown and remark in choice.remark


def test_of_one_episode_of_each_kind_it_says_that_they_are_few() -> None:
    choice = choose(tally(SUCCESS, judged([0.1, 0.2], Truth(False))), 0.02)
    assert choice.place is not None and not choice.shown
    assert "too few episodes: its false-done rate may be up to 79.3%" in choice.remark


def test_a_single_false_done_is_outvoted_by_two_in_a_row() -> None:
    spikes = [judged([0.1, 1.0, 0.1, 0.1], Truth(False)) for _ in range(20)]
    successes = [judged([0.1, 0.2, 1.0, 1.0], Truth(True, 2)) for _ in range(20)]
    choice = choose(tally(*spikes, *successes), 0.02)
    assert choice.place is not None and CONFIRMS[choice.place[0]] == 2


# From files.


def test_a_logs_episodes_are_judged_by_the_simulator_and_by_people(
    client: CriticClient, workers: Workers, tmp_path: Path
) -> None:
    workers.start(NAME)
    config = replace(client.config, decision_log=str(tmp_path / "log"), done_threshold=0.5)
    runs: dict[str, tuple[list[int], Any]] = {
        "right": ([0, 50, 200], 2),
        "false": ([0, 250], None),
        "quiet": ([0, 20, 40], None),
        "marked": ([0, 20, 230], "unknown"),
        "nobody": ([0, 20, 230], "unknown"),
    }
    with CriticClient(config) as logging:
        for name, (reds, truth) in runs.items():
            with logging.episode(f"task of {name}", id=name) as episode:
                for red in reds:
                    episode.observe(frame(red)).result()
                if truth != "unknown":
                    logging.note_truth(episode, truth)
    CliRunner().invoke(main, ["episodes", "mark", "marked", "success", "--log", str(tmp_path / "log")])
    result = calibrate(tmp_path / "log", "--json", "--false-done", 0.5)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["episodes"], found["judged"], found["threshold_now"]) == (5, 4, 0.5)
    at_now = next(each for each in found["total"]["settings"] if (each["threshold"], each["confirm"]) == (0.5, 1))
    assert (at_now["right"], at_now["wrong"], at_now["quiet"], at_now["delay"]) == (2, 1, 1, 0)
    assert [task["task"] for task in found["tasks"]] == sorted(
        f"task of {name}" for name in runs if name != "nobody"
    )
    assert found["recommended"]["done_confirm"] == 1 and not found["enough_episodes"]


def test_labels_are_judged_by_a_table(client: CriticClient, workers: Workers, tmp_path: Path) -> None:
    workers.start(NAME)
    data = tmp_path / "data"
    data.mkdir()
    with (
        (data / "episodes.csv").open("w", newline="") as file,
        (tmp_path / "truth.csv").open("w", newline="") as told,
    ):
        table, truth = csv.writer(file), csv.writer(told)
        table.writerow(["file", "task"])
        truth.writerow(["episode", "success", "frame"])
        for number in range(8):
            frames = np.zeros((4, 8, 8, 3), np.uint8)
            frames[:, 0, 0, 0] = [0, 50, 240 if number % 2 else 100, 245 if number % 2 else 110]
            np.save(data / f"{number}.npy", frames)
            table.writerow([f"{number}.npy", "lift" if number < 4 else "turn"])
            if number < 6:
                truth.writerow([number if number < 3 else f"{number}.npy", number % 2, 1 if number % 2 else ""])
    label = ["label", str(data), "--no-png", "--redis-url", client.config.redis_url]
    assert CliRunner().invoke(main, label, catch_exceptions=False).exit_code == 0
    folder, table_of_truth = data / "vlac-labels", tmp_path / "truth.csv"
    result = calibrate(folder, "--truth", table_of_truth, "--png", tmp_path / "curves.png")
    assert result.exit_code == 0, result.output
    assert "6 episodes of 8 with a known end: 3 succeeded, 3 failed" in result.stdout
    assert "export VLAC_DONE_THRESHOLD=0.6" in result.stdout and "too few episodes" in result.stderr
    assert "100 % (44-100)" in result.stdout and "+1.0" in result.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    nothing = calibrate(folder)
    assert nothing.exit_code == 1 and "none has an end that is known: give --truth" in nothing.stderr
    table_of_truth.write_text("episode,success\n0,perhaps\n")
    wrong = calibrate(folder, "--truth", table_of_truth)
    assert wrong.exit_code == 1 and "line 2: it needs an episode, success (1 or 0)" in wrong.stderr
    for text, message in {
        "episode;success\n0;1\n": "and not with the names of its columns, separated by commas",
        "": "begins with ''",
        "episode,success\n0,1\n\n0,0\n": "line 4: '0' stands there before, with another end",
        "episode,success\n0,1\n0.npy,0\n": "says two things of episode '0.npy'",
        "episode,success,frame\n0,1,99999999999999999999\n": "line 2: it needs",
        "episode,success\nschl\xfcssel,1\n": "no table of successes in UTF-8",
    }.items():
        table_of_truth.write_bytes(text.encode("latin-1"))
        wrong = calibrate(folder, "--truth", table_of_truth)
        assert wrong.exit_code == 1 and message in wrong.stderr, (text, wrong.stderr)
    table_of_truth.write_text("\ufeffepisode, success\n0, 0\n1, 1\n 0.npy ,failure\n77,1\n", encoding="utf-8")
    odd = calibrate(folder, "--truth", table_of_truth)
    assert "2 episodes of 8 with a known end" in odd.stdout and "1 episode, '77'" in odd.stderr
    assert calibrate(tmp_path).exit_code == 1
