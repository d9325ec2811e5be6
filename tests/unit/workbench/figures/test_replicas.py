"""The replicas panel, the reaction waterfall and the policies side by side, from made timelines."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.records import failed, record
from support.scaling_timeline import ScalingTimeline

from workbench.analysis.autoscaling import policy_table
from workbench.analysis.reactions import Reaction
from workbench.figures.replicas import (
    policy_figure,
    reaction_waterfall,
    replica_panel,
    replica_traces,
)
from workbench.records import columns
from workbench.runs.run import Run

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
    return [float(one) for one in trace.y]


class TestPanel:
    def test_one_deployments_states_are_stacked_under_its_target(self) -> None:
        running, starting, stopping, target, desired, marks = replica_traces(
            TELEMETRY, DECISIONS, deployment="a"
        )
        assert [values(one) for one in (running, starting, stopping)] == [
            [1, 1, 2, 1],
            [0, 1, 0, 0],
            [0, 0, 0, 1],
        ]
        assert {one.stackgroup for one in (running, starting, stopping)} == {"replicas"}
        assert values(target) == [1, 2, 2, 1]
        assert values(desired) == [1, 5, 5, 0]
        assert (list(marks.x), list(marks.y)) == ([1, 3], [2, 1])

    def test_without_a_deployment_it_is_the_sum_and_unknown_stays_unknown(self) -> None:
        running, *_, target, desired, _ = replica_traces(TELEMETRY)
        assert values(running)[:2] == [2, 2]
        assert values(target)[:2] == [2, 3]
        assert values(desired)[:2] == [1, 5]
        older = replica_traces(TELEMETRY.drop(columns="desired"))
        assert all(one != one for one in values(older[4])), "absent is not 0"

    def test_a_decision_tells_what_was_seen_and_what_held_it(self) -> None:
        *_, marks = replica_traces(TELEMETRY, DECISIONS)
        up, down = (one[0] for one in marks.customdata)
        assert "a: 1 → 2 at 1.0 s" in up
        assert "asked for 5" in up
        assert "kv_cache_usage 0.91" in up
        assert "held by upscale_delay_s, max_replicas since 0.2 s" in up
        assert "<b>" not in up
        assert down == "a: 2 → 1 at 3.0 s"
        assert list(marks.marker.symbol) == ["triangle-up", "triangle-down"]

    def test_a_live_view_gets_the_same_traces_whatever_there_is(self) -> None:
        empty = pd.DataFrame(columns=columns("deployment"))
        some = replica_traces(empty, pd.DataFrame(columns=columns("decision")))
        assert [t.name for t in some] == [t.name for t in replica_traces(TELEMETRY, DECISIONS)]
        assert all(len(t.x) == 0 for t in some)
        figure = replica_panel(empty)
        assert len(figure.data) == 6

    def test_a_policy_that_asks_for_the_moon_does_not_flatten_the_rest(self) -> None:
        told = TELEMETRY.assign(desired=500)
        assert replica_panel(told, deployment="a").layout.yaxis.range == (0, 2.6)

    def test_a_long_run_has_bounded_points(self) -> None:
        hour = pd.DataFrame({"time_s": range(20_000), "deployment": "a", "running": 1})
        assert len(replica_traces(hour)[0].x) <= 2000

    def test_it_is_plain_json(self) -> None:
        told = json.loads(replica_panel(TELEMETRY, DECISIONS).to_json())
        assert len(told["data"]) == 6


def test_the_waterfall_puts_each_step_after_the_last() -> None:
    up = Reaction("m", 1, 2, 10.0, 11.0, 12.0, 16.0, 18.0, 25.0, 27.0)
    down = Reaction("m", 2, 1, 30.0, 31.0, 31.0, 35.0, stopped_s=38.0)
    figure = reaction_waterfall([up, down])
    bars = {bar.name: bar for bar in figure.data}
    assert list(bars) == [
        "metric saw it",
        "policy wanted it",
        "delay passed",
        "actor scheduled",
        "engine loaded",
        "first token served",
        "replicas stopped",
    ]
    assert (list(bars["engine loaded"].base), list(bars["engine loaded"].x)) == ([18], [7])
    assert list(bars["delay passed"].y) == ["1. 1 → 2", "2. 2 → 1"]
    first = [(b.base[0], b.base[0] + b.x[0]) for b in figure.data if b.y[0] == "1. 1 → 2"]
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(first))
    assert not reaction_waterfall([]).data


class TestPolicies:
    def run(self, root: Path, name: str) -> Run:
        run = Run.create(root, {}, run_id=name)
        made = ScalingTimeline()
        from workbench.telemetry.decisions import decisions

        for sample in [*made.rows(), *made.replicas(), *decisions(made.rows(), made.limits)]:
            run.append_telemetry(sample)
        for i in range(10):
            run.append_request(record(i + 0.5, i + 1.0, i + 2.0, scheduled_s=float(i)))
        run.append_request(failed("shed", scheduled_s=3.0))
        return run

    def test_the_table(self, tmp_path: Path) -> None:
        runs = {"one": self.run(tmp_path, "one"), "two": self.run(tmp_path, "two")}
        table = policy_table(runs, "m", {"one": [10.0, 30.0]})
        one = table.loc["one"]
        assert (one.requests, one.failed_or_shed, one.changes, one.flaps) == (11, 1, 2, 0)
        assert one.ttft_p50_ms == pytest.approx(1000), "from when it was due"
        # 1 to 16, then running 2 to 35 with one starting 17 to 25, then 3 s of one stopping.
        assert one.replica_s == pytest.approx(39 + 10 + 8 + 3)
        assert (one.wanted_s, one.second_replica_s) == (2, 17)
        assert pd.isna(table.loc["two"].wanted_s), "its load's changes are not known"

    def test_the_figure_has_a_row_a_policy_and_their_ttft(self, tmp_path: Path) -> None:
        runs = {"one": self.run(tmp_path, "one"), "two": self.run(tmp_path, "two")}
        figure = policy_figure(runs, "m")
        assert len(figure.data) == 2 * 6 + 2
        names = [axis.title.text for axis in figure.select_yaxes()]
        assert names[:2] == ["one", "two"]
        assert values(next(t for t in figure.data if t.name == "TTFT, one")) == [1000, 1000]
        assert {t.stackgroup for t in figure.data if t.stackgroup} == {"replicas 1", "replicas 2"}
