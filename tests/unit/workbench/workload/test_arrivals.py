"""Schedules against closed formulas and scipy's distributions.

For random values the bounds are extreme quantiles of the exact distribution (or eight standard
errors), so that a correct schedule does not fail by chance.
"""

from __future__ import annotations

import math
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from scipy import stats

from serving.errors import SpecError
from workbench.errors import SettingError
from workbench.records import LoadChange
from workbench.workload.arrivals import (
    ClosedLoop,
    Constant,
    Gamma,
    OpenArrivals,
    Poisson,
    Ramp,
    Rate,
    Stages,
    Steps,
    TraceReplay,
    diurnal,
    parse_arrivals,
)
from workbench.workload.point_process import GammaGaps, Gaps, RateSegment, gaps_of, steady
from workbench.workload.schedule import LiveSchedule, offsets

TAIL = 1e-10

seeds = st.integers(0, 2**32 - 1)
rates = st.floats(0.01, 1e4)
shapes = st.floats(0.3, 10)
durations = st.floats(0.1, 1000)


def rng(seed: int | list[int] = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def take(spec: Any, seed: int | list[int] = 0, **bounds: Any) -> np.ndarray:
    return np.fromiter(offsets(spec, rng(seed), **bounds), float)


open_specs = st.one_of(
    st.builds(Constant, rate=rates),
    st.builds(Poisson, rate=rates),
    st.builds(Gamma, rate=rates, burstiness=shapes),
    st.builds(
        Ramp,
        from_rate=st.floats(0, 100),
        to_rate=st.floats(0.01, 100),
        duration_s=durations,
        burstiness=st.none() | shapes,
    ),
    st.builds(
        Steps,
        steps=st.lists(st.tuples(st.just(0.0) | rates, durations), max_size=4).map(
            lambda steps: (*steps, (2.0, 3.0))
        ),
        burstiness=st.none() | shapes,
    ),
)


class TestEverySchedule:
    @given(open_specs, seeds)
    def test_is_sorted_and_not_negative(self, spec: Any, seed: int) -> None:
        times = take(spec, seed, count=200)
        assert times.size == 200
        assert times[0] >= 0
        assert np.all(np.diff(times) >= 0)
        assert np.all(np.isfinite(times))

    @given(open_specs, seeds)
    def test_same_seed_gives_the_same_schedule(self, spec: Any, seed: int) -> None:
        assert take(spec, seed, count=50).tobytes() == take(spec, seed, count=50).tobytes()

    @given(open_specs, seeds, st.integers(1, 49))
    def test_longer_schedule_starts_with_the_shorter_one(
        self, spec: Any, seed: int, short: int
    ) -> None:
        longer = take(spec, seed, count=50)
        assert take(spec, seed, count=short).tolist() == longer[:short].tolist()
        # The end is exclusive.
        if longer[short] > 0:
            expected = [at for at in longer.tolist() if at < longer[short]]
            got = take(spec, seed, duration_s=float(longer[short]))
            assert got.tolist() == expected

    @given(seeds)
    def test_different_seeds_differ(self, seed: int) -> None:
        spec = Poisson(rate=3)
        assert take(spec, seed, count=3).tolist() != take(spec, seed + 1, count=3).tolist()

    def test_duration_and_count_both_apply(self) -> None:
        assert take(Constant(rate=10), duration_s=0.35, count=9).tolist() == [0, 0.1, 0.2, 0.3]
        assert take(Constant(rate=10), duration_s=9, count=2).tolist() == [0, 0.1]

    @given(open_specs)
    def test_round_trips_through_json(self, spec: Any) -> None:
        assert parse_arrivals(spec.model_dump(mode="json")) == spec


class TestConstant:
    @given(rates, st.integers(1, 500))
    def test_gaps_are_equal(self, rate: float, count: int) -> None:
        np.testing.assert_allclose(
            take(Constant(rate=rate), count=count), np.arange(count) / rate, rtol=1e-14
        )

    @given(st.integers(1, 100), st.integers(1, 20))
    def test_count_is_rate_times_duration(self, rate: int, duration_s: int) -> None:
        assert take(Constant(rate=rate), duration_s=duration_s).size == rate * duration_s


class TestPoisson:
    @given(st.floats(1, 100), st.floats(1, 20), seeds)
    def test_count_is_poisson_distributed(self, rate: float, duration_s: float, seed: int) -> None:
        count = take(Poisson(rate=rate), seed, duration_s=duration_s).size
        law = stats.poisson(rate * duration_s)
        assert law.ppf(TAIL) <= count <= law.isf(TAIL)

    @settings(max_examples=20)
    @given(rates, seeds)
    def test_gaps_are_exponential(self, rate: float, seed: int) -> None:
        gaps = np.diff(take(Poisson(rate=rate), seed, count=3000), prepend=0.0)
        assert stats.kstest(gaps, stats.expon(scale=1 / rate).cdf).pvalue > TAIL

    def test_equals_gamma_of_shape_one(self) -> None:
        gamma = Gamma(rate=7, burstiness=1)
        assert take(Poisson(rate=7), 3, count=99).tolist() == take(gamma, 3, count=99).tolist()


class TestGamma:
    @given(rates, shapes, seeds)
    def test_mean_rate_is_the_rate(self, rate: float, shape: float, seed: int) -> None:
        """The sum of n gaps of shape b is gamma-distributed with shape n b and the same scale."""
        last = take(Gamma(rate=rate, burstiness=shape), seed, count=500)[-1]
        assert TAIL < stats.gamma(500 * shape, scale=1 / (rate * shape)).cdf(last) < 1 - TAIL

    @settings(max_examples=20)
    @given(rates, shapes, seeds)
    def test_gaps_are_gamma_distributed(self, rate: float, shape: float, seed: int) -> None:
        gaps = np.diff(take(Gamma(rate=rate, burstiness=shape), seed, count=3000), prepend=0.0)
        law = stats.gamma(shape, scale=1 / (rate * shape))
        assert stats.kstest(gaps, law.cdf).pvalue > TAIL

    @settings(max_examples=20)
    @given(rates, shapes, seeds)
    def test_coefficient_of_variation_follows_the_shape(
        self, rate: float, shape: float, seed: int
    ) -> None:
        """1/sqrt(b), with a standard error of it times sqrt((1/2 + 1/(2b)) / n) (delta method)."""
        count = 5000
        gaps = np.diff(take(Gamma(rate=rate, burstiness=shape), seed, count=count), prepend=0.0)
        expected = 1 / math.sqrt(shape)
        error = expected * math.sqrt((0.5 + 0.5 / shape) / count)
        assert abs(gaps.std() / gaps.mean() - expected) < 8 * error

    @pytest.mark.parametrize(("shape", "side"), [(0.25, 1), (4.0, -1)])
    def test_shape_below_one_is_bursty(self, shape: float, side: int) -> None:
        times = take(Gamma(rate=10, burstiness=shape), 5, duration_s=2000)
        counts = np.histogram(times, bins=2000, range=(0, 2000))[0]
        # Variance over mean of the counts is 1 for a Poisson process.
        assert side * (counts.var() / counts.mean() - 1) > 0.3


def integral(ramp: Ramp, at: np.ndarray) -> np.ndarray:
    """The exact integral of the rate from 0. The last rate goes on."""
    inside = np.minimum(at, ramp.duration_s)
    slope = (ramp.to_rate - ramp.from_rate) / ramp.duration_s
    return ramp.from_rate * inside + slope * inside**2 / 2 + ramp.to_rate * (at - inside)


ramps = {
    "from_rate": st.just(0.0) | st.floats(0.1, 50),
    "to_rate": st.floats(0.1, 50),
    "duration_s": st.floats(1, 50),
}


class TestRamp:
    @given(st.builds(Ramp, **ramps, burstiness=st.none()))
    def test_evenly_spaced_requests_are_at_whole_integrals(self, ramp: Ramp) -> None:
        times = take(ramp, count=300)
        np.testing.assert_allclose(integral(ramp, times), np.arange(300), atol=1e-8)

    def test_computed_by_hand(self) -> None:
        """t²/4 requests until t: 0, 1, 2, 3 at 0, 2, sqrt 8, sqrt 12; then 2 a second from 4 on."""
        ramp = Ramp(from_rate=0, to_rate=2, duration_s=4, burstiness=None)
        ramped = [0, 2, math.sqrt(8), math.sqrt(12)]
        assert take(ramp).tolist() == pytest.approx(ramped)
        assert take(ramp, duration_s=5).tolist() == pytest.approx([*ramped, 4, 4.5])

    @settings(max_examples=20)
    @given(st.builds(Ramp, **ramps, burstiness=shapes), seeds)
    def test_rescaled_gaps_are_gamma_distributed(self, ramp: Ramp, seed: int) -> None:
        gaps = np.diff(integral(ramp, take(ramp, seed, count=2000)), prepend=0.0)
        law = stats.gamma(ramp.burstiness, scale=1 / ramp.burstiness)
        assert stats.kstest(gaps, law.cdf).pvalue > TAIL

    @given(st.builds(Ramp, **ramps), seeds)
    def test_count_is_poisson_distributed(self, ramp: Ramp, seed: int) -> None:
        law = stats.poisson(ramp.duration_s * (ramp.from_rate + ramp.to_rate) / 2)
        assert law.ppf(TAIL) <= take(ramp, seed).size <= law.isf(TAIL)

    def test_ramp_to_zero_ends(self) -> None:
        """The triangle has 100 requests; 0, 1, ..., 99 of them are before its end."""
        ramp = Ramp(from_rate=20, to_rate=0, duration_s=10, burstiness=None)
        times = take(ramp, count=1000)
        assert times.size == 100
        assert times.tolist() == pytest.approx([10 - math.sqrt(100 - k) for k in range(100)])


def test_stages_rise_hold_and_drop() -> None:
    """10 s to 2/s are 10 requests, 5 s at 2/s are 10, and after the drop there are none."""
    stages = Stages(stages=[(2, 10), (2, 5), (0, 0), (0, 60)], burstiness=None)
    times = take(stages)
    assert len(times) == 20
    np.testing.assert_allclose(times[:10], np.sqrt(10 * np.arange(10)))
    np.testing.assert_allclose(times[10:], 10 + np.arange(10) / 2)


class TestDiurnal:
    @pytest.mark.parametrize(
        ("shape", "mean"),
        [({}, 0.1 + 0.9 / 2), ({"night": 0}, 1 / 2), ({"width": 0.5}, 0.1 + 0.9 * 3 / 8)],
    )
    def test_expected_requests_are_the_integral_of_the_rate(
        self, shape: dict[str, float], mean: float
    ) -> None:
        # The means of a sine and of its square over a period: 1/2 and 3/8.
        spec = diurnal(40.0, 60.0, days=3, **shape)
        assert sum(piece.requests for piece in spec.segments()) == pytest.approx(40 * 180 * mean)
        assert sum(piece.duration_s for piece in spec.segments()) == pytest.approx(180)

    def test_days_are_equal_with_a_peak_at_noon(self) -> None:
        rates = [piece.from_rate for piece in diurnal(40.0, 48.0, night=0.25, days=2).segments()]
        assert rates[0] == rates[48] == pytest.approx(10)
        assert rates[24] == rates[72] == max(rates) == pytest.approx(40)
        assert rates[12] == pytest.approx(40 * (0.25 + 0.75 / 2))
        assert rates[:48] == rates[48:]

    def test_depends_on_the_seed(self) -> None:
        spec = diurnal(20.0, 30.0)
        assert take(spec, 1).tolist() == take(spec, 1).tolist() != take(spec, 2).tolist()

    @pytest.mark.parametrize(
        ("bad", "word"),
        [
            ({"peak_rate": 0}, "peak_rate must be above 0, got 0"),
            ({"day_s": -1.0}, "day_s must be above 0, got -1"),
            ({"night": 1.5}, "night must be .*, got 1.5"),
            ({"width": 0}, "width must be above 0, got 0"),
            ({"days": 0}, "days must be above 0, got 0"),
        ],
    )
    def test_invalid_values_are_named(self, bad: dict[str, Any], word: str) -> None:
        with pytest.raises(SettingError, match=word):
            diurnal(**{"peak_rate": 1.0, "day_s": 60.0} | bad)


class TestSteps:
    def test_computed_by_hand_with_a_pause(self) -> None:
        steps = Steps(steps=[(1, 2), (0, 5), (2, 1)], burstiness=None)
        assert take(steps).tolist() == [0, 1, 7, 7.5]
        assert take(steps, count=6).tolist() == [0, 1, 7, 7.5, 8, 8.5]

    @given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=5))
    def test_counts_of_evenly_spaced_steps(self, steps: list[tuple[int, int]]) -> None:
        times = take(Steps(steps=steps, burstiness=None))
        edges = np.cumsum([0, *(duration for _, duration in steps)])
        counts = [np.sum((times >= a) & (times < b)) for a, b in pairwise(edges)]
        assert counts == [rate * duration for rate, duration in steps]

    @given(st.lists(st.tuples(st.floats(0, 50), durations), min_size=1, max_size=4), seeds)
    def test_count_of_each_step_is_poisson_distributed(self, steps: list[Any], seed: int) -> None:
        steps = [*steps[:4], (1.0, 10.0)]
        steps = [(rate, min(duration, 20)) for rate, duration in steps]
        times = take(Steps(steps=steps), seed)
        edges = np.cumsum([0.0, *(duration for _, duration in steps)])
        for (rate, duration), (a, b) in zip(steps, pairwise(edges), strict=True):
            law = stats.poisson(rate * duration)
            count = np.sum((times >= a) & (times < b))
            assert count == 0 if rate == 0 else law.ppf(TAIL) <= count <= law.isf(TAIL)

    def test_final_rate_of_zero_ends(self) -> None:
        steps = Steps(steps=[(1, 2), (0, 5)], burstiness=None)
        assert take(steps, duration_s=100).tolist() == [0, 1]


class TestTraceReplay:
    def test_yields_the_trace(self) -> None:
        spec = TraceReplay(path="trace.csv")
        assert take(spec, trace=[0, 1, 1, 5]).tolist() == [0, 1, 1, 5]
        assert take(spec, trace=[0, 1, 1, 5], duration_s=5, count=9).tolist() == [0, 1, 1]

    def test_missing_trace_is_rejected(self) -> None:
        with pytest.raises(SettingError, match=r"trace is missing: read trace\.csv"):
            offsets(TraceReplay(path="trace.csv"), rng())


class TestRejected:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"kind": "constant", "rate": 0}, r"Constant\.rate must be greater than 0, got 0"),
            ({"kind": "poisson", "rate": 0}, r"Poisson\.rate must be greater than 0, got 0"),
            ({"kind": "gamma", "rate": 0, "burstiness": 1}, r"Gamma\.rate must .*got 0"),
            ({"kind": "gamma", "rate": 1, "burstiness": 0}, r"Gamma\.burstiness must .*got 0"),
            ({"kind": "gamma", "rate": 1}, r"Gamma\.burstiness is missing"),
            ({"kind": "poisson", "rate": -1}, r"Poisson\.rate must .*got -1"),
            ({"kind": "poisson", "rate": math.inf}, r"Poisson\.rate must .*got inf"),
            ({"kind": "poisson", "rate": math.nan}, r"Poisson\.rate must .*got nan"),
            ({"kind": "poisson", "rate": 1, "brust": 1}, r"Poisson\.brust is not a field, got 1"),
            ({"kind": "posson", "rate": 1}, r"kind = 'posson'.*did you mean 'poisson'"),
            ({"rate": 1}, r"kind = None.*constant, poisson"),
            ({"kind": "ramp", "from_rate": 0, "to_rate": 0, "duration_s": 1}, r"Ramp\.from_rate"),
            (
                {"kind": "ramp", "from_rate": 0, "to_rate": 1, "duration_s": 0},
                r"duration_s must .*got 0",
            ),
            ({"kind": "steps", "steps": []}, r"Steps\.steps must .*got \[\]"),
            ({"kind": "steps", "steps": [(0, 1)]}, r"Steps\.steps: every rate is 0"),
            ({"kind": "stages", "stages": [(0, 5), (3, 0)]}, r"Stages\.stages: nothing is sent"),
            ({"kind": "steps", "steps": [(1, 1), (-2, 1)]}, r"Steps\.steps\.1\.0 must .*got -2"),
            ({"kind": "closed", "max_concurrency": 0}, r"ClosedLoop\.max_concurrency must .*got 0"),
            ({"kind": "trace", "path": "x", "speed": 0}, r"TraceReplay\.speed must .*got 0"),
            ({"kind": "trace", "path": "x", "start_s": 3, "end_s": 2}, r"TraceReplay\.end_s = 2 "),
        ],
    )
    def test_message_names_field_and_value(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            parse_arrivals(fields)

    def test_closed_loop_has_no_send_times(self) -> None:
        with pytest.raises(SettingError, match="closed loop"):
            offsets(ClosedLoop(max_concurrency=4), rng())

    @pytest.mark.parametrize("spec", [Constant(rate=1), Poisson(rate=1)])
    def test_endless_arrivals_need_a_bound(self, spec: Any) -> None:
        with pytest.raises(SettingError, match="duration_s or count"):
            offsets(spec, rng())

    @pytest.mark.parametrize(
        ("bounds", "message"),
        [
            ({"count": 0}, "count must be at least 1, got 0"),
            ({"duration_s": 0}, "above 0, got 0"),
            ({"duration_s": math.inf}, "got inf"),
            ({"duration_s": math.nan}, "got nan"),
        ],
    )
    def test_invalid_bounds(self, bounds: dict[str, Any], message: str) -> None:
        with pytest.raises(SettingError, match=message):
            offsets(Poisson(rate=1), rng(), **bounds)


class LogLogisticGaps(Gaps):
    """Gaps with a log-logistic distribution of shape 3 and mean 1."""

    def next(self, rng: np.random.Generator) -> float:
        odds = 1 / rng.uniform() - 1
        return float(odds ** (1 / 3)) * math.sin(math.pi / 3) / (math.pi / 3)


class LogLogistic(OpenArrivals):
    """A process that is defined outside the package, as a new one would be in it."""

    kind: Literal["log_logistic"] = Field("log_logistic", description="Log-logistic gaps.")
    rate: Rate = Field(description="Mean requests per second.")

    def segments(self) -> tuple[RateSegment, ...]:
        return steady(self.rate)

    def gaps(self) -> Gaps:
        return LogLogisticGaps()


class TestNewProcess:
    """A process needs no more than its own specification."""

    def test_planned_schedule(self) -> None:
        times = take(LogLogistic(rate=5.0), count=3000)
        scale = math.sin(math.pi / 3) / (math.pi / 3) / 5
        gaps = np.diff(times, prepend=0.0)
        assert stats.kstest(gaps, stats.fisk(3, scale=scale).cdf).pvalue > TAIL

    def test_live_schedule(self) -> None:
        spec = LogLogistic(rate=5.0)
        live = LiveSchedule.from_arrivals(spec, seed=4, start_s=10.0)
        plain = 10 + take(spec, [4, 0], count=50)
        offsets_s: list[Any] = [live.next(math.inf) for _ in range(50)]
        np.testing.assert_allclose(offsets_s, plain)


def drain(schedule: LiveSchedule, now_s: float) -> list[float]:
    return list(iter(lambda: schedule.next(now_s), None))


class TestLiveSchedule:
    @given(rates, st.none() | shapes, seeds)
    def test_without_changes_equals_the_plain_schedule(
        self, rate: float, shape: float | None, seed: int
    ) -> None:
        plain = Constant(rate=rate) if shape is None else Gamma(rate=rate, burstiness=shape)
        live = LiveSchedule(rate, rng(seed), gaps_of(shape))
        np.testing.assert_allclose(
            list(islice(iter(lambda: live.next(math.inf), None), 50)),
            take(plain, seed, count=50),
            rtol=1e-12,
        )

    def test_yields_nothing_before_it_is_due(self) -> None:
        live = LiveSchedule(2, rng(), gaps_of(None), start_s=10)
        assert live.due_s == 10
        assert live.next(9.9) is None
        assert [live.next(10.7), live.next(10.7), live.next(10.7)] == [10, 10.5, None]

    def test_higher_rate_applies_at_once(self) -> None:
        """At 1 in 100 s, a tenth of the gap is over after 10 s. At 10/s the rest takes 0.09 s."""
        live = LiveSchedule(0.01, rng(), gaps_of(None))
        assert live.next(0) == 0
        live.apply(LoadChange(10, "rate", 10))
        assert live.due_s == pytest.approx(10.09)
        assert drain(live, 10.3) == pytest.approx([10.09, 10.19, 10.29])

    def test_pause_keeps_the_rest_of_the_gap(self) -> None:
        live = LiveSchedule(1, rng(), gaps_of(None))
        assert live.next(0) == 0
        live.apply(LoadChange(0.4, "rate", 0))
        assert live.due_s is None
        assert live.next(math.inf) is None
        live.apply(LoadChange(10, "rate", 2))
        assert live.due_s == pytest.approx(10.3)

    def test_starts_paused_at_rate_zero(self) -> None:
        live = LiveSchedule(0, rng(), gaps_of(None))
        assert live.due_s is None
        live.apply(LoadChange(3, "rate", 4))
        assert drain(live, 3.6) == pytest.approx([3, 3.25, 3.5])

    def test_late_caller_still_gets_requests_due_before_a_change(self) -> None:
        live = LiveSchedule(1, rng(), gaps_of(None))
        live.apply(LoadChange(2.5, "rate", 0))
        assert live.due_s == 0
        assert drain(live, 99) == [0, 1, 2]

    def test_change_dated_before_the_last_request_applies_after_it(self) -> None:
        live = LiveSchedule(1, rng(), gaps_of(None))
        assert drain(live, 3) == [0, 1, 2, 3]
        live.apply(LoadChange(1.5, "rate", 2))
        assert live.due_s == 3.5

    def test_burstiness_applies_to_the_next_gap(self) -> None:
        live = LiveSchedule(1, rng(), gaps_of(None))
        assert drain(live, 0) == [0]
        live.apply(LoadChange(0.5, "burstiness", 4))
        assert (live.rate, live.gaps) == (1, GammaGaps(4))
        assert live.next(1) == 1
        assert live.due_s == pytest.approx(1 + rng().standard_gamma(4) / 4)
        live.apply(LoadChange(1.0, "burstiness", None))
        last = live.next(math.inf)
        assert last is not None
        assert live.due_s == pytest.approx(last + 1)

    @given(
        st.lists(st.tuples(st.just(0.0) | st.floats(0.1, 100), st.floats(0.01, 5)), max_size=8),
        st.sampled_from([0.3, 1.0, 5.0]),
        seeds,
        st.booleans(),
    )
    def test_integral_of_the_rate_between_requests_is_the_drawn_gap(
        self, changes: list[tuple[float, float]], shape: float, seed: int, late: bool
    ) -> None:
        """Whether the caller takes requests as they are due or all at the end."""
        live = LiveSchedule(5, rng(seed), gaps_of(shape))
        times, knots, heights, now = [], [0.0], [0.0], 0.0
        rate = 5.0
        for next_rate, gap in [*changes, (5.0, 3.0)]:
            now += gap
            times += [] if late else drain(live, now)
            live.apply(LoadChange(now, "rate", next_rate))
            knots, heights = [*knots, now], [*heights, heights[-1] + rate * gap]
            rate = next_rate
        times += drain(live, now)
        drawn = np.cumsum(rng(seed).standard_gamma(shape, size=len(times) + 1) / shape)
        np.testing.assert_allclose(np.interp(times, knots, heights), drawn[:-1], atol=1e-9)
        assert drawn[-1] > heights[-1] - 1e-9

    @given(st.none() | shapes, seeds)
    def test_plan_equals_the_plain_schedule(self, shape: float | None, seed: int) -> None:
        plan = Stages(stages=[(6, 5), (6, 2), (0, 0), (0, 3), (4, 1)], burstiness=shape)
        live = LiveSchedule(plan.segments(), rng(seed), gaps_of(shape))
        assert live.curve.ends_s == 11
        np.testing.assert_allclose(drain(live, 99), take(plan, seed), atol=1e-9)
        assert live.due_s is None

    def test_pause_shifts_the_rest_of_the_plan(self) -> None:
        plan = Stages(from_rate=1, stages=[(1, 4), (10, 0), (10, 1)], burstiness=None)
        live = LiveSchedule(plan.segments(), rng(), gaps_of(None), start_s=100)
        assert drain(live, 102.5) == [100, 101, 102]
        live.apply(LoadChange(102.5, "pause"))
        assert (live.due_s, live.rate, live.curve.ends_s) == (None, 0, None)
        assert drain(live, 150) == []
        live.apply(LoadChange(150, "resume"))
        assert live.curve.ends_s == 152.5
        assert drain(live, 151.65) == pytest.approx([150.5, 151.5, 151.6])

    def test_rate_replaces_the_plan(self) -> None:
        plan = Stages(stages=[(10, 10)], burstiness=None)
        live = LiveSchedule(plan.segments(), rng(), gaps_of(None))
        assert drain(live, 1.9) == pytest.approx([0, 2**0.5])
        live.apply(LoadChange(2, "rate", 0.5))
        assert (live.rate, live.curve.ends_s) == (0.5, None)
        assert drain(live, 6) == [2, 4, 6]

    @pytest.mark.parametrize("rate", [-1, math.nan, math.inf])
    def test_invalid_change_is_rejected_and_has_no_effect(self, rate: float) -> None:
        live = LiveSchedule(1, rng(), gaps_of(None))
        with pytest.raises(SettingError, match=rf"rate must be .*, got {rate}"):
            live.apply(LoadChange(1, "rate", rate))
        with pytest.raises(SettingError, match=r"burstiness must be .*, got 0"):
            live.apply(LoadChange(1, "burstiness", 0))
        with pytest.raises(SettingError, match=rf"rate must be .*, got {rate}"):
            LiveSchedule(rate, rng())
        assert drain(live, 2) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_gaps_are_distributed_as_in_vllm_bench_serve(
    shape: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VLLM's own generator, on a clock that advances when it sleeps, has the same distribution."""
    serve = pytest.importorskip("vllm.benchmarks.serve")
    import asyncio
    from types import SimpleNamespace

    clock = [0.0]

    async def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(serve, "time", SimpleNamespace(time=lambda: clock[0]))
    monkeypatch.setattr(serve, "asyncio", SimpleNamespace(sleep=sleep))
    np.random.seed(7)

    async def theirs() -> list[float]:
        requests = [SimpleNamespace() for _ in range(5000)]
        return [clock[0] async for _ in serve.get_request(requests, 50.0, shape)]

    vllm_gaps = np.diff(asyncio.run(theirs()))
    gaps = np.diff(take(Gamma(rate=50, burstiness=shape), 7, count=5000))
    assert vllm_gaps.std() / vllm_gaps.mean() == pytest.approx(gaps.std() / gaps.mean(), rel=0.1)
    assert stats.ks_2samp(vllm_gaps, gaps).pvalue > 1e-6
