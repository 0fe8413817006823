from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest

from tests.workers.vlac_stand_in import OutOfMemoryError, StandInModel
from vlac_queue.errors import CriticFailed
from vlac_queue.frames import Frames
from workers.critics import AcceleratorLost
from workers.critics.vlac.calls import Reading, RowCalls, is_out_of_memory
from workers.critics.vlac.rows import Row, read_number


def image() -> Frames:
    return np.zeros((2, 2, 3), np.uint8)


def row(says: str, images: int = 1, max_tokens: int = 16, begins: tuple[Frames, ...] = ()) -> Row:
    return Row(says, (*begins, *(image() for _ in range(images))), read_number, max_tokens=max_tokens)


def echo(row: Row) -> str:
    """The row's prompt is its answer."""
    return row.prompt


def calls(model: StandInModel, max_images: int = 8) -> RowCalls:
    return RowCalls(model.complete, model.free_memory, max_images)


def failure(reading: Reading) -> CriticFailed:
    assert isinstance(reading, CriticFailed)
    return reading


def test_answers_come_in_the_order_of_the_rows_whatever_the_calls() -> None:
    model = StandInModel(echo)
    rows = [row(str(i), images=1 + i * 7 % 5) for i in range(20)]
    assert calls(model).ask(rows) == [float(i) for i in range(20)]
    assert len(model.calls) > 1


def test_no_rows_no_call() -> None:
    model = StandInModel(echo)
    assert calls(model).ask([]) == []
    assert model.tried == []


@pytest.mark.parametrize("max_images", [1, 5, 8, 100])
def test_a_call_holds_no_more_images_than_allowed_padding_counted(max_images: int) -> None:
    model = StandInModel(echo)
    rows = [row("1", images=1 + i % 4) for i in range(30)]
    calls(model, max_images).ask(rows)
    for call in model.calls:
        assert len(call) == 1 or len(call) * max(len(each.images) for each in call) <= max_images


@pytest.mark.parametrize(("max_images", "rows_a_call"), [(12, 1), (14, 2), (32, 11)])
def test_what_all_rows_of_a_call_begin_with_counts_once(max_images: int, rows_a_call: int) -> None:
    model = StandInModel(echo)
    begins = tuple(image() for _ in range(10))
    calls(model, max_images).ask([row("1", images=2, begins=begins) for _ in range(22)])
    assert {len(call) for call in model.calls} == {rows_a_call}


def test_other_words_before_the_same_images_share_nothing() -> None:
    model = StandInModel(echo)
    begins = tuple(image() for _ in range(10))
    calls(model, 20).ask([row(says, images=2, begins=begins) for says in ("1", "2")])
    assert [len(call) for call in model.calls] == [1, 1]


def test_short_rows_share_one_call() -> None:
    model = StandInModel(echo)
    calls(model, 8).ask([row("1"), row("2", images=2), row("3"), row("4", images=2)])
    assert len(model.calls) == 1


def test_rows_that_may_speak_long_have_calls_of_their_own() -> None:
    model = StandInModel(echo)
    calls(model, 100).ask([row("1"), row("2", max_tokens=512), row("3")])
    assert [[each.max_tokens for each in call] for call in model.calls] == [[16, 16], [512]]


def test_out_of_memory_halves_calls_until_they_fit_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = StandInModel(echo, memory=3)
    with caplog.at_level(logging.WARNING):
        readings = calls(model, 16).ask([row(str(i)) for i in range(16)])
    assert readings == [float(i) for i in range(16)]
    assert max(map(len, model.calls)) == 2
    assert "ran out of memory on a call of 16 images; going on with at most 8" in caplog.text
    assert model.freed == 3


def test_calls_stay_small_after_running_out_of_memory_until_reset() -> None:
    model = StandInModel(echo, memory=3)
    asker = calls(model, 16)
    asker.ask([row("1")] * 16)
    model.tried.clear()
    asker.ask([row("1")] * 4)
    assert model.tried == [2, 2]
    model.tried.clear()
    asker.reset()
    asker.ask([row("1")] * 4)
    assert model.tried[0] == 4


def test_one_row_beyond_memory_fails_alone_and_names_the_setting() -> None:
    model = StandInModel(echo, memory=3)
    small, big = calls(model, 4).ask([row("1"), row("2", images=4)])
    assert small == 1.0
    assert "VLAC_GPU_MEMORY_FRACTION" in str(failure(big))


def test_a_row_that_breaks_its_call_fails_alone() -> None:
    model = StandInModel(lambda row: KeyError("boom") if row.prompt == "bad" else row.prompt)
    readings = calls(model).ask([row("1"), row("bad"), row("3")])
    assert (readings[0], readings[2]) == (1.0, 3.0)
    assert "boom" in str(failure(readings[1]))
    assert "KeyError" in failure(readings[1]).traceback


@pytest.mark.parametrize("said", ["nan", "inf", "", "banana " * 100, "1.02.0"])
def test_an_answer_that_is_no_number_fails_its_row_and_shows_what_was_said(said: str) -> None:
    first, second = calls(StandInModel(echo)).ask([row(said), row("5")])
    message = str(failure(first))
    assert repr(said[:100])[:-1] in message
    assert len(message) < 300
    assert second == 5.0


def test_a_row_refused_by_the_model_keeps_its_reason() -> None:
    refused = CriticFailed("cut off")
    first, second = calls(StandInModel(lambda row: refused if row.prompt == "x" else "2")).ask(
        [row("x"), row("y")]
    )
    assert first is refused
    assert second == 2.0


def test_an_engine_that_loses_rows_is_asked_row_by_row() -> None:
    complete: Callable[..., list[str]] = lambda rows: [rows[0].prompt]  # noqa: E731
    assert RowCalls(complete, lambda: None, 8).ask([row("1"), row("2")]) == [1.0, 2.0]


@pytest.mark.parametrize(
    "text", ["CUDA error: an illegal memory access was encountered", "CUDA error: device-side assert triggered"]
)
def test_a_lost_accelerator_is_no_failure_of_rows(text: str) -> None:
    model = StandInModel(lambda row: RuntimeError(text))
    with pytest.raises(AcceleratorLost, match="start the worker again"):
        calls(model).ask([row("1"), row("2")])
    assert model.tried == [2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
