from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlac_queue import VlacConfig
from vlac_queue.errors import CriticFailed
from workers.critics.vlac.model import VlacModel
from workers.critics.vlac.rows import Row, read_number


def response(said: str, tokens: int = 2) -> Any:
    message = SimpleNamespace(content=said)
    return SimpleNamespace(
        choices=[SimpleNamespace(message=message)], usage=SimpleNamespace(completion_tokens=tokens)
    )


class StandInGacModel:
    """The methods of GAC_model that one call takes; it says what the test tells it to."""

    def __init__(self, responses: Sequence[Any]) -> None:
        self.template = SimpleNamespace(processor=SimpleNamespace(all_special_tokens=["<image>"]))
        self.infer_stats = SimpleNamespace(reset=lambda: None)
        self.max_tokens = 10_240
        self.configured: list[int] = []
        self.prepared = 0
        self.requests: list[tuple[str, int]] = []
        self._responses = list(responses)

    def set_config(self) -> None:
        self.configured.append(self.max_tokens)

    def _process_image_to_pil(self, image: Any) -> Any:
        self.prepared += 1
        return image

    def get_infer_requests(self, prompt: list[str], images: list[list[Any]]) -> list[Any]:
        self.requests = [(text, len(each)) for text, each in zip(prompt, images, strict=True)]
        return list(prompt)

    def chat(self, requests: list[Any]) -> tuple[list[Any], float]:
        return self._responses, 0.1

    def results_format(self, responses: list[Any], requests: list[Any], rich: bool) -> tuple[list[str], list[Any]]:
        said = responses[0].choices[0].message.content
        if rich and not said[-1:].isdigit():
            raise ZeroDivisionError("float division by zero")
        return [said + ".0" if rich else said], requests


def row(prompt: str = "p", images: Sequence[Any] = (), rich: bool = False, max_tokens: int = 16) -> Row:
    return Row(prompt, tuple(images) or (np.zeros((2, 2, 3), np.uint8),), read_number, rich, max_tokens)


def model(*responses: Any) -> tuple[VlacModel, StandInGacModel]:
    gac = StandInGacModel(responses)
    return VlacModel(gac, VlacConfig(), "cpu"), gac


def test_each_row_gets_its_own_answer_rich_or_not() -> None:
    made, _ = model(response("5"), response("7"))
    assert made.complete([row(), row(rich=True)]) == ["5", "7.0"]


def test_the_token_limit_is_set_before_the_call() -> None:
    made, gac = model(response("5"))
    made.complete([row(max_tokens=512)])
    assert gac.configured == [512]


def test_an_answer_as_long_as_the_limit_counts_as_cut_off() -> None:
    made, _ = model(response("12345", tokens=16), response("5", tokens=15))
    cut, whole = made.complete([row(), row()])
    assert isinstance(cut, CriticFailed) and "'12345'" in str(cut)
    assert whole == "5"


def test_a_row_that_cannot_be_weighed_fails_alone() -> None:
    made, _ = model(response("yes"), response("5"))
    bad, good = made.complete([row(rich=True), row(rich=True)])
    assert isinstance(bad, CriticFailed) and "'yes'" in str(bad)
    assert good == "5.0"


def test_a_row_that_the_engine_failed_keeps_its_place() -> None:
    made, _ = model(ValueError("bad image"), response("5"))
    bad, good = made.complete([row(), row()])
    assert isinstance(bad, CriticFailed) and "bad image" in str(bad)
    assert good == "5"


def test_lost_rows_are_an_error_of_the_call() -> None:
    made, _ = model(response("5"))
    with pytest.raises(CriticFailed, match="1 answers to 2 rows"):
        made.complete([row(), row()])


def test_a_frame_that_many_rows_show_is_prepared_once() -> None:
    a, b, c = np.zeros((3, 2, 2, 3), np.uint8)
    made, gac = model(response("5"), response("5"))
    made.complete([row("x", [a, b]), row("y", [b, c])])
    assert gac.requests == [("x", 2), ("y", 2)]
    assert gac.prepared == 3


def test_special_tokens_come_from_the_tokenizer() -> None:
    assert model()[0].special_tokens == ("<image>",)
