"""Searches of a known threshold: the M/M/1 queue, a step, and a step with noise."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.records import failed, record

from workbench.errors import SettingError
from workbench.experiments.search import Probe, highest_load, knee, slo_unreachable
from workbench.experiments.search_result import ProbeResult, SearchResult
from workbench.metrics.health import ClientHealth
from workbench.metrics.slo import SLO
from workbench.metrics.summary import Summary, summarize

BOUND = SLO(e2el_ms=1000, target=0.95)
GOOD, BAD = summarize([record(0.0, 0.5)], slo=BOUND), summarize([failed("shed")], slo=BOUND)
SERVED = 10.0  # requests/s of the M/M/1 server
# Its time in system is exponential of rate (served - offered): P(T <= 1 s) = 0.95 there.
THRESHOLD = SERVED + math.log(1 - 0.95)


async def queue(rate: float) -> Summary:
    """400 requests at the quantiles of the M/M/1 time in system, all late above saturation."""
    spare = max(SERVED - rate, 1e-3)
    shares = (np.arange(400) + 0.5) / 400
    return summarize((record(0.0, float(t)) for t in -np.log1p(-shares) / spare), slo=BOUND)


def step(threshold: float) -> Probe:
    return noisy(lambda load: load <= threshold)


def noisy(meets: Callable[[float], bool]) -> Probe:
    async def probe(load: float) -> Summary:
        return GOOD if meets(load) else BAD

    return probe


def search(probe: Probe, **settings: Any) -> SearchResult:
    return asyncio.run(highest_load(probe, **({"low": 1.0, "high": 64.0} | settings)))


class TestSearch:
    @pytest.mark.parametrize(
        ("start", "probed"),
        [
            (None, [1, 2, 4, 8, 16]),
            (6, [6, 12]),
            (9, [9, 18]),
            (40, [40, 20, 10]),
            (64, [64, 32, 16, 8]),
        ],
    )
    def test_bracket_doubles_or_halves_from_the_start(
        self, start: float | None, probed: list[float]
    ) -> None:
        result = search(step(11), start=start, tolerance=0.02)
        assert [p.rate for p in result.probes if p.phase == "bracket"] == probed
        assert result.highest is not None
        assert 11 / 1.02 <= result.highest <= 11

    @pytest.mark.parametrize("threshold", [10, 0])
    def test_a_lucky_start_does_not_hide_lower_loads(self, threshold: float) -> None:
        chance = [32.0]

        def meets(load: float) -> bool:
            if load in chance:
                chance.remove(load)
                return True
            return load <= threshold

        result = search(noisy(meets), start=32, tolerance=0.02)
        if threshold:
            assert result.highest is not None
            assert 10 / 1.02 <= result.highest <= 10
            assert result.confirmed == 2
        else:
            assert (result.highest, result.probes[-1].rate) == (None, 1)
            assert "missed even at the lowest load, 1 requests/s" in result.headline()

    def test_queue_of_known_capacity(self) -> None:
        result = search(queue, tolerance=0.02)
        assert result.highest is not None
        assert result.highest == pytest.approx(THRESHOLD, rel=0.03)
        assert [p.rate for p in result.probes[:4]] == [1, 2, 4, 8]
        assert [p.phase for p in result.probes[-2:]] == ["confirm", "confirm"]
        assert (result.bounded, result.confirmed) == (True, 2)
        assert f"met up to {result.highest:.4g} requests/s, missed at" in result.headline()
        assert "2 of 2 confirmation runs met it" in result.headline()

    @given(
        threshold=st.floats(0.5, 200),
        low=st.floats(0.1, 20),
        span=st.floats(1.01, 500),
        tolerance=st.floats(0.01, 0.5),
    )
    def test_any_threshold_is_found_within_the_tolerance(
        self, threshold: float, low: float, span: float, tolerance: float
    ) -> None:
        high = low * span
        result = search(step(threshold), low=low, high=high, tolerance=tolerance)
        assert all(low <= p.rate <= high for p in result.probes)
        if threshold < low:
            assert (result.highest, len(result.probes)) == (None, 1)
        elif threshold >= high:
            assert (result.highest, result.bounded) == (high, False)
        else:
            assert result.bounded
            assert result.highest is not None
            assert result.highest <= threshold < result.highest * (1 + tolerance)

    @given(
        threshold=st.integers(1, 300),
        low=st.integers(1, 40),
        more=st.integers(1, 300),
        share=st.floats(0, 1) | st.none(),
    )
    def test_whole_numbers_are_found_exactly(
        self, threshold: int, low: int, more: int, share: float | None
    ) -> None:
        high = low + more
        start = None if share is None else low + round(share * more)
        limits: dict[str, Any] = {"low": float(low), "high": float(high), "start": start}
        result = search(step(threshold), tolerance=0.001, integer=True, **limits)
        assert all(low <= p.rate <= high for p in result.probes)
        assert result.highest == (min(threshold, high) if threshold >= low else None)
        assert all(isinstance(p.rate, int) for p in result.probes)
        assert result.unit == "concurrent requests"

    @given(
        answers=st.lists(st.booleans(), min_size=40, max_size=40),
        confirmations=st.integers(0, 4),
        max_probes=st.integers(5, 40),
        integer=st.booleans(),
    )
    def test_with_noise_the_answer_held_in_most_runs(
        self, answers: list[bool], confirmations: int, max_probes: int, integer: bool
    ) -> None:
        noise, kept = iter(answers), list[ProbeResult]()
        limits = {"max_probes": max_probes, "confirmations": confirmations, "integer": integer}
        result = search(noisy(lambda _: next(noise)), on_probe=kept.append, **limits)
        assert tuple(kept) == result.probes
        assert [p.met for p in kept] == answers[: len(kept)]
        assert len(kept) <= max_probes
        runs = [p.met for p in kept if p.rate == result.highest]
        assert result.highest is None or 2 * sum(runs) > len(runs)
        assert result.highest is None or len(runs) == 1 + confirmations or len(kept) == max_probes
        above = [p for p in kept if p.rate > (result.highest or 0) and not p.met]
        assert result.bounded == bool(above)

    def test_samples_of_the_queue_agree_with_its_formula(self) -> None:
        found = [search(sampled(np.random.default_rng(seed))).highest for seed in range(20)]
        assert None not in found
        assert np.median(np.array(found, float)) == pytest.approx(THRESHOLD, rel=0.1)

    def test_a_single_lucky_run_is_not_the_answer(self) -> None:
        luck = iter([True])  # the first run at 8 meets the SLO, and no other above 5
        result = search(noisy(lambda load: load <= 5 or (load == 8 and next(luck, False))))
        assert [p.met for p in result.probes if p.rate == 8] == [True, False, False]
        assert result.highest is not None
        assert 5 / 1.05 <= result.highest <= 5
        assert result.bounded

    def test_probes_are_reserved_for_confirming(self) -> None:
        result = search(step(40), max_probes=6)
        assert [p.rate for p in result.probes] == [1, 2, 4, 8, 8, 8]
        assert (result.highest, result.bounded, result.confirmed) == (8, False, 2)

    def test_an_slo_that_is_never_or_always_met(self) -> None:
        never, always = search(step(0.1)), search(step(1e9))
        assert (never.highest, never.bounded, never.confirmed) == (None, True, 0)
        assert never.headline() == (
            "SLO missed even at the lowest load, 1 requests/s (no TTFT, no TPOT; 1 probe)"
        )
        assert (always.highest, always.bounded, always.confirmed) == (64, False, 2)
        assert "no higher load missed it" in always.headline()

    def test_the_table_has_every_probe(self) -> None:
        result = search(queue)
        table = result.frame()
        assert table.rate.tolist() == [p.rate for p in result.probes]
        assert table.met.tolist() == [p.summary.slo_met for p in result.probes]
        # The p95 of an exponential distribution is ln(20) / rate, and here only TTFT is known.
        assert table.p95_ttft_ms[0] == pytest.approx(math.log(20) / 9 * 1e3, rel=0.01)
        assert table.slo_attainment[0] == pytest.approx(1, abs=1 / 400)
        assert table.p95_tpot_ms.isna().all()
        assert table.client_limited.isna().all(), "nothing was measured"
        assert table.attrs["unit"] == "requests/s"

    @pytest.mark.parametrize(
        ("where", "marked"), [(1, False), (4, True), (math.sqrt(32), True), (8, False)]
    )
    def test_a_client_limited_probe_marks_the_answer_it_decided(
        self, where: float, marked: bool
    ) -> None:
        result = search(limited_at([where] * 30, 4), tolerance=0.99)
        once = [1, 2, 4, 8, math.sqrt(32), 4, 4]
        twice = [rate for rate in once for _ in range(2 if rate == where else 1)]
        assert [p.rate for p in result.probes] == twice
        assert [p.rate for p in result.counted] == once
        assert result.highest == 4
        assert result.headline().startswith("CLIENT LIMITED: ") == marked

    @pytest.mark.parametrize("where", [1, 4, 8, math.sqrt(32)])
    def test_a_repeated_limited_probe_does_not_count(self, where: float) -> None:
        """The limited probe has the wrong verdict; the same load repeated has the right one."""
        result = search(limited_at([where], 4, wrong=True), tolerance=0.99)
        assert [p.rate for p in result.counted] == [1, 2, 4, 8, math.sqrt(32), 4, 4]
        assert (result.highest, result.missed) == (4, math.sqrt(32))
        assert [p.met for p in result.probes if p.rate == where][:2] == [where > 4, where <= 4]
        assert not result.client_limited
        assert "8 probes, 1 replaced because the client limited it" in result.headline()
        assert list(result.frame().replaced) == [p.replaced for p in result.probes]

    def test_repeats_count_towards_max_probes(self) -> None:
        limited = [load for load in (1.0, 2.0, 4.0, 8.0) for _ in range(9)]
        result = search(limited_at(limited, 8), max_probes=9, confirmations=2)
        assert len(result.probes) == 9
        assert [p.rate for p in result.probes][:7] == [1, 1, 2, 2, 4, 4, 8]
        assert result.client_limited

    def test_an_error_of_the_probe_is_raised(self) -> None:
        kept: list[ProbeResult] = []

        async def probe(load: float) -> Summary:
            if load > 2:
                raise ConnectionError("gone")
            return GOOD

        with pytest.raises(ConnectionError, match="gone"):
            search(probe, on_probe=kept.append)
        assert [p.rate for p in kept] == [1, 2]


def limited_at(loads: list[float], threshold: float, wrong: bool = False) -> Probe:
    """A step whose probes are limited by the client at `loads`, each entry once."""
    left = list(loads)

    async def probe(load: float) -> Summary:
        if load not in left:
            return GOOD if load <= threshold else BAD
        left.remove(load)
        summary = GOOD if (load <= threshold) != wrong else BAD
        limited = ClientHealth.judge(cpu_share=0.97)
        return summary.model_copy(update={"client_health": limited})

    return probe


def sampled(rng: np.random.Generator) -> Probe:
    async def probe(rate: float) -> Summary:
        times = rng.exponential(1 / max(SERVED - rate, 1e-3), 300)
        return summarize((record(0.0, float(t)) for t in times), slo=BOUND)

    return probe


class TestBadSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"low": 0}, "low must be above 0 .* got 0"),
            ({"low": math.nan}, "low must be .* got nan"),
            ({"high": -1}, "high must be .* got -1"),
            ({"high": math.inf}, "high must be .* got inf"),
            ({"low": 8, "high": 8}, "low must be below high = 8, got 8"),
            ({"tolerance": 0}, "tolerance must be .* got 0"),
            ({"tolerance": 1}, "tolerance must be .* got 1"),
            ({"low": 1.5, "integer": True}, "low must be a whole number .* got 1.5"),
            ({"confirmations": -1}, "confirmations must be at least 0 .* got -1"),
            ({"max_probes": 2}, "less than max_probes = 2, got 2"),
        ],
    )
    def test_invalid_settings_fail_before_a_probe(
        self, settings: dict[str, Any], message: str
    ) -> None:
        probed: list[float] = []

        def meets(load: float) -> bool:
            probed.append(load)
            return True

        with pytest.raises(SettingError, match=message):
            search(noisy(meets), **settings)
        assert probed == []

    def test_a_summary_without_attainment(self) -> None:
        for summary, message in (
            (summarize([record(0.0, 0.5)]), "at load 1 has no slo"),
            (summarize([], slo=BOUND), "at load 1 judged no request"),
        ):
            with pytest.raises(SettingError, match=message):
                search(noisy_summary(summary))


def noisy_summary(summary: Summary) -> Probe:
    async def probe(load: float) -> Summary:
        return summary

    return probe


KINDS = {
    "good": record(0.0, 0.5),
    "late": record(0.0, 1.5),
    "error": failed("error"),
    "timeout": failed("timeout"),
    "shed": failed("shed"),
    "cut": failed("cancelled", end=0.5),
    "cut late": failed("cancelled", end=1.5),
}


class TestSLOUnreachable:
    @given(kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=30), left=st.integers(0, 40))
    def test_unreachable_if_the_best_outcome_misses(self, kinds: list[str], left: int) -> None:
        records = [KINDS[kind] for kind in kinds]
        best = summarize([*records, *[KINDS["good"]] * left], slo=BOUND).slo_met
        assert slo_unreachable(iter(records), BOUND, requests_left=left) == (best is False)

    def test_worked_out_by_hand(self) -> None:
        # 95 % of 100 is 95: the SLO can be met with 5 bad requests, but not with 6.
        five = [KINDS["shed"]] * 2 + [KINDS["timeout"]] * 2 + [KINDS["late"]]
        assert not slo_unreachable(five, BOUND, requests_left=95)
        assert slo_unreachable([*five, KINDS["error"]], BOUND, requests_left=94)
        with pytest.raises(SettingError, match="requests_left must be at least 0, got -1"):
            slo_unreachable(five, BOUND, requests_left=-1)


class TestKnee:
    def test_hyperbola(self) -> None:
        # 1 / (1 - x) up to X has the slope of its chord, 1 / (1 - X), at 1 - sqrt(1 - X).
        x = np.arange(100) / 100
        y = 1 / (1 - x)
        assert knee(list(x), list(y)) == 90  # X = 0.99
        assert knee(list(1e4 * x + 7), list(3e-3 * y - 5)) == 90, "whatever the units"
        with_gap = np.where(np.arange(100) == 50, np.nan, y)
        assert knee(list(x), list(with_gap)) == 90

    def test_falling_throughput(self) -> None:
        assert knee([10, 20, 30, 38, 40, 35, 28], [1, 1.1, 1.3, 2, 9, 20, 30]) == 3
        assert knee([10, 30, 10], [1, 2, 30]) == 1

    @pytest.mark.parametrize(
        ("x", "y"),
        [
            ([], []),
            ([1, 2], [1, 9]),
            ([1, 2, 3], [2, 4, 6]),
            ([1, 2, 3], [5, 5, 5]),
            ([2, 2, 2], [1, 5, 9]),
            ([1, 2, 3], [0, 3, 4]),
            ([1, 2, 3, math.nan], [1, 1, math.inf, 9]),
        ],
    )
    def test_no_knee(self, x: list[float], y: list[float]) -> None:
        assert knee(x, y) is None

    def test_unequal_lengths(self) -> None:
        with pytest.raises(SettingError, match="same length, got 3 and 2"):
            knee([1, 2, 3], [1, 2])


def test_noise_on_a_flat_curve_is_not_a_knee() -> None:
    assert knee([95, 205, 535, 909], [26.9, 22.8, 28.1, 33.3]) is None
    assert knee([95, 205, 535, 909], [26.9, 22.8, 28.1, 133.0]) is not None
