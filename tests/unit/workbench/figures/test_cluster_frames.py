"""The one timeline from a run made by hand whose numbers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.example_run import MODEL, SECONDS, made_run, replicas_at

from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from workbench.cost.prices import Prices
from workbench.cost.series import CostSeries
from workbench.figures.cluster import ROWS, cluster_timeline, replica_tick, timeline_traces
from workbench.figures.cluster_frames import Frames, frames_of
from workbench.runs.run import Run

SPEC = ServiceSpec(model=ModelSpec(id=MODEL))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def frames(run: Run) -> Frames:
    return frames_of(run, [MODEL], cost=CostSeries(SPEC, Prices(cpu_hour=3.6)))


def test_the_rate_offered_is_the_plans_and_then_the_hands(frames: Frames) -> None:
    offered = frames.requests.set_index("time_s").offered
    assert [offered[at] for at in (10, 20, 30, 50, 60, 100)] == [2, 4, 4, 4, 0, 0]
    assert frames.requests.time_s.iloc[-1] == SECONDS


def test_replicas_are_those_of_the_models_alone(frames: Frames) -> None:
    assert set(frames.deployments.deployment) == {MODEL}
    assert len(frames.decisions) == 4


def test_a_node_that_does_not_answer_is_a_gap_and_no_zero(frames: Frames) -> None:
    engine = frames.engine
    quiet = engine[(engine.time_s > 49.5) & (engine.time_s < 55)]
    assert quiet.running_requests.isna().all()
    assert len(quiet) == 1
    assert engine[engine.time_s == 40.25].running_requests.item() == 6


def test_the_cost_is_every_replica_second_held(frames: Frames) -> None:
    """One replica is one CPU at $3.6 an hour: a thousandth of a dollar a second."""
    seconds = [sum(replicas_at(second)) for second in range(SECONDS - 1)]
    last = frames.cost.iloc[-1]
    assert last.so_far == pytest.approx(sum(seconds[:-1]) / 1000, abs=2e-3)
    assert frames.cost.per_hour.max() == pytest.approx(7.2)
    tokens = 200 * (10 + 8)
    assert last.per_million == pytest.approx(last.so_far / tokens * 1e6)


def test_without_prices_there_is_no_cost(run: Run) -> None:
    assert frames_of(run, [MODEL]).cost.empty


def test_the_figure_has_every_row_on_one_axis(frames: Frames) -> None:
    figure = cluster_timeline(frames)
    axes = {trace.xaxis or "x" for trace in figure.data}
    assert len(axes) == len(ROWS)
    linked = {figure.layout[name].matches for name in ("xaxis", "xaxis2", "xaxis5")}
    assert linked == {"x6"}
    names = [trace.name for trace in figure.data]
    for name in ("offered", "TTFT p99", "starting", "decisions", "KV-cache in use", "$ so far"):
        assert name in names
    assert figure.layout.xaxis6.title.text == "time since the start of the run (s)"


def test_traces_are_the_same_in_number_and_order_whatever_there_is(
    frames: Frames, tmp_path: Path
) -> None:
    empty = frames_of(Run.create(tmp_path, {}), [MODEL])
    full, none = timeline_traces(frames), timeline_traces(empty)
    assert [(p.trace["name"], p.row, p.right) for p in full] == [
        (p.trace["name"], p.row, p.right) for p in none
    ]
    assert all(len(placed.trace["x"]) == 0 for placed in none)
    cluster_timeline(empty)


def test_what_a_hand_changed_is_marked_where_it_was_changed(frames: Frames) -> None:
    marks = next(p.trace for p in timeline_traces(frames) if p.trace["name"] == "changed by hand")
    assert list(marks["x"]) == [40, 60]
    assert list(marks["y"]) == [4, 0]
    assert "capped" in marks["customdata"][0][0]


def test_a_long_run_is_thinned(frames: Frames) -> None:
    import dataclasses

    import pandas as pd

    rows = 10_000
    many = frames.requests.loc[np.zeros(rows, int)].assign(time_s=np.arange(rows))
    long = dataclasses.replace(frames, requests=pd.DataFrame(many))
    assert max(len(placed.trace["x"]) for placed in timeline_traces(long)) <= 2000


def test_the_replicas_axis_counts_in_whole_numbers(frames: Frames) -> None:
    import dataclasses

    assert replica_tick(frames) == 1
    more = frames.deployments.assign(target=40)
    assert replica_tick(dataclasses.replace(frames, deployments=more)) == 10
