"""Numbers in words."""

from __future__ import annotations

import pytest

from vlac_queue.texts import many, ordinal


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(1, "query", "1 query"), (0, "query", "0 queries"), (2000, "job", "2,000 jobs"), (1, "retry", "1 retry")],
)
def test_a_noun_has_its_plural(count: int, noun: str, text: str) -> None:
    assert many(count, noun) == text


def test_ordinals() -> None:
    assert [ordinal(number) for number in (1, 2, 3, 4, 10, 11, 12, 13, 21, 112)] == [
        "1st", "2nd", "3rd", "4th", "10th", "11th", "12th", "13th", "21st", "112th",
    ]  # fmt: skip
