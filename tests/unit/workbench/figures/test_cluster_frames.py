"""The timeline of a hand-made run whose numbers are known."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from support.example_run import MODEL, SECONDS, made_run, replicas_at

from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from workbench.cost.prices import Prices
from workbench.cost.series import CostSeries
from workbench.figures import cluster
from workbench.figures.cluster import cluster_timeline, timeline_traces
from workbench.figures.cluster_frames import Frames, SampleColumn, frames_of
from workbench.figures.panels import PANELS, Panel, Trace, replica_scale
from workbench.metrics.slo import SLO
from workbench.records import GpuSample
from workbench.runs.run import Run

HOW: tuple[Literal["sum", "mean", "max"], ...] = ("sum", "mean", "max")
SPEC = ServiceSpec(model=ModelSpec(id=MODEL))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def frames(run: Run) -> Frames:
    return frames_of(run, [MODEL], cost=CostSeries(SPEC, Prices(cpu_hour=3.6)))


def with_samples(frames: Frames, kind: str, samples: pd.DataFrame) -> Frames:
    def replaced(wanted: str) -> pd.DataFrame:
        return samples if wanted == kind else frames.samples(wanted)

    return dataclasses.replace(frames, samples=replaced)


def test_offered_rate_follows_the_plan_and_then_manual_changes(frames: Frames) -> None:
    offered = frames.requests.set_index("time_s").offered
    assert [offered[at] for at in (10, 20, 30, 50, 60, 100)] == [2, 4, 4, 4, 0, 0]
    assert frames.requests.time_s.iloc[-1] == SECONDS


def test_only_deployments_of_models_are_included(frames: Frames) -> None:
    assert set(frames.samples("deployment").deployment) == {MODEL}
    assert len(frames.samples("decision")) == 4


def test_unresponsive_node_leaves_a_gap_and_not_zero(frames: Frames) -> None:
    times, values = SampleColumn("replica", "running_requests", "sum").curve(frames)
    quiet = (times > 49.5) & (times < 55)
    assert np.isnan(values[quiet]).tolist() == [True]
    assert values[times == 40.25].tolist() == [6]


def test_samples_taken_together_are_combined() -> None:
    rows = {"time_s": [0, 0, 1, 1], "kv_cache_usage": [0.2, 0.4, np.nan, np.nan]}
    frames = Frames(pd.DataFrame(), [], lambda _: pd.DataFrame(rows), pd.DataFrame())
    found = {
        how: SampleColumn("replica", "kv_cache_usage", how).read(frames)[1].tolist() for how in HOW
    }
    assert {how: values[0] for how, values in found.items()} == pytest.approx(
        {"sum": 0.6, "mean": 0.3, "max": 0.4}
    )
    assert all(np.isnan(values[1]) for values in found.values()), "missing is not 0"


def test_cost_counts_every_replica_second_held(frames: Frames) -> None:
    """One replica is one CPU at $3.6 per hour: a thousandth of a dollar per second."""
    seconds = [sum(replicas_at(second)) for second in range(SECONDS - 1)]
    last = frames.cost.iloc[-1]
    assert last.so_far == pytest.approx(sum(seconds[:-1]) / 1000, abs=2e-3)
    assert frames.cost.per_hour.max() == pytest.approx(7.2)
    tokens = 200 * (10 + 8)
    assert last.per_million == pytest.approx(last.so_far / tokens * 1e6)


def test_no_cost_without_prices(run: Run) -> None:
    assert frames_of(run, [MODEL]).cost.empty


def test_all_panels_share_one_time_axis(frames: Frames) -> None:
    """One axis and not linked ones: only then does one hover box show a moment of all panels."""
    figure = cluster_timeline(frames)
    assert {trace.xaxis for trace in figure.data} == {"x"}
    assert len({trace.yaxis for trace in figure.data}) >= len(PANELS)
    assert (figure.layout.hovermode, figure.layout.hoversubplots) == ("x unified", "axis")
    names = [trace.name for trace in figure.data]
    for name in ("Offered", "TTFT p99", "Starting", "Decisions", "KV cache in use", "$ so far"):
        assert name in names
    assert figure.layout.xaxis.title.text == "Time since the start of the run (s)"
    assert figure.layout.xaxis.anchor == f"y{2 * len(PANELS) - 1}"


def test_panels_do_not_overlap_and_fill_the_height(frames: Frames) -> None:
    layout = cluster_timeline(frames).layout
    domains = [layout[f"yaxis{2 * row - 1 if row > 1 else ''}"].domain for row in range(1, 8)]
    assert domains[0][1] == 1
    assert domains[-1][0] == pytest.approx(0)
    for above, below in pairwise(domains):
        assert below[0] < below[1] < above[0]


def test_titles_with_dollars_are_no_formulas(frames: Frames) -> None:
    """Plotly takes text between two dollars for a formula, and then draws nothing."""
    titles = [note.text for note in cluster_timeline(frames).layout.annotations]
    assert any("per hour" in title for title in titles)
    assert not any("$" in title for title in titles)


def test_panels_without_data_say_what_they_wait_for(frames: Frames, tmp_path: Path) -> None:
    def notes(frames: Frames) -> list[str]:
        annotations = cluster_timeline(frames).layout.annotations[len(PANELS) :]
        return [note.text for note in annotations if note.visible is not False]

    assert notes(frames) == []
    empty = frames_of(Run.create(tmp_path, {}), [MODEL])
    assert notes(empty) == [panel.empty for panel in PANELS]


def test_decisions_are_lines_across_all_panels_and_bounds_lines_in_one(frames: Frames) -> None:
    slo = SLO(ttft_ms=250, tpot_ms=40)
    drawn = cluster_timeline(dataclasses.replace(frames, slo=slo)).layout.shapes
    bounds = [shape for shape in drawn if shape.xref == "paper"]
    assert [(shape.y0, shape.label.text) for shape in bounds] == [
        (250, "SLO: TTFT 250 ms"),
        (40, "SLO: TPOT 40 ms"),
    ]
    decisions = [shape for shape in drawn if shape.yref == "paper"]
    # The hand-made run changes its number of replicas at these seconds, 0.25 s into each.
    assert [shape.x0 for shape in decisions] == [1.25, 15.25, 80.25, 95.25]
    assert [shape.line.dash for shape in decisions] == ["solid", "solid", "dot", "dot"]


def test_desired_replicas_use_the_right_axis(frames: Frames) -> None:
    on_right = {placed.trace["name"]: placed.right for placed in timeline_traces(frames)}
    for name in ("In flight", "Desired", "KV cache in use", "$ so far"):
        assert on_right[name]
    for name in ("Offered", "Change", "Target", "Running", "Waiting", "$ per hour"):
        assert not on_right[name]


def test_traces_do_not_depend_on_the_data(frames: Frames, tmp_path: Path) -> None:
    empty = frames_of(Run.create(tmp_path, {}), [MODEL])
    full, none = timeline_traces(frames), timeline_traces(empty)
    assert [(p.trace["name"], p.row, p.right) for p in full] == [
        (p.trace["name"], p.row, p.right) for p in none
    ]
    assert all(len(placed.trace["x"]) == 0 for placed in none)
    cluster_timeline(empty)


def test_manual_changes_are_marked(frames: Frames) -> None:
    marks = next(p.trace for p in timeline_traces(frames) if p.trace["name"] == "Change")
    assert list(marks["x"]) == [40, 60]
    assert list(marks["y"]) == [4, 0]
    assert "capped" in marks["customdata"][0][0]


def test_long_runs_are_thinned(frames: Frames) -> None:
    rows = 10_000
    many = frames.requests.loc[np.zeros(rows, int)].assign(time_s=np.arange(rows))
    long = dataclasses.replace(frames, requests=pd.DataFrame(many))
    assert max(len(placed.trace["x"]) for placed in timeline_traces(long)) <= 2000


def test_replica_axis_has_whole_numbers(frames: Frames) -> None:
    assert replica_scale(frames) == {"dtick": 1}
    more = frames.samples("deployment").assign(target=40)
    assert replica_scale(with_samples(frames, "deployment", more)) == {"dtick": 13}


def test_a_panel_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path, {})
    for gpu, power in ((0, 300.0), (1, 100.0)):
        run.append_telemetry(GpuSample(time_s=1.0, node="n", gpu=gpu, power_w=power))
    watts = SampleColumn("gpu", "power_w", "sum")
    power_panel = Panel("Power (W)", 0.1, (Trace("GPUs", watts, "#000", "%{y:.0f} W"),))
    monkeypatch.setattr(cluster, "PANELS", (*PANELS, power_panel))
    cluster._blank.cache_clear()
    try:
        figure = cluster_timeline(frames_of(run, [MODEL]))
    finally:
        cluster._blank.cache_clear()
    # Each panel has two y axes.
    axis = 2 * len(PANELS) + 1
    assert figure.layout.annotations[len(PANELS)].text.startswith("<b>Power (W)</b>")
    (power,) = (trace for trace in figure.data if trace.name == "GPUs")
    assert (power.yaxis, list(power.y)) == (f"y{axis}", [400])
    assert figure.layout.xaxis.anchor == f"y{axis}"
