"""Statistics of measurements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Figure, exponent, line, quantile, ratio
from benchmarks.workers import busy_part

seconds = st.floats(1e-6, 1e3)


def test_a_quantile_is_a_value_that_was_measured() -> None:
    hundred = [float(value) for value in range(100, 0, -1)]
    assert quantile(hundred, 0.5) == 50
    assert quantile(hundred, 0.99) == 99
    assert quantile(hundred, 1.0) == 100
    assert quantile([7.0], 0.99) == quantile([7.0], 0.0) == 7.0
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


@given(st.lists(seconds, min_size=1), st.floats(0, 1))
def test_at_least_its_share_of_all_values_is_not_above_a_quantile(values: list[float], q: float) -> None:
    found = quantile(values, q)
    assert found in values
    assert sum(value <= found for value in values) >= q * len(values)


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine was three times slower in the second round, for both.
    assert ratio([200.0, 66.0, 220.0], [100.0, 33.0, 100.0]) == Figure(2.0, 2.0, 2.2)
    assert str(Figure(2.0, 1.91, 2.2)) == "2.00 (1.91..2.20)"
    with pytest.raises(ValueError):
        ratio([1.0, 2.0], [1.0])


@given(st.floats(1e-4, 1e-1), st.floats(1e-5, 1e-2))
def test_a_line_is_found_again(fixed: float, each: float) -> None:
    counts = [8, 64, 512]
    found = line(counts, [fixed + each * count for count in counts])
    assert found.fixed == pytest.approx(fixed, rel=1e-3, abs=1e-6)
    assert found.each == pytest.approx(each, rel=1e-3)


def test_a_line_needs_two_counts() -> None:
    with pytest.raises(ValueError, match="two counts"):
        line([8, 8], [1.0, 1.1])


@given(st.floats(0.5, 2.5))
def test_the_exponent_tells_linear_from_quadratic(power: float) -> None:
    counts = [8, 16, 64, 512]
    assert exponent(counts, [0.003 * count**power for count in counts]) == pytest.approx(power)


def test_busy_is_the_time_within_batches() -> None:
    assert busy_part([(10.0, 10.5), (10.5, 11.0)]) == 1.0
    assert busy_part([(10.0, 10.5), (11.5, 12.0)]) == 0.5
