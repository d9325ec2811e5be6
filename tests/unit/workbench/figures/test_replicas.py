"""The replica panel, the reaction waterfall and the policy figure, from hand-made timelines."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.records import failed, record
from support.scaling_timeline import ScalingTimeline

from workbench.analysis.autoscaling import policy_table
from workbench.analysis.reactions import Reaction
from workbench.figures.replica_traces import replica_traces
from workbench.figures.replicas import policy_figure, reaction_waterfall, replica_panel
from workbench.records import Sample, columns
from workbench.runs.run import Run
from workbench.telemetry.decisions import decisions

TELEMETRY = pd.DataFrame(
    {
        "time_s": [0.0, 0.0, 1.0, 1.0, 2.0, 3.0],
        "deployment": ["a", "b", "a", "b", "a", "a"],
        "target": [1, 1, 2, 1, 2, 1],
        "running": [1, 1, 1, 1, 2, 1],
        "starting": [0, 0, 1, 0, 0, 0],
        "stopping": [0, 0, 0, 0, 0, 1],
        "desired": [1, None, 5, None, 5, 0],
    }
)
DECISIONS = pd.DataFrame(
    {
        "time_s": [1.0, 3.0],
        "deployment": ["a", "a"],
        "from_target": [1, 2],
        "to_target": [2, 1],
        "desired": [5.0, float("nan")],
        "total_requests": [9.0, float("nan")],
        "held_by": ["upscale_delay_s, max_replicas", None],
        "wanted_s": [0.2, 3.0],
        "saw": [{"kv_cache_usage": 0.91, "<b>": 1.0}, None],
    }
)


def values(trace: Any) -> list[float]:
    return [float(value) for value in trace.y]


class TestPanel:
    def test_states_of_a_deployment_are_stacked_under_its_target(self) -> None:
        running, starting, stopping, target, desired, marks = replica_traces(
            TELEMETRY, DECISIONS, deployment="a"
        )
        assert [values(state) for state in (running, starting, stopping)] == [
            [1, 1, 2, 1],
            [0, 1, 0, 0],
            [0, 0, 0, 1],
        ]
        assert {state.stackgroup for state in (running, starting, stopping)} == {"replicas"}
        assert values(target) == [1, 2, 2, 1]
        assert values(desired) == [1, 5, 5, 0]
        assert (list(marks.x), list(marks.y)) == ([1, 3], [2, 1])

    def test_sum_of_all_deployments_keeps_missing_values_missing(self) -> None:
        running, *_, target, desired, _ = replica_traces(TELEMETRY)
        assert values(running)[:2] == [2, 2]
        assert values(target)[:2] == [2, 3]
        assert values(desired)[:2] == [1, 5]
        older = replica_traces(TELEMETRY.drop(columns="desired"))
        assert all(math.isnan(value) for value in values(older[4])), "absent is not 0"

    def test_decision_text_has_metrics_and_the_bounds_that_held_it(self) -> None:
        *_, marks = replica_traces(TELEMETRY, DECISIONS)
        up, down = (texts[0] for texts in marks.customdata)
        assert "a: 1 → 2 at 1.0 s" in up
        assert "Desired by the policy: 5" in up
        assert "KV cache usage: 0.91" in up
        assert "Held by: Upscale delay (s), Max replicas since 0.2 s" in up
        assert "<b>" not in up
        assert down == "a: 2 → 1 at 3.0 s"
        assert list(marks.marker.symbol) == ["triangle-up", "triangle-down"]

    def test_traces_do_not_depend_on_the_data(self) -> None:
        empty = pd.DataFrame(columns=columns("deployment"))
        some = replica_traces(empty, pd.DataFrame(columns=columns("decision")))
        assert [t.name for t in some] == [t.name for t in replica_traces(TELEMETRY, DECISIONS)]
        assert all(len(t.x) == 0 for t in some)
        figure = replica_panel(empty)
        assert len(figure.data) == 6

    def test_excessive_desired_count_does_not_stretch_the_axis(self) -> None:
        excessive = TELEMETRY.assign(desired=500)
        assert replica_panel(excessive, deployment="a").layout.yaxis.range == (0, 2.6)

    def test_points_of_long_runs_are_bounded(self) -> None:
        hour = pd.DataFrame({"time_s": range(20_000), "deployment": "a", "running": 1})
        assert len(replica_traces(hour)[0].x) <= 2000

    def test_figure_is_plain_json(self) -> None:
        document = json.loads(replica_panel(TELEMETRY, DECISIONS).to_json())
        assert len(document["data"]) == 6


def test_waterfall_steps_follow_each_other() -> None:
    up = Reaction("m", 1, 2, 10.0, 11.0, 12.0, 16.0, 18.0, 25.0, 27.0)
    down = Reaction("m", 2, 1, 30.0, 31.0, 31.0, 35.0, stopped_s=38.0)
    figure = reaction_waterfall([up, down])
    bars = {bar.name: bar for bar in figure.data}
    assert list(bars) == [
        "Metrics changed",
        "Change requested",
        "Delay passed",
        "Actor scheduled",
        "Engine loaded",
        "First token served",
        "Replicas stopped",
    ]
    assert (list(bars["Engine loaded"].base), list(bars["Engine loaded"].x)) == ([18], [7])
    assert list(bars["Delay passed"].y) == ["1. 1 → 2", "2. 2 → 1"]
    first = [(b.base[0], b.base[0] + b.x[0]) for b in figure.data if b.y[0] == "1. 1 → 2"]
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(first))
    assert not reaction_waterfall([]).data


class TestPolicies:
    def run(self, root: Path, name: str) -> Run:
        run = Run.create(root, {}, run_id=name)
        timeline = ScalingTimeline()
        changes = decisions(timeline.rows(), timeline.limits)
        samples: list[Sample] = [*timeline.rows(), *timeline.replicas(), *changes]
        for sample in samples:
            run.append_telemetry(sample)
        for i in range(10):
            run.append_request(record(i + 0.5, i + 1.0, i + 2.0, scheduled_s=float(i)))
        run.append_request(failed("shed", scheduled_s=3.0))
        return run

    def test_table(self, tmp_path: Path) -> None:
        runs = {"one": self.run(tmp_path, "one"), "two": self.run(tmp_path, "two")}
        table = policy_table(runs, "m", {"one": [10.0, 30.0]})
        row = table.loc["one"]
        assert (row.requests, row.failed_or_shed, row.changes, row.flaps) == (11, 1, 2, 0)
        assert row.ttft_p50_ms == pytest.approx(1000), "from when it was due"
        # 1 to 16, then running 2 to 35 with one starting 17 to 25, then 3 s of one stopping.
        assert row.replica_s == pytest.approx(39 + 10 + 8 + 3)
        assert (row.wanted_s, row.second_replica_s) == (2, 17)
        assert pd.isna(table.loc["two"].wanted_s), "the changes of its load are unknown"

    def test_figure_has_a_row_per_policy_and_their_ttft(self, tmp_path: Path) -> None:
        runs = {"one": self.run(tmp_path, "one"), "two": self.run(tmp_path, "two")}
        figure = policy_figure(runs, "m")
        assert len(figure.data) == 2 * 6 + 2
        names = [axis.title.text for axis in figure.select_yaxes()]
        assert names[:2] == ["one", "two"]
        assert values(next(t for t in figure.data if t.name == "TTFT, one")) == [1000, 1000]
        assert {t.stackgroup for t in figure.data if t.stackgroup} == {"replicas 1", "replicas 2"}
