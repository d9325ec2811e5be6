"""Figures of curves with known loads, and of a search whose probes are known."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from support.records import failed, record

from workbench.errors import SettingError, UnknownMetricError
from workbench.experiments.search import highest_load
from workbench.experiments.search_result import SearchResult
from workbench.figures.curve import throughput_latency_curve
from workbench.figures.search import search_figure, ticks
from workbench.metrics.health import ClientHealth
from workbench.metrics.slo import SLO
from workbench.metrics.summary import Summary, summarize

OKABE_ITO = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
LIMITED = ClientHealth.judge(cpu_share=0.97)
# Throughput follows the load up to 38 tokens/s and latency then soars: the knee is at rate 4.
POINTS = pd.DataFrame(
    {
        "rate": [8.0, 1.0, 2.0, 4.0, 16.0],
        "output_throughput": [39.0, 10.0, 20.0, 38.0, 40.0],
        "p95_ttft_ms": [90.0, 10.0, 11.0, 14.0, 300.0],
        "client_limited": [False, None, False, False, True],
    }
)
BY_RATE = [1, 2, 4, 8, 16]


def trace(figure: go.Figure, name: str) -> Any:
    return next(t for t in figure.data if t.name and name in t.name)


def values(numbers: Any) -> list[float]:
    return [float(number) for number in numbers]


def marked(figure: go.Figure) -> str:
    return f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"


class TestCurve:
    def test_a_point_a_rate_in_tokens_a_second(self) -> None:
        figure = throughput_latency_curve(POINTS)
        points = trace(figure, "p95 TTFT (ms) by load (requests/s)")
        assert values(points.x) == [10, 20, 38, 39]
        assert values(points.y) == [10, 11, 14, 90]
        assert list(points.text) == ["1", "2", "4", "8"]
        line = next(t for t in figure.data if t.mode == "lines")
        assert values(line.x) == [10, 20, 38, 39, 40], "in order of the rate"
        assert figure.layout.xaxis.title.text == "Output tokens/s"
        assert figure.layout.yaxis.title.text == "p95 TTFT (ms)"

    def test_against_the_offered_load_in_its_unit(self) -> None:
        points = POINTS.drop(columns="output_throughput")
        points.attrs["unit"] = "concurrent requests"
        figure = throughput_latency_curve(points)
        assert values(trace(figure, "by load").x) == [1, 2, 4, 8]
        assert figure.layout.xaxis.title.text == "Offered load (concurrent requests)"

    def test_the_knee_is_ringed_and_named(self) -> None:
        ring = trace(throughput_latency_curve(POINTS), "Knee")
        assert ring.name == "Knee at 4 requests/s"
        assert (values(ring.x), values(ring.y)) == ([38], [14])
        figure = throughput_latency_curve(POINTS.iloc[:2])
        assert not [t for t in figure.data if t.name and "Knee" in t.name]

    def test_limited_points_are_hollow_and_named(self) -> None:
        figure = throughput_latency_curve(POINTS)
        hollow = trace(figure, "Hollow: client limited")
        assert (values(hollow.x), list(hollow.text)) == ([40], ["16"])
        assert hollow.marker.symbol == "circle-open"
        assert trace(figure, "by load").marker.symbol == "circle"
        assert "CLIENT LIMITED client limited at 16 requests/s" in marked(figure)
        told = marked(throughput_latency_curve(POINTS, health=LIMITED))
        assert "cpu_share 0.97" in told
        assert "16 requests/s" in told
        for unmarked in (POINTS.iloc[:4], POINTS.drop(columns="client_limited")):
            assert "LIMITED" not in marked(throughput_latency_curve(unmarked))

    def test_error_bars_reach_to_the_ends_of_the_interval(self) -> None:
        points = POINTS.assign(
            p95_ttft_ms_low=POINTS.p95_ttft_ms - 3, p95_ttft_ms_high=POINTS.p95_ttft_ms + 7
        )
        bars = trace(throughput_latency_curve(points), "by load").error_y
        assert (values(bars.arrayminus), values(bars.array)) == ([3] * 4, [7] * 4)
        assert trace(throughput_latency_curve(points), "by load").error_x.array is None

    def test_missing_figures_and_columns(self) -> None:
        gone = POINTS.assign(p95_ttft_ms=[np.nan, 10, 11, 14, np.nan])
        assert values(trace(throughput_latency_curve(gone), "by load").x) == [10, 20, 38]
        throughput_latency_curve(POINTS.iloc[:0])
        with pytest.raises(UnknownMetricError, match="'p95_tttf_ms' is not a metric"):
            throughput_latency_curve(POINTS, latency="p95_tttf_ms")
        with pytest.raises(UnknownMetricError, match="'rate' is not a metric"):
            throughput_latency_curve(POINTS, latency="rate")
        with pytest.raises(SettingError, match="must have a column 'rate'"):
            throughput_latency_curve(POINTS.drop(columns="rate"))

    def test_overload_makes_the_axis_logarithmic(self) -> None:
        steep = POINTS.assign(p95_ttft_ms=[90.0, 10, 11, 14, 3000])
        assert throughput_latency_curve(steep).layout.yaxis.type == "log"
        assert throughput_latency_curve(POINTS).layout.yaxis.type is None


def found(limit: float, *, limited: float | None = None, **settings: Any) -> SearchResult:
    """A search where TTFT is 100 ms a unit of load and at most `limit` units meet the SLO.

    At 8 units and more nothing is answered.
    """

    async def probe(load: float) -> Summary:
        answered = record(0.0, load / 10) if load < 8 else failed("timeout")
        health = LIMITED if load == limited else None
        return summarize([answered], slo=SLO(ttft_ms=100 * limit), health=health)

    settings = {"low": 1, "high": 64, "tolerance": 0.99} | settings
    return asyncio.run(highest_load(probe, **settings))


class TestSearchFigure:
    def test_probes_by_load_verdict_and_phase(self) -> None:
        # 1, 2, 4 met, 8 missed; sqrt(4 * 8) missed and is near enough; 4 met twice more.
        figure = search_figure(found(4.5))
        met, missed = trace(figure, "Met, bracket"), trace(figure, "Missed, bisect")
        assert values(met.x) == [1, 2, 4]
        assert values(met.y) == pytest.approx([100, 200, 400])
        assert values(missed.x) == pytest.approx([32**0.5])
        assert values(missed.y) == pytest.approx([100 * 32**0.5])
        again = trace(figure, "Met, confirm")
        assert (values(again.x), again.name) == ([4, 4], "Met, confirm (2)")
        assert [row[0] for row in again.customdata] == [6, 7], "the order of the probes"
        assert met.marker.color == again.marker.color != missed.marker.color
        symbols = {t.marker.symbol[0] for t in (met, missed, again)}
        assert len(symbols) == 3

    def test_below_is_the_share_that_met_the_slo(self) -> None:
        figure = search_figure(found(4.5))
        below = {t.name: (values(t.x), values(t.y)) for t in figure.data if t.yaxis == "y2"}
        assert below["Met, bracket (3)"] == ([1, 2, 4], [1, 1, 1])
        # At 8 nothing is answered, so that it has no latency, but it has a share.
        assert below["Missed, bracket (1, 1 without latency)"] == ([8], [0])
        wanted, *_ = figure.layout.shapes
        assert (wanted.y0, wanted.yref) == (0.99, "y2")
        assert figure.layout.yaxis2.title.text == "Within the SLO"

    def test_an_overload_does_not_bend_the_shares(self) -> None:
        steep = search_figure(found(100, high=7.9, tolerance=0.9, low=0.1))
        assert (steep.layout.yaxis.type, steep.layout.yaxis2.type) == ("log", None)

    def test_ticks_are_whole_numbers_not_digits(self) -> None:
        assert ticks(30, 256) == pytest.approx([10, 20, 50, 100, 200, 500, 1000, 2000, 5000])
        assert ticks(0.5, 1)[:3] == pytest.approx([0.1, 0.2, 0.5])

    def test_a_probe_without_latency_is_counted(self) -> None:
        assert trace(search_figure(found(4.5)), "Missed, bracket").name == (
            "Missed, bracket (1, 1 without latency)"
        )

    def test_the_answer_is_a_line_with_its_value(self) -> None:
        figure = search_figure(found(4.5))
        line = trace(figure, "Highest load within the SLO: 4 requests/s")
        assert values(line.x) == [4, 4]
        assert values(line.y) == pytest.approx([100, 100 * 32**0.5])
        assert line.text[1] == "4"
        assert figure.layout.title.text == "Highest load within the SLO: 4 requests/s"
        assert figure.layout.xaxis2.title.text == "Offered load (requests/s)"
        assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log"
        assert figure.layout.yaxis.title.text == "p95 TTFT (ms)"

    def test_without_a_miss_and_without_an_answer(self) -> None:
        held = search_figure(found(7, high=4, integer=True))
        assert held.layout.title.text.endswith("4 concurrent requests or more")
        none = search_figure(found(0.5), "mean_e2el_ms")
        assert none.layout.title.text.endswith("none, missed at the lowest")
        assert none.layout.yaxis.title.text == "mean E2EL (ms)"
        assert [t.name for t in none.data] == ["Missed, bracket (1)"] * 2
        with pytest.raises(UnknownMetricError, match="p95_tttf_ms"):
            search_figure(found(0.5), "p95_tttf_ms")

    def test_limited_probes_are_hollow_and_named(self) -> None:
        figure = search_figure(found(4.5, limited=2))
        marker = trace(figure, "Met, bracket").marker
        drawn = list(zip(marker.symbol, marker.opacity, strict=True))
        hollow = "circle-open"
        assert drawn == [("circle", 1), (hollow, 0.4), (hollow, 1), ("circle", 1)]
        key = "Hollow: client limited; pale: repeated"
        assert trace(figure, key).marker.symbol == hollow
        assert "CLIENT LIMITED client limited at 2 requests/s" in marked(figure)
        assert "LIMITED" not in marked(search_figure(found(4.5)))

    def test_the_table_of_a_search_makes_a_curve(self) -> None:
        figure = throughput_latency_curve(found(4.5).frame())
        assert values(trace(figure, "by load").y) == pytest.approx(
            [100, 200, 400, 400, 400, 100 * 32**0.5]
        )


@pytest.mark.parametrize(
    "figure", [throughput_latency_curve(POINTS), search_figure(found(4.5, limited=2))]
)
def test_it_suits_both_themes_and_colour_blind_readers(figure: go.Figure) -> None:
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert {t.marker.color or t.line.color for t in figure.data} <= OKABE_ITO
    assert figure.to_json()
