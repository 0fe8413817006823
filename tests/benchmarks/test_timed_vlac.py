"""The stand-in that sleeps for as long as VLAC computes: what it counts, computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.timed_vlac import TimedModel, TimedVlac, total_work
from vlac_queue.config import VlacConfig
from vlac_queue.costs import COSTS, Costs, read_costs
from vlac_queue.errors import ConfigError
from vlac_queue.messages import DoneVerdict, ValueVerdict
from workers.critics import CriticQuery

TORCH = Costs(vision_s=1e-5, language_s=1e-6, call_s=1e-4, keeps_prefixes=False, source="a test")
VLLM = replace(TORCH, keeps_prefixes=True)


def frames(count: int, first: int = 0) -> np.ndarray:
    """`count` frames, each of a content of its own."""
    return np.stack([np.full((8, 8, 3), first + i, np.uint8) for i in range(count)])


def critic(costs: Costs, monkeypatch: pytest.MonkeyPatch, **settings: object) -> tuple[TimedVlac, TimedModel]:
    monkeypatch.setitem(COSTS, "pt", costs)
    made = TimedVlac(VlacConfig(critic="vlac", **settings))  # type: ignore[arg-type]
    made.load()
    return made, made.model


def done(shown: np.ndarray, frame: int) -> CriticQuery:
    return CriticQuery("done", "open the drawer", shown, frame=frame)


def value(shown: np.ndarray, reference: np.ndarray | None = None) -> CriticQuery:
    return CriticQuery("value", "open the drawer", shown, frame=len(shown) - 1, reference=reference)


def test_a_value_list_over_64_frames_is_63_pairs_of_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = critic(TORCH, monkeypatch, max_images=126)
    (answer,) = made.answer([value(frames(64))])
    assert isinstance(answer, ValueVerdict) and len(answer.values) == 64
    assert (model.work.calls, model.work.rows, model.work.shown) == (1, 63, 126)
    assert model.work.language == 126 and model.work.vision == 64
    assert model.work.seconds == pytest.approx(1e-4 + 64e-5 + 126e-6)


def test_vision_is_spared_frames_that_were_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = critic(TORCH, monkeypatch, max_images=126)
    shown = frames(64)
    for start in range(0, 64, 16):
        queries = [
            CriticQuery("done", "open the drawer", shown[i : i + 1], frame=i) for i in range(start, start + 16)
        ]
        answers = made.answer(queries)
        assert all(isinstance(answer, DoneVerdict) and not answer.done for answer in answers)
    assert (model.work.calls, model.work.vision, model.work.language) == (4, 64, 64)
    made.answer([value(shown)])
    assert (model.work.vision, model.work.language) == (64, 64 + 126)


def test_rows_of_other_lengths_are_padded_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = critic(TORCH, monkeypatch)
    made.answer([done(frames(1, 200), 0), value(frames(3))])
    assert (model.work.calls, model.work.shown, model.work.language) == (1, 1 + 4, 3 * 2)


def test_a_prefix_costs_language_once_on_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, (one, other) = frames(9, 100), (frames(8), frames(8, 50))
    made, model = critic(VLLM, monkeypatch, max_images=1000)
    made.answer([value(one, reference)])
    # The reference and the episode's first frame once, then two images a pair.
    assert (model.work.shown, model.work.language) == (7 * 12, 10 + 7 * 2)
    assert model.work.vision == 9 + 8
    made.answer([value(other, reference)])
    assert model.work.language == 2 * (10 + 7 * 2) - 9  # the reference is known, another first frame isn't


def test_a_prefix_costs_language_once_in_a_row_of_calls_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, (one, other) = frames(9, 100), (frames(8), frames(8, 50))
    made, model = critic(TORCH, monkeypatch, max_images=1000)
    for calls in (1, 2):
        made.answer([value(one, reference)])
        made.answer([done(frames(1), 0)])
        read = 10 + calls * (7 * 2 + 1)
        assert (model.work.calls, model.work.language, model.work.vision) == (2 * calls, read, 9 + 8)
    made.answer([value(one, reference), value(other, reference)])  # of two episodes: the reference alone
    assert model.work.language == read + 14 * 3
    made.answer([value(other[:2], reference)])
    assert model.work.language == read + 14 * 3 + 3
    made.answer([done(frames(1), 0), value(one, reference)])  # of other lengths: nothing is shared
    assert model.work.language == read + 14 * 3 + 3 + 8 * 12


def test_measured_costs_replace_the_reckoned_ones(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text('{"costs": {"vision_s": 0.004, "call_s": 0.03, "source": "measured on an L40S"}}')
    assert read_costs(file, "pt") == Costs(0.004, COSTS["pt"].language_s, 0.03, False, "measured on an L40S")
    for text in ("{}", '{"costs": {"vision_s": "fast"}}', "["):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"benchmarks\.gpu --json"):
            read_costs(file, "pt")


def test_the_work_of_workers_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1", "2"):
        model = TimedModel(VlacConfig(), TORCH, tmp_path / name)
        made = TimedVlac(VlacConfig(critic="vlac"), model)
        made.load()
        made.answer([value(frames(3))])
    work = total_work(tmp_path)
    assert (work.calls, work.rows, work.vision) == (2, 4, 6)
