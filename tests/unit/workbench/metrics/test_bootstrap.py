"""Student's interval, seeded coverage of a known mean, and ratios worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.records import record

from workbench.errors import SettingError, UnknownMetricError
from workbench.metrics.bootstrap import bootstrap, paired_ratios, repeat_intervals
from workbench.metrics.summary import summarize


class TestIntervals:
    def test_interval_of_three_values_is_their_range(self) -> None:
        interval = bootstrap([1.0, 2.0, 6.0], rng=np.random.default_rng(0))
        assert interval == (3.0, 1.0, 6.0, 3)

    def test_many_values_have_students_interval(self) -> None:
        """The exact interval of a normal mean is mean +- t s / sqrt(n), with t from a table."""
        values = np.random.default_rng(3).normal(10, 2, 40)
        half = 2.0227 * values.std(ddof=1) / math.sqrt(40)
        interval = bootstrap(values.tolist(), rng=np.random.default_rng(0))
        assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
        assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)

    def test_coverage_of_eight_repeats(self) -> None:
        """Coverage of a known mean by 1,000 seeded intervals; plain percentiles cover 0.875."""
        rng = np.random.default_rng(5)
        hits = 0
        for _ in range(1000):
            interval = bootstrap(rng.normal(7, 1, 8).tolist(), rng=rng, resamples=500)
            hits += interval.low <= 7 <= interval.high
        assert hits / 1000 > 0.91

    def test_every_figure_of_the_repeats(self) -> None:
        repeats = [summarize([record(0, 0.1 * k, 0.2 * k)]) for k in (1, 2, 3)]
        intervals = repeat_intervals(repeats, rng=np.random.default_rng(0))
        assert intervals["mean_ttft_ms"] == pytest.approx((200, 100, 300, 3))
        assert "steady" not in intervals
        assert "slo" not in intervals
        assert "p99_ttft_from_schedule_ms" not in intervals, "no repeat has it"
        with pytest.raises(SettingError, match="at least 3 repeats, got 2"):
            repeat_intervals(repeats[:2], rng=np.random.default_rng(0))

    def test_paired_ratios(self) -> None:
        first = [summarize([record(0, 0.1 * k, 0.2 * k)]) for k in (1, 2, 3)]
        second = [summarize([record(0, 0.2 * k, 0.3 * k)]) for k in (1, 2, 3)]
        ratio = paired_ratios(first, second, "p50_ttft_ms", rng=np.random.default_rng(0))
        assert ratio == pytest.approx((2, 2, 2, 3)), "run by run, though the runs differ"
        with pytest.raises(UnknownMetricError, match="p50_ttft_ms"):
            paired_ratios(first, second, "p50_tft_ms", rng=np.random.default_rng(0))
        with pytest.raises(SettingError, match="absent or zero"):
            paired_ratios(first, second, "failed", rng=np.random.default_rng(0))
