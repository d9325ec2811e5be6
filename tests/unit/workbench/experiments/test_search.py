"""Probes whose threshold is known beforehand: the M/M/1 queue, a step, and steps with noise."""

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
from workbench.experiments.search import Probe, highest_load, knee, saturated
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
    """400 requests at the quantiles of the M/M/1 time in system, all late past saturation."""
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
        ("start", "looked"),
        [
            (None, [1, 2, 4, 8, 16]),
            (6, [6, 12]),
            (9, [9, 18]),
            (40, [40, 20, 10]),
            (64, [64, 32, 16, 8]),
        ],
    )
    def test_it_doubles_or_halves_from_its_start(
        self, start: float | None, looked: list[float]
    ) -> None:
        result = search(step(11), start=start, tolerance=0.02)
        assert [p.rate for p in result.probes if p.phase == "bracket"] == looked
        assert result.highest is not None
        assert 11 / 1.02 <= result.highest <= 11

    @pytest.mark.parametrize("threshold", [10, 0])
    def test_a_start_that_met_by_chance_hides_no_lower_load(self, threshold: float) -> None:
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
            assert "missed even at 1 requests/s, the lowest" in result.headline()

    def test_the_queue_of_known_capacity(self) -> None:
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
    def test_any_threshold_is_found_to_the_tolerance(
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
    def test_whatever_the_noise_the_answer_held_most_times(
        self, answers: list[bool], confirmations: int, max_probes: int, integer: bool
    ) -> None:
        said, kept = iter(answers), list[ProbeResult]()
        limits = {"max_probes": max_probes, "confirmations": confirmations, "integer": integer}
        result = search(noisy(lambda _: next(said)), on_probe=kept.append, **limits)
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

    def test_a_lucky_run_is_not_the_answer(self) -> None:
        luck = iter([True])  # the first run at 8 meets the SLO, and no other above 5
        result = search(noisy(lambda load: load <= 5 or (load == 8 and next(luck, False))))
        assert [p.met for p in result.probes if p.rate == 8] == [True, False, False]
        assert result.highest is not None
        assert 5 / 1.05 <= result.highest <= 5
        assert result.bounded

    def test_few_probes_leave_room_to_confirm(self) -> None:
        result = search(step(40), max_probes=6)
        assert [p.rate for p in result.probes] == [1, 2, 4, 8, 8, 8]
        assert (result.highest, result.bounded, result.confirmed) == (8, False, 2)

    def test_never_and_always(self) -> None:
        never, always = search(step(0.1)), search(step(1e9))
        assert (never.highest, never.bounded, never.confirmed) == (None, True, 0)
        assert never.headline() == (
            "SLO missed even at 1 requests/s, the lowest (no TTFT, no TPOT; 1 probe)"
        )
        assert (always.highest, always.bounded, always.confirmed) == (64, False, 2)
        assert "no miss was seen above it" in always.headline()

    def test_the_table_has_every_probe(self) -> None:
        result = search(queue)
        table = result.frame()
        assert table.rate.tolist() == [p.rate for p in result.probes]
        assert table.met.tolist() == [p.summary.slo_met for p in result.probes]
        # The quantiles of an exponential law: p95 = ln(20) / spare, as no other than TTFT here.
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
    def test_what_a_limited_probe_saw_counts_for_nothing_once_repeated(self, where: float) -> None:
        """It says the contrary of what holds; the same load run again tells the truth."""
        result = search(limited_at([where], 4, lying=True), tolerance=0.99)
        assert [p.rate for p in result.counted] == [1, 2, 4, 8, math.sqrt(32), 4, 4]
        assert (result.highest, result.missed) == (4, math.sqrt(32))
        assert [p.met for p in result.probes if p.rate == where][:2] == [where > 4, where <= 4]
        assert not result.client_limited
        assert "8 probes, 1 replaced as the client limited it" in result.headline()
        assert list(result.frame().replaced) == [p.replaced for p in result.probes]

    def test_repeats_stay_within_the_most_probes(self) -> None:
        limited = [load for load in (1.0, 2.0, 4.0, 8.0) for _ in range(9)]
        result = search(limited_at(limited, 8), max_probes=9, confirmations=2)
        assert len(result.probes) == 9
        assert [p.rate for p in result.probes][:7] == [1, 1, 2, 2, 4, 4, 8]
        assert result.client_limited

    def test_what_the_probe_raises_comes_through(self) -> None:
        kept: list[ProbeResult] = []

        async def probe(load: float) -> Summary:
            if load > 2:
                raise ConnectionError("gone")
            return GOOD

        with pytest.raises(ConnectionError, match="gone"):
            search(probe, on_probe=kept.append)
        assert [p.rate for p in kept] == [1, 2]


def limited_at(loads: list[float], threshold: float, lying: bool = False) -> Probe:
    """A step whose probes are limited by the client at `loads`, each entry once."""
    left = list(loads)

    async def probe(load: float) -> Summary:
        if load not in left:
            return GOOD if load <= threshold else BAD
        left.remove(load)
        summary = GOOD if (load <= threshold) != lying else BAD
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
        ("settings", "named"),
        [
            ({"low": 0}, "low is 0"),
            ({"low": math.nan}, "low is nan"),
            ({"high": -1}, "high is -1"),
            ({"high": math.inf}, "high is inf"),
            ({"low": 8, "high": 8}, "low is 8: give one below high = 8"),
            ({"tolerance": 0}, "tolerance is 0"),
            ({"tolerance": 1}, "tolerance is 1"),
            ({"low": 1.5, "integer": True}, "low is 1.5: .*whole"),
            ({"confirmations": -1}, "confirmations is -1"),
            ({"max_probes": 2}, "max_probes is 2: give"),
        ],
    )
    def test_refused_by_name_before_a_probe(self, settings: dict[str, Any], named: str) -> None:
        asked: list[float] = []
        with pytest.raises(SettingError, match=named):
            search(noisy(lambda load: asked.append(load) is None), **settings)
        assert asked == []

    def test_a_summary_that_judged_nothing(self) -> None:
        for summary, why in (
            (summarize([record(0.0, 0.5)]), "at 1 has no slo"),
            (summarize([], slo=BOUND), "at 1 judged no request"),
        ):
            with pytest.raises(SettingError, match=why):
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


class TestSaturated:
    @given(kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=30), left=st.integers(0, 40))
    def test_exactly_when_the_best_end_misses(self, kinds: list[str], left: int) -> None:
        records = [KINDS[kind] for kind in kinds]
        best = summarize([*records, *[KINDS["good"]] * left], slo=BOUND).slo_met
        assert saturated(iter(records), BOUND, requests_left=left) == (best is False)

    def test_by_hand(self) -> None:
        # 95 % of 100 is 95: with 5 bad it can be reached, with 6 it cannot.
        five = [KINDS["shed"]] * 2 + [KINDS["timeout"]] * 2 + [KINDS["late"]]
        assert not saturated(five, BOUND, requests_left=95)
        assert saturated([*five, KINDS["error"]], BOUND, requests_left=94)
        with pytest.raises(SettingError, match="requests_left is -1"):
            saturated(five, BOUND, requests_left=-1)


class TestKnee:
    def test_of_the_hyperbola(self) -> None:
        # 1 / (1 - x) up to X has the slope of its chord, 1 / (1 - X), at 1 - sqrt(1 - X).
        x = np.arange(100) / 100
        y = 1 / (1 - x)
        assert knee(x, y) == 90  # X = 0.99
        assert knee(1e4 * x + 7, 3e-3 * y - 5) == 90, "whatever the units"
        with_gap = np.where(np.arange(100) == 50, np.nan, y)
        assert knee(x, with_gap) == 90

    def test_where_throughput_falls_back(self) -> None:
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
    def test_none_to_find(self, x: list[float], y: list[float]) -> None:
        assert knee(x, y) is None

    def test_unequal_lengths(self) -> None:
        with pytest.raises(SettingError, match="x has 3 points and y has 2"):
            knee([1, 2, 3], [1, 2])


def test_noise_on_a_flat_curve_is_no_knee() -> None:
    assert knee([95, 205, 535, 909], [26.9, 22.8, 28.1, 33.3]) is None
    assert knee([95, 205, 535, 909], [26.9, 22.8, 28.1, 133.0]) is not None
