"""What `benchmarks.gpu` makes of its measurements; that it runs is tests/real_vlac's."""

from __future__ import annotations

import pytest

from benchmarks.direct import Direct
from benchmarks.gpu import Queued, Row, costs


def row(batch: int, *, max_images: int = 128) -> Row:
    """A call of 20 ms, 2 ms of vision and 3 ms of language an image."""
    direct = Direct(batch / (0.020 + 0.005 * batch), batch / (0.020 + 0.003 * batch), 0, 0, max_images)
    return Row(batch, direct, Queued(1.0, 1.0, batch, 0, 0))


def test_costs_are_found_from_new_and_known_frames() -> None:
    found = costs([row(1), row(8), row(64)], "measured on a test")
    assert found is not None and found.source == "measured on a test"
    assert (found.vision_s, found.language_s, found.call_s) == pytest.approx((0.002, 0.003, 0.020))


def test_batches_of_several_calls_tell_nothing_of_costs() -> None:
    assert costs([row(8)], "") is None
    assert costs([row(8), row(64, max_images=32)], "") is None
