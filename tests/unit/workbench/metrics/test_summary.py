"""Summaries against values worked out by hand, closed formulas, numpy on lists, and vLLM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import failed, record

from serving.errors import WorkbenchError
from workbench.errors import SettingError, UnknownMetricError
from workbench.metrics.health import ClientHealth, LoopWatch
from workbench.metrics.metric import STATISTICS
from workbench.metrics.slo import SLO
from workbench.metrics.summary import Summary, summarize
from workbench.records import RequestRecord

LATENCIES = ("ttft", "tpot", "itl", "e2el", "ttft_from_schedule", "e2el_from_schedule")

# Two requests, worked out by hand (in seconds):
#   a: sent 1.0, tokens at 1.2, 1.3, 1.6        -> TTFT 200, E2EL 600, TPOT 200, gaps 100, 300 ms
#   b: scheduled 1.5, sent 2.0, one token at 2.4 -> TTFT 400, E2EL 400, no TPOT, no gap
A = record(1.0, 1.2, 1.3, 1.6, scheduled_s=1.0)
B = record(2.0, 2.4, scheduled_s=1.5)


class TestByHand:
    def test_latencies(self) -> None:
        summary = summarize([A, B])
        assert summary.mean_ttft_ms == pytest.approx(300)
        assert summary.median_ttft_ms == summary.p50_ttft_ms == pytest.approx(300)
        assert summary.std_ttft_ms == pytest.approx(100)
        assert summary.p99_ttft_ms == pytest.approx(398)  # 200 + 0.99 * 200
        assert summary.mean_tpot_ms == summary.p99_tpot_ms == pytest.approx(200)
        assert summary.mean_itl_ms == pytest.approx(200)
        assert summary.p90_itl_ms == pytest.approx(280)  # 100 + 0.9 * 200
        assert summary.mean_e2el_ms == pytest.approx(500)

    def test_latency_from_schedule_includes_a_late_send(self) -> None:
        summary = summarize([A, B])
        assert summary.mean_ttft_from_schedule_ms == pytest.approx((200 + 900) / 2)
        assert summary.mean_e2el_from_schedule_ms == pytest.approx((600 + 900) / 2)
        assert summary.client_health.send_lag_p99_ms == pytest.approx(495)

    def test_rates(self) -> None:
        summary = summarize([A, B])
        assert summary.duration == pytest.approx(1.4)  # from 1.0 to 2.4
        assert summary.request_throughput == pytest.approx(2 / 1.4)
        assert (summary.total_input_tokens, summary.total_output_tokens) == (20, 4)
        assert summary.output_throughput == pytest.approx(4 / 1.4)
        assert summary.total_token_throughput == pytest.approx(24 / 1.4)
        assert summarize([A, B], duration_s=8).output_throughput == pytest.approx(0.5)

    def test_failed_requests_are_counted_and_have_no_latency(self) -> None:
        bad = [failed("error"), failed("timeout"), failed("shed"), failed("cancelled")]
        summary = summarize([A, B, *bad])
        counts = (summary.completed, summary.failed, summary.shed, summary.cancelled)
        assert counts == (2, 2, 1, 1)
        assert summary.mean_ttft_ms == pytest.approx(300)
        assert summary.mean_itl_ms == pytest.approx(200)

    def test_gaps_of_failed_requests_are_not_pooled(self) -> None:
        cut = failed("error", 0, 9, token_times_s=(1.0, 8.0), first_token_s=1.0)
        assert summarize([cut, A, cut]).mean_itl_ms == pytest.approx(200)

    def test_absent_figures_are_none(self) -> None:
        for summary in (summarize([]), summarize([failed("shed"), failed("error")])):
            figures = summary.model_dump()
            for latency in LATENCIES:
                assert {figures[f"{s}_{latency}_ms"] for s in STATISTICS} == {None}
            assert summary.output_throughput is None
            assert summary.total_output_tokens is None
        assert summarize([]).duration is None
        assert summarize([]).request_throughput is None
        assert summarize([failed("shed")]).request_throughput == 0

    def test_requests_without_token_counts(self) -> None:
        unknown = record(0, 0.1, 0.2, output_tokens=None, prompt_tokens=None)
        alone = summarize([unknown])
        assert (alone.without_usage, alone.total_output_tokens) == (1, None)
        assert (alone.mean_tpot_ms, alone.output_throughput) == (None, None)
        both = summarize([unknown, A])
        assert (both.without_usage, both.total_output_tokens) == (1, 3)

    def test_warm_up_is_excluded_by_due_time(self) -> None:
        early = [record(float(t), t + 0.9, t + 1.8) for t in range(5)]
        summary = summarize([*early, record(5.0, 5.1, 5.2), record(6.0, 6.1, 7.0)], warmup_s=5)
        assert summary.completed == 2
        assert summary.mean_ttft_ms == pytest.approx(100)
        assert summary.mean_itl_ms == pytest.approx(500)
        assert summary.duration == pytest.approx(2.0)  # from 0 + 5 to 7
        assert summarize(early, warmup_s=2, duration_s=10).duration == pytest.approx(8)


class TestGoodput:
    SLO = SLO(ttft_ms=300, tpot_ms=250, target=0.5)

    def test_failed_and_shed_requests_are_judged(self) -> None:
        slow = record(0.0, 0.9, 1.0)
        quick = failed("shed", 0, 0.001)
        records = [A, slow, quick, failed("error", 0, 0.001), failed("timeout")]
        summary = summarize(records, slo=self.SLO, duration_s=2)
        assert summary.request_goodput == pytest.approx(1 / 2)
        assert summary.slo_attainment == pytest.approx(1 / 5)
        assert summary.slo_met is False
        assert summarize([A, slow], slo=self.SLO).slo_met is True
        assert summarize([A]).slo_met is None

    def test_a_bound_is_inclusive_and_one_token_meets_any_tpot(self) -> None:
        exact = record(0.0, 0.25, 0.5)
        assert summarize([exact], slo=SLO(ttft_ms=250, tpot_ms=250)).slo_attainment == 1
        assert summarize([B], slo=SLO(tpot_ms=0.001)).slo_attainment == 1

    def test_cancelled_is_judged_only_above_a_bound(self) -> None:
        waiting_long = failed("cancelled", 0, 0.4)
        waiting_short = failed("cancelled", 0, 0.2)
        summary = summarize([A, waiting_short, waiting_long], slo=self.SLO)
        assert summary.slo_attainment == pytest.approx(1 / 2)

    def test_an_unknown_latency_is_not_good(self) -> None:
        unscheduled = record(0.0, 0.1, 0.2)
        bound = SLO(ttft_from_schedule_ms=1000)
        assert summarize([unscheduled], slo=bound).slo_attainment == 0
        assert summarize([A, B], slo=bound).slo_attainment == 1
        assert summarize([A, B], slo=SLO(ttft_from_schedule_ms=500)).slo_attainment == 0.5

    @pytest.mark.parametrize(
        ("bounds", "kind", "message"),
        [
            ({"tfft_ms": 3}, UnknownMetricError, "'ttft_ms'"),
            ({"ttft": 3}, UnknownMetricError, "'ttft_ms'"),
            ({"ttft_ms": 0}, SettingError, r"SLO\.ttft_ms must .*got 0"),
            ({"e2el_ms": "soon"}, SettingError, r"SLO\.e2el_ms must .*got 'soon'"),
            ({}, SettingError, "at least one"),
            ({"ttft_ms": 1, "target": 1.5}, SettingError, r"SLO\.target must .*got 1.5"),
        ],
    )
    def test_invalid_bounds(
        self, bounds: dict[str, Any], kind: type[WorkbenchError], message: str
    ) -> None:
        with pytest.raises(kind, match=message):
            SLO(**bounds)


class TestGroups:
    def test_by_model_and_tenant(self) -> None:
        records = [
            record(0, 0.1, 0.3, model="x", tenant="t"),
            record(0, 0.5, 1.0, model="y"),
            failed("shed", model="y", tenant="t"),
        ]
        summary = summarize(records, duration_s=2)
        assert set(summary.by_model or ()) == {"x", "y"}
        assert set(summary.by_tenant or ()) == {"t", "(none)"}
        x, y = summary.by_model["x"], summary.by_model["y"]
        assert x.mean_ttft_ms == pytest.approx(100)
        assert x.mean_itl_ms == pytest.approx(200)
        assert (y.completed, y.shed, y.request_throughput) == (1, 1, 0.5)
        assert y.mean_itl_ms == pytest.approx(500)
        assert summary.by_tenant["t"].completed == 1
        assert summarize([A, B]).by_model is None

    def test_a_group_equals_the_summary_of_its_records(self) -> None:
        rng = np.random.default_rng(1)
        records = [
            record(float(s), *(s + np.cumsum(rng.random(rng.integers(1, 9)))), model="xy"[i % 2])
            for i, s in enumerate(rng.random(200) * 10)
        ]
        group = summarize(records, duration_s=20).by_model["y"]
        alone = summarize([r for r in records if r.model == "y"], duration_s=20)
        assert group.p99_itl_ms is not None
        for name, value in group.model_dump(exclude={"client_health"}).items():
            assert value == pytest.approx(getattr(alone, name)), name


class TestHealth:
    def test_a_limited_run_is_marked_in_headline_and_table(self) -> None:
        late = record(2.0, 2.4, scheduled_s=1.5)
        summary = summarize([late])
        assert summary.client_health.client_limited
        assert summary.headline().startswith("CLIENT LIMITED: ")
        assert "client limited" in summary.table().columns.name
        healthy = summarize([A])
        assert "LIMITED" not in healthy.headline()
        assert healthy.table().columns.name == "ms"

    def test_the_loop_watch_is_judged(self) -> None:
        watch = LoopWatch()
        assert summarize([A], watch=watch).client_health.verdict == "ok", "it has not run"
        watch.loop_lag_p99_ms, watch.cpu_share = 3.0, 0.99
        health = summarize([A], watch=watch).client_health
        assert (health.loop_lag_p99_ms, health.cpu_share) == (3.0, 0.99)
        assert health.client_limited

    def test_a_given_health_is_kept(self) -> None:
        health = ClientHealth.judge(cpu_share=0.2, send_lag_p99_ms=1)
        assert summarize([B], health=health).client_health == health


class TestSteadyState:
    def ramp(self, slope: float, count: int = 300) -> Summary:
        rng = np.random.default_rng(0)
        waits = 1 + slope * np.arange(count) / count + rng.normal(0, 0.02, count)
        return summarize([record(float(i), i + float(w)) for i, w in enumerate(waits)])

    def test_growing_latency_is_not_steady(self) -> None:
        assert self.ramp(0).steady is True
        growing = self.ramp(1)
        assert growing.steady is False
        # Linear from 1 to 2: the thirds' medians are near 1 + 1/6 and 1 + 5/6.
        assert growing.drift == pytest.approx((1 + 5 / 6) / (1 + 1 / 6), rel=0.02)
        assert self.ramp(-0.7).steady is False

    def test_too_few_requests_to_tell(self) -> None:
        assert (self.ramp(1, 29).steady, self.ramp(1, 29).drift) == (None, None)


@st.composite
def runs(draw: st.DrawFn) -> list[RequestRecord]:
    times = st.floats(0, 100, allow_nan=False)
    kinds = st.sampled_from(["ok", "ok", "ok", "error", "shed", "timeout", "cancelled"])
    records = []
    for _ in range(draw(st.integers(0, 30))):
        sent, gaps = draw(times), draw(st.lists(st.floats(0, 5), max_size=6))
        tokens = [sent + sum(gaps[: i + 1]) for i in range(len(gaps))]
        due = draw(st.none() | st.just(sent - 0.5))
        records.append(record(sent, *tokens, status=draw(kinds), scheduled_s=due))
    return records


@settings(max_examples=60)
@given(runs())
def test_summary_agrees_with_numpy_on_lists(records: list[RequestRecord]) -> None:
    ok = [r for r in records if r.status == "ok"]
    plain = {
        "ttft": [r.first_token_s - r.sent_s for r in ok if r.token_times_s],
        "tpot": [
            (r.end_s - r.first_token_s) / (r.output_tokens - 1) for r in ok if r.output_tokens > 1
        ],
        "itl": [b - a for r in ok for a, b in zip(r.token_times_s, r.token_times_s[1:])],  # noqa: B905
        "e2el": [r.end_s - r.sent_s for r in ok],
    }
    summary = summarize(records)
    for name, values in plain.items():
        if not values:
            assert getattr(summary, f"mean_{name}_ms") is None
            continue
        ms = np.array(values) * 1e3
        truth = [ms.mean(), np.median(ms), ms.std(), *np.percentile(ms, [50, 90, 95, 99])]
        found = [getattr(summary, f"{statistic}_{name}_ms") for statistic in STATISTICS]
        assert found == pytest.approx(truth, rel=1e-6, abs=1e-6)
    assert summary.completed + summary.failed + summary.shed + summary.cancelled == len(records)


def test_chunks_are_joined() -> None:
    records = [record(float(i), i + 0.5, i + 0.5 + (i % 7) / 10) for i in range(5000)]
    summary = summarize(iter(records))
    assert summary.completed == 5000
    assert summary.mean_itl_ms == pytest.approx(np.mean([(i % 7) * 100 for i in range(5000)]))


@pytest.mark.slow
def test_summary_agrees_with_vllm() -> None:
    serve = pytest.importorskip("vllm.benchmarks.serve")
    lib = pytest.importorskip("vllm.benchmarks.lib.endpoint_request_func")
    rng = np.random.default_rng(7)
    records, outputs = [], []
    for i in range(400):
        tokens = rng.integers(1, 20)
        times = i * 0.05 + np.cumsum(rng.exponential(0.05, tokens))
        if i % 10 == 0:
            records.append(failed("error", i * 0.05, i * 0.05 + 1))
            outputs.append(lib.RequestFuncOutput(success=False, start_time=i * 0.05))
            continue
        records.append(record(i * 0.05, *times.tolist()))
        outputs.append(
            lib.RequestFuncOutput(
                success=True,
                latency=times[-1] - i * 0.05,
                ttft=times[0] - i * 0.05,
                itl=np.diff(times).tolist(),
                output_tokens=int(tokens),
                prompt_len=10,
                start_time=i * 0.05,
            )
        )
    slo = {"ttft": 80.0, "tpot": 60.0, "e2el": 900.0}
    theirs, _ = serve.calculate_metrics([], outputs, 25.0, None, [50, 90, 95, 99], slo)
    ours = summarize(
        records, duration_s=25.0, slo=SLO(**{f"{name}_ms": value for name, value in slo.items()})
    )
    assert (ours.completed, ours.failed) == (theirs.completed, theirs.failed)
    for name in (
        "request_throughput",
        "output_throughput",
        "total_token_throughput",
        "request_goodput",
    ):
        assert ours.figure(name) == pytest.approx(getattr(theirs, name))
    for name in LATENCIES[:4]:
        for statistic in ("mean", "median", "std"):
            figure = f"{statistic}_{name}_ms"
            assert ours.figure(figure) == pytest.approx(getattr(theirs, figure))
        for percent, value in getattr(theirs, f"percentiles_{name}_ms"):
            assert ours.figure(f"p{percent}_{name}_ms") == pytest.approx(value)


class TestShape:
    def test_names_of_the_file_format(self) -> None:
        dumped = summarize([A, B]).model_dump()
        for statistic in ("mean", "median", "std", "p50", "p90", "p95", "p99"):
            for latency in ("ttft", "tpot", "itl", "e2el", "ttft_from_schedule"):
                assert f"{statistic}_{latency}_ms" in dumped
        for name in ("completed", "failed", "shed", "duration", "request_throughput"):
            assert dumped[name] is not None
        assert {"output_throughput", "request_goodput", "client_health", "cost"} <= set(dumped)
        assert dumped["cost"] is None

    def test_json_round_trip(self) -> None:
        summary = summarize([A, B, record(0, 0.1, model="z")], slo=SLO(ttft_ms=5), warmup_s=0.001)
        assert Summary.model_validate_json(summary.model_dump_json()) == summary

    def test_table_and_headline(self) -> None:
        summary = summarize([A, B], slo=SLO(ttft_ms=300))
        table = summary.table()
        assert {"TTFT", "TPOT", "ITL", "E2EL"} <= set(table.index)
        assert list(table.columns) == ["mean", "p50", "p90", "p95", "p99"]
        assert table.loc["E2EL", "mean"] == pytest.approx(500)
        longer = summary.table(from_schedule=True)
        added = [label for label in longer.index if label not in table.index]
        assert added == ["TTFT from schedule", "E2EL from schedule"]
        headline = summary.headline()
        assert "2 completed, 0 failed, 0 shed" in headline
        assert "50.0% within the SLO" in headline
        assert "\n" not in headline
        assert summarize([]).table().isna().all().all()

    def test_figure_by_name(self) -> None:
        assert summarize([A]).figure("mean_ttft_ms") == pytest.approx(200)
        with pytest.raises(UnknownMetricError, match="Did you mean 'p99_ttft_ms'"):
            summarize([A]).figure("p99_tft_ms")


class TestSeveralTokensInOneEvent:
    def test_gaps_per_token_follow_from_the_usage(self) -> None:
        # 12 tokens in 4 events, 300 ms apart; and 3 tokens in 3 events, 100 ms apart.
        grouped = record(0.0, 0.1, 0.4, 0.7, 1.0, output_tokens=12)
        single = record(0.0, 0.1, 0.2, 0.3)
        summary = summarize([grouped, single])
        assert summary.mean_itl_ms == pytest.approx((3 * 300 + 2 * 100) / 5)
        assert summary.mean_itl_per_token_ms == pytest.approx(100)
        assert summary.std_itl_per_token_ms == pytest.approx(0, abs=1e-9)
        assert summary.tokens_per_event == pytest.approx(15 / 7)
        assert "ITL per token" in summary.table().index

    def test_absent_where_each_event_has_one_token(self) -> None:
        summary = summarize([A, B, record(0.0, 0.1, 0.4, output_tokens=None)])
        assert summary.mean_itl_per_token_ms is None
        assert summary.tokens_per_event == 1
        assert "ITL per token" not in summary.table().index

    def test_request_without_usage_has_none(self) -> None:
        unknown = record(0.0, 0.1, 5.1, output_tokens=None)
        summary = summarize([unknown, record(0.0, 0.1, 0.3, output_tokens=4)])
        assert summary.mean_itl_per_token_ms == pytest.approx(100)

    def test_failed_requests_do_not_count(self) -> None:
        cut = failed("error", output_tokens=50, token_times_s=(0.1, 0.2))
        assert summarize([cut, A]).tokens_per_event == 1


def test_token_goodput_counts_tokens_of_good_requests_only() -> None:
    good = [record(0.0, 0.1, 0.2, output_tokens=30), record(1.0, 1.1, 1.2, output_tokens=12)]
    slow = record(0.0, 0.9, 1.0, output_tokens=1000)
    lost = failed("timeout", output_tokens=500)
    summary = summarize([*good, slow, lost], duration_s=6.0, slo=SLO(ttft_ms=200))
    assert summary.token_goodput == pytest.approx((30 + 12) / 6)
    assert summarize([slow], duration_s=6.0, slo=SLO(ttft_ms=200)).token_goodput == 0
    assert summarize(good, duration_s=6.0).token_goodput is None


def test_request_without_token_events_has_no_tokens_per_event() -> None:
    silent = record(0.0, output_tokens=50)
    assert summarize([silent]).tokens_per_event is None
    assert summarize([silent, A]).tokens_per_event == 1
