"""Users as a load, and verdicts and days compared with sums made by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.records import record

from workbench.claims.claim import Claim, RunInfo
from workbench.cost.cost import Cost
from workbench.errors import SettingError
from workbench.experiments.fleets import (
    Day,
    Fleet,
    cost_ratios,
    fleet_caveats,
    fleet_frame,
    max_savings_note,
    max_savings_ratio,
)
from workbench.experiments.search import highest_load
from workbench.experiments.search_result import SearchResult
from workbench.experiments.users import (
    highest_users,
    initial_load,
    request_timeout_s,
    users_load,
    users_verdicts,
)
from workbench.figures.claims import break_even_figure, fleets_figure, users_figure
from workbench.metrics.health import ClientHealth
from workbench.metrics.slo import SLO
from workbench.metrics.summary import Summary, summarize
from workbench.runs.run import Run
from workbench.workload.arrivals import ClosedLoop, Stages
from workbench.workload.prompts import Conversations, RandomPrompts

PROMPTS = RandomPrompts(input=8, output=8)
CLAIM = Claim(name="10x the users", figure="users", goal=10)
WHERE = RunInfo(run_id="r", date="2026-01-31", hardware="a CPU", accelerator="cpu")
LIMITED = ClientHealth.judge(cpu_share=0.99)


def summary(*, good: bool, health: ClientHealth | None = None) -> Summary:
    times = (0.1, 0.2) if good else (5.0, 5.1)
    return summarize([record(0.0, *times)], slo=SLO(ttft_ms=1000), health=health)


def searched(
    holds: int, high: int = 1024, health: ClientHealth | None = None, low: int = 1
) -> SearchResult:
    """Search an engine that holds `holds` users."""

    async def probe(users: float) -> Summary:
        return summary(good=users <= holds, health=health)

    search = highest_load(probe, low=low, high=high, tolerance=0.001, integer=True, unit="users")
    return asyncio.run(search)


class TestLoad:
    def test_users_are_slots_with_think_time(self) -> None:
        load = users_load(300, prompts=PROMPTS, think_s=2.0, duration_s=10.0, seed=3)
        assert load.arrivals == ClosedLoop(max_concurrency=300, think_s=2.0)
        assert (load.duration_s, load.seed) == (10.0, 3)
        assert load.needed_workers == 2  # 150 questions a second

    def test_there_are_enough_questions(self) -> None:
        load = users_load(50, prompts=PROMPTS, think_s=2.0, duration_s=10.0)
        assert load.count is not None
        # 50 users who are answered at once ask 250 times on average, a Poisson number.
        assert load.count >= 250 + 4 * 250**0.5
        chats = Conversations(turns=5, input=8, output=8, think_s=2.0)
        fewer = users_load(50, prompts=chats, think_s=2.0, duration_s=10.0).count
        assert fewer is not None
        assert 5 * fewer >= load.count - 50

    def test_few_users_ask_for_longer(self) -> None:
        asked: dict[str, Any] = {
            "prompts": PROMPTS,
            "think_s": 3.0,
            "warmup_s": 2.0,
            "timeout_s": 22.0,
        }
        durations = [users_load(n, duration_s=9.0, **asked).duration_s for n in (1, 4, 100)]
        # 4 questions, each with 3 s to think and 11 s for the answer, by 1, 4 and 100 users.
        assert durations == [2 + 56, 2 + 14, 9]

    def test_users_need_think_time(self) -> None:
        with pytest.raises(SettingError, match="think_s must be above 0 seconds, got 0"):
            users_load(1, prompts=PROMPTS, think_s=0, duration_s=1)

    def test_timeout_is_twice_the_longest_good_answer(self) -> None:
        assert request_timeout_s(SLO(ttft_ms=1000, tpot_ms=50), 101) == pytest.approx(2 * 6.0)
        assert request_timeout_s(SLO(ttft_ms=1000, tpot_ms=50, e2el_ms=4000), 101) == pytest.approx(
            8
        )
        assert request_timeout_s(SLO(ttft_ms=1000), 101) == 120


class TestVerdicts:
    def verdict(self, ours: list[SearchResult], theirs: list[SearchResult]) -> Any:
        results = {"vLLM": ours, "static": theirs}
        rng = np.random.default_rng(0)
        return users_verdicts(CLAIM, results, ["static", "one"], where=WHERE, rng=rng)

    def test_pass_and_the_opponent_that_was_not_measured(self) -> None:
        static, single = self.verdict([searched(n) for n in (240, 250, 260)], [searched(20)] * 3)
        assert static.verdict == "PASS"
        assert (static.ours, static.theirs) == (250, 20)
        assert (single.verdict, single.ratio) == ("not decided", None)
        assert "one was not measured" in single.reason

    def test_fail(self) -> None:
        static, _ = self.verdict([searched(n) for n in (40, 41, 42)], [searched(20)] * 3)
        assert static.verdict == "FAIL"
        assert static.ratio == pytest.approx((40 * 41 * 42) ** (1 / 3) / 20)

    @pytest.mark.parametrize(
        ("ours", "theirs", "reason"),
        [
            ([searched(40)] * 2, [searched(20)] * 2, "2 of at least 3 repeats"),
            ([searched(40, health=LIMITED)] * 3, [searched(2)] * 3, "the client limited"),
            ([searched(5)] * 3, [searched(0)] * 3, "missed the SLO even with the fewest users"),
            ([searched(40)] * 3, [searched(0, low=2)] * 3, "missed the SLO even with the fewest"),
            ([searched(40)] * 3, [searched(99, high=9)] * 3, "static held the most users"),
            ([searched(99, high=16)] * 3, [searched(8)] * 3, "vLLM held the most users"),
        ],
    )
    def test_caveats_block_the_verdict(
        self, ours: list[SearchResult], theirs: list[SearchResult], reason: str
    ) -> None:
        static, _ = self.verdict(ours, theirs)
        assert static.verdict == "not decided"
        assert reason in static.reason

    def test_an_unbounded_candidate_can_still_pass(self) -> None:
        static, _ = self.verdict([searched(999, high=64)] * 3, [searched(4)] * 3)
        assert static.verdict == "PASS"

    def test_an_opponent_that_misses_with_one_user_counts_as_one(self) -> None:
        theirs = [searched(0), searched(1), searched(0)]
        static, _ = self.verdict([searched(40)] * 3, theirs)
        assert (static.verdict, static.ratio, static.theirs) == ("PASS", pytest.approx(40), 1)
        assert static.notes == (
            "static missed the SLO even with the fewest users that were tried "
            "(TTFT p95 5000 ms, TPOT p95 100 ms)",
        )

    def test_a_repeat_starts_at_0_7_of_the_last_answer(self) -> None:
        assert initial_load([], 8, 512) == 64
        assert initial_load([searched(100)], 8, 512) == 70
        assert initial_load([searched(100), searched(10)], 8, 512) == 8
        assert initial_load([searched(0)], 8, 512) == 8

    @pytest.mark.parametrize(
        ("holds", "start", "highest", "probed"),
        [
            (100, None, 100, [2, 4, 8, 16, 32, 64, 128]),
            (100, 60, 100, [60, 120]),
            (7, 60, 7, [60, 30, 15, 7]),
            (60, 64, 60, [64, 32]),
            (1, 60, None, [60, 30, 15, 7, 3, 2]),
        ],
    )
    def test_loads_below_the_start_are_probed_only_if_needed(
        self,
        holds: int,
        start: int | None,
        highest: int | None,
        probed: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        async def probe(users: float) -> Summary:
            return summary(good=users <= holds)

        monkeypatch.setattr("workbench.experiments.users.make_probe", lambda *_, **__: probe)
        options: Any = {"run": None, "low": 2, "high": 512, "start": start, "tolerance": 0.001}
        slo = SLO(ttft_ms=1000)
        found = asyncio.run(highest_users(None, lambda users, seed: None, slo, **options))  # type: ignore[arg-type, return-value]
        bracketed = [p.rate for p in found.probes if p.phase == "bracket"]
        assert (found.highest, bracketed, found.unit) == (highest, probed, "users")
        assert found.bounded


def day(dollars: float, tokens: int, **fields: Any) -> Day:
    usual: dict[str, Any] = {
        f"{s}_s": 0.0 for s in ("busy", "idle", "starting", "stopping", "unknown")
    }
    usual |= {"busy_s": 6.0, "idle_s": 4.0, "held_s": 10.0, "dollars": dollars}
    usual |= {"per_replica_hour": {}, "replica_seconds": {}, "dollars_per_hour": 0.0}
    usual |= {"energy_kwh": None, "energy_dollars": None, "good_requests": 1, "output_weight": 4}
    price = dollars / tokens * 1e6 if tokens else None
    names = ("per_million_tokens", "per_million_input_tokens", "per_million_output_tokens")
    usual |= {"input_tokens": tokens, "output_tokens": 0, **dict.fromkeys(names, price)}
    health = fields.pop("health", None)
    return Day(summary(good=True, health=health), Cost(**(usual | fields)))


@pytest.fixture
def fleets(tmp_path: Path) -> tuple[Fleet, Fleet]:
    run = Run.create(tmp_path, {})
    fixed = Fleet("fixed", run, (day(3.0, 1_000_000), day(3.0, 500_000)))
    return fixed, Fleet("autoscaled", run, (day(1.0, 1_000_000), day(1.5, 500_000)))


class TestFleets:
    @pytest.mark.parametrize(
        ("stages", "replicas", "most"),
        [
            ([(6, 0), (6, 10)], 3, 1.0),
            ([(8, 60)], 2, 2 / 1.5),
            ([(6, 0), (6, 10), (1, 0), (1, 30)], 4, 4 / 1.75),
            ([(4, 0), (4, 10), (0, 0), (0, 10)], 2, 2 / 1.5),
        ],
        ids=["flat", "a ramp", "a quarter at the peak", "one stays at night"],
    )
    def test_max_savings_ratio(
        self, stages: list[tuple[float, float]], replicas: int, most: float
    ) -> None:
        assert max_savings_ratio(Stages(stages=stages), replicas) == pytest.approx(most)

    def test_max_savings_note(self) -> None:
        note = max_savings_note(Stages(stages=[(8, 60)]), 2)
        assert note.endswith("would cost 1.33 times less")

    def test_cost_ratios_are_pairs_of_days(self, fleets: tuple[Fleet, Fleet]) -> None:
        assert cost_ratios(*fleets) == [(3.0, 1.0), (6.0, 3.0)]
        assert cost_ratios(*fleets, premium=1.5) == [(3.0, 1.5), (6.0, 4.5)]
        assert cost_ratios(None, fleets[1]) == []

    def test_a_day_without_good_tokens_has_price_0(self, tmp_path: Path) -> None:
        run = Run.create(tmp_path, {})
        assert Fleet("x", run, (day(3.0, 0),)).per_million == [0.0]  # a ratio with 0 is not decided

    def test_frame_has_a_row_per_day(self, fleets: tuple[Fleet, Fleet]) -> None:
        frame = fleet_frame(fleets)
        assert frame.dollars.tolist() == [3.0, 3.0, 1.0, 1.5]
        assert frame.per_million.tolist() == [3.0, 6.0, 1.0, 3.0]
        assert fleet_frame([]).empty
        assert "energy_kwh" not in frame, "no GPU reported its power"
        metered = Fleet("fixed", fleets[0].run, (day(3.0, 1, energy_kwh=0.5),))
        assert fleet_frame([metered]).energy_kwh.tolist() == [0.5]

    def test_caveats(self, fleets: tuple[Fleet, Fleet]) -> None:
        assert fleet_caveats(fleets) == []
        run = fleets[0].run
        limited = Fleet("fixed", run, (day(1.0, 1, health=LIMITED),))
        unseen = Fleet("autoscaled", run, (day(1.0, 1, unknown_s=0.6),))
        assert fleet_caveats([limited, unseen]) == [
            "the client limited the load of the fixed fleet",
            "gaps in the samples hide 5 % or more of the autoscaled fleet",
        ]


class TestFigures:
    def test_break_even_is_where_the_lines_meet(self) -> None:
        figure = break_even_figure([4.0, 4.0], [1.0, 3.0], goal=2.0, premium=1.5)
        lines = {trace.name: trace for trace in figure.data if trace.name}
        scaled = next(trace for name, trace in lines.items() if name.startswith("Autoscaled"))
        # The means are 4 and 2: at twice the price both cost 4.
        assert np.interp(2.0, scaled.x, scaled.y) == pytest.approx(4.0)
        assert [shape.x0 for shape in figure.layout.shapes] == [2.0, 1.5]
        claim = next(trace for name, trace in lines.items() if name.startswith("Claim"))
        assert set(claim.y) == {2.0}

    def test_nothing_to_compare(self) -> None:
        assert "Nothing to compare" in break_even_figure([], [1.0], 2.0).layout.title.text
        assert "Nothing to compare" in break_even_figure([0.0], [1.0], 2.0).layout.title.text
        assert "No fleet" in fleets_figure(fleet_frame([])).layout.title.text

    def test_replica_seconds_are_stacked_by_state(self, fleets: tuple[Fleet, Fleet]) -> None:
        figure = fleets_figure(fleet_frame(fleets))
        heights = {trace.name: list(trace.y) for trace in figure.data if trace.name}
        assert heights["Busy"] == [6.0] * 4
        assert heights["Idle"] == [4.0] * 4
        assert figure.layout.barmode == "stack"

    def test_a_bar_per_engine_at_the_mean(self) -> None:
        figure = users_figure({"vLLM": [searched(40), searched(60)], "static": [searched(5)]})
        assert [list(trace.y) for trace in figure.data] == [[50.0], [40, 60], [5.0], [5]]
        assert list(figure.data[1].x) == ["vLLM<br>50 users on average"] * 2
        hollow = users_figure({"vLLM": [searched(4, health=LIMITED)]})
        assert hollow.data[1].marker.symbol == ("circle-open",)
        assert "hollow" in hollow.layout.title.text
