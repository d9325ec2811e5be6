"""Figures of a small hand-made run whose bars and points are known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from workbench.figures.latency import latency_distributions, throughput_over_time
from workbench.figures.requests import request_timeline
from workbench.metrics.health import ClientHealth

OKABE_ITO = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
LIMITED = ClientHealth.judge(cpu_share=0.97)


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    usual = {
        "request_id": "r", "scheduled_s": None, "sent_s": 0.0, "first_token_s": None,
        "end_s": 0.0, "token_times_s": (), "prompt_tokens": 5, "output_tokens": None,
        "status": "ok", "error": None, "model": "m", "tenant": None,
    }  # fmt: skip
    made = pd.DataFrame([usual | row for row in rows], columns=list(usual))
    numbers = ["scheduled_s", "sent_s", "first_token_s", "end_s", "output_tokens"]
    made[numbers] = made[numbers].astype(float)
    made["ttft_ms"] = (made.first_token_s - made.sent_s) * 1e3
    made["e2el_ms"] = (made.end_s - made.sent_s) * 1e3
    return made


def ok(sent: float, *times: float, **more: Any) -> dict[str, Any]:
    tokens = {"first_token_s": times[0], "end_s": times[-1], "token_times_s": times}
    return {"sent_s": sent, **tokens, "output_tokens": len(times), **more}


RUN = frame(
    ok(1.0, 1.5, 2.0, 3.0),
    ok(0.0, 0.5, 1.0),
    {"sent_s": 2.0, "end_s": 2.25, "status": "shed", "error": "HTTP 429 <b>busy</b>"},
)
TELEMETRY = pd.DataFrame(
    {
        "time_s": [0.0, 0.0, 1.0, 1.0],
        "deployment": ["a", "b", "a", "b"],
        "target": [1, 1, 2, 1],
        "running": [1, 1, 1, 1],
        "starting": [0, 0, 1, 0],
        "stopping": [0, 0, 0, 0],
    }
)


def trace(figure: go.Figure, name: str) -> Any:
    return next(t for t in figure.data if t.name and name in t.name)


def values(numbers: Any) -> list[float]:
    return [float(number) for number in numbers]


class TestTimeline:
    def test_bars_show_phases_in_order_of_sending(self) -> None:
        figure = request_timeline(RUN)
        waiting, streaming = trace(figure, "Waiting"), trace(figure, "Streaming")
        assert values(waiting.y) == [0, 1]
        assert values(waiting.base) == [0, 1]
        assert values(waiting.x) == [0.5, 0.5]
        assert values(streaming.base) == [0.5, 1.5]
        assert values(streaming.x) == [0.5, 1.5]

    def test_failures_are_hatched_and_crossed(self) -> None:
        figure = request_timeline(RUN)
        bars = trace(figure, "Failed")
        assert (values(bars.base), values(bars.x), values(bars.y)) == ([2.0], [0.25], [2])
        assert bars.marker.pattern.shape == "/"
        crosses = next(t for t in figure.data if t.type == "scatter")
        assert (values(crosses.x), crosses.marker.symbol) == ([2.25], "x")
        assert len(request_timeline(RUN[RUN.status == "ok"]).data) == 2

    def test_hover_text_is_escaped(self) -> None:
        hover = trace(request_timeline(RUN), "Failed").customdata[0]
        assert "&lt;b&gt;busy" in hover[-1]
        assert "<b>" not in json.dumps(list(hover))
        assert hover[3] == "-", "no first token, no TTFT"

    def test_replicas_share_the_time_axis(self) -> None:
        figure = request_timeline(RUN, TELEMETRY)
        assert values(trace(figure, "Replicas running").y) == [2, 2]
        assert values(trace(figure, "Replicas starting").y) == [0, 1]
        assert values(trace(figure, "Target").y) == [2, 3]
        assert figure.layout.xaxis.matches == "x2"
        one = request_timeline(RUN, TELEMETRY, deployment="a")
        assert values(trace(one, "Target").y) == [1, 2]

    def test_traces_and_points_are_bounded(self) -> None:
        rows = [ok(i / 100, i / 100 + 0.1, i / 100 + 0.2) for i in range(30_000)]
        figure = request_timeline(frame(*rows), TELEMETRY)
        assert len(figure.data) <= 7
        assert len(trace(figure, "Waiting").x) <= 1000
        assert "1 in 30 of 30,000" in figure.layout.title.text
        assert len(figure.to_json()) < 300_000

    def test_empty_runs_can_be_drawn(self) -> None:
        for empty in (RUN.iloc[:0], RUN[RUN.status == "shed"]):
            request_timeline(empty, TELEMETRY.iloc[:0])
            latency_distributions(empty)
            throughput_over_time(empty)


class TestDistributions:
    def test_marks_are_percentiles(self) -> None:
        figure = latency_distributions(RUN)
        ttft, itl = trace(figure, "TTFT of 2"), trace(figure, "ITL of 3")
        assert values(ttft.x) == [500, 500]
        assert values(itl.x) == [500, 500, 1000]
        assert (itl.y[0], itl.y[-1]) == (0, 1)
        marks = [t for t in figure.data if t.mode == "markers+text"]
        assert values(marks[1].x) == pytest.approx(np.percentile([500, 500, 1000], [50, 99]))
        assert "p99 990.0 ms" in marks[1].text

    def test_long_tail_has_a_logarithmic_axis(self) -> None:
        rows = [ok(0, 0.01, 0.02)] * 99 + [ok(0, 9, 9.01)]
        figure = latency_distributions(frame(*rows))
        assert figure.layout.xaxis.type == "log"
        assert figure.layout.xaxis2.type is None


class TestThroughput:
    def test_each_token_counts_once(self) -> None:
        figure = throughput_over_time(RUN, bin_s=0.5)
        bars = trace(figure, "tokens")
        assert sum(values(bars.y)) * 0.5 == pytest.approx(5)
        by_time = dict(zip(values(bars.x), values(bars.y), strict=True))
        assert by_time[1.75] == pytest.approx(2), "one token, at 1.5, in half a second"

    def test_chunk_counts_its_tokens(self) -> None:
        figure = throughput_over_time(frame(ok(0, 0.5, 1.0, output_tokens=8)), bin_s=1)
        assert sum(values(trace(figure, "tokens").y)) == pytest.approx(8)

    def test_requests_in_progress_end_at_zero(self) -> None:
        steps = trace(throughput_over_time(RUN), "in progress")
        assert max(steps.y) == 2
        assert steps.y[-1] == 0
        at = dict(zip(values(steps.x), values(steps.y), strict=True))
        assert (at[0.0], at[2.0], at[2.25], at[3.0]) == (1, 2, 1, 0)

    @pytest.mark.parametrize(
        ("span", "width"), [(0.5, 0.1), (10, 0.1), (15, 0.2), (100, 1), (170, 2), (3000, 50)]
    )
    def test_bins_have_round_widths(self, span: float, width: float) -> None:
        figure = throughput_over_time(frame(ok(0, 0, span)))
        assert f"over {width:g} s" in trace(figure, "tokens").name
        assert len(trace(figure, "tokens").x) <= 102


ALL = [
    lambda health, run=RUN: request_timeline(run, TELEMETRY, health=health),
    lambda health, run=RUN: latency_distributions(run, health=health),
    lambda health, run=RUN: throughput_over_time(run, health=health),
]


@pytest.mark.parametrize("make", ALL)
class TestEveryFigure:
    def test_axes_have_titles_with_units(self, make: Any) -> None:
        layout = make(None).layout.to_plotly_json()
        x_titles = [v["title"]["text"] for k, v in layout.items() if "xaxis" in k and "title" in v]
        assert x_titles
        assert all("(s)" in title or "(ms)" in title for title in x_titles)
        assert any("title" in v for k, v in layout.items() if "yaxis" in k)

    def test_colours_suit_themes_and_colour_blind_readers(self, make: Any) -> None:
        figure = make(None)
        for ground in (figure.layout.paper_bgcolor, figure.layout.plot_bgcolor):
            assert ground == "rgba(0,0,0,0)"
        colours = {t.marker.color or t.line.color for t in figure.data if t.type == "scatter"}
        colours |= {t.marker.color for t in figure.data if t.type == "bar"}
        assert colours - {None} <= OKABE_ITO

    def test_client_limited_run_is_marked(self, make: Any) -> None:
        assert "CLIENT LIMITED" in make(LIMITED).layout.title.text
        assert "cpu_share 0.97" in make(LIMITED).layout.title.subtitle.text
        assert "LIMITED" not in make(None).layout.title.text

    def test_health_is_read_from_the_frame(self, make: Any) -> None:
        marked = RUN.copy()
        marked.attrs["client_health"] = LIMITED.model_dump(mode="json")
        assert "CLIENT LIMITED" in make(None, marked).layout.title.text
