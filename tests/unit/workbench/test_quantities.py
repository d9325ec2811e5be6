"""Numbers with units, against values worked out by hand and Python's own formatting."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.quantities import quantity, significant


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (16716.22, "ms", "16.7 s"),
        (250.0, "ms", "250 ms"),
        (0.4, "ms", "400 µs"),
        (999.9, "ms", "1 s"),
        (0.0123, "s", "12.3 ms"),
        (4000.0, "s", "4,000 s"),
        (6.912e4, "tokens/s", "69,100 tokens/s"),
        (2.0, "requests/s", "2 requests/s"),
        (0.123456, "share", "12.3%"),
        (0.005, "share", "0.5%"),
        (1.0, "share", "100%"),
        (0.0006, "$", "$0.0006"),
        (1234.5, "$/h", "$1,230/h"),
        (1234567, "requests", "1,234,567"),
        (169.0, "requests", "169"),
        (0.0, "ms", "0 s"),
        (-1500.0, "ms", "-1.5 s"),
        (math.nan, "ms", "-"),
        (None, "$", "-"),
    ],
)
def test_quantity(value: float | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_three_significant_digits_and_no_exponent(value: float) -> None:
    text = significant(value)
    assert "e" not in text
    assert float(text.replace(",", "")) == float(f"{value:.3g}")
