"""Tables and notes of runs side by side, from runs made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from support.records import failed, record

from workbench.analysis.autoscaling import policy_table
from workbench.analysis.comparable import comparison_notes
from workbench.analysis.compare import compare_runs, runs_table
from workbench.analysis.tables import readable, readable_comparison, sides_table
from workbench.figures.sides import throughput_of_sides
from workbench.metrics.summary import summarize
from workbench.records import DeploymentSample
from workbench.runs.run import Run


def run_of(root: Path, name: str, ok: int, bad: int, notebook: str = "07_backpressure") -> Run:
    """A finished run: completed requests with a TTFT of 16.7 s, and failed ones."""
    run = Run.create(root, {"notebook": notebook}, run_id=name)
    for number in range(ok):
        times = (number + 16.72, number + 17.0, number + 17.5)
        run.append_request(record(float(number), *times, request_id=f"{name}{number}"))
    for number in range(bad):
        run.append_request(failed("error", float(number), number + 1.0))
    run.append_telemetry(DeploymentSample(time_s=1.0, deployment="m", target=1, running=1))
    run.finish(summarize(run.records()))
    return run


def test_failures_are_next_to_what_completed_and_numbers_have_units(tmp_path: Path) -> None:
    sides = {"a": run_of(tmp_path, "a", 148, 169), "b": run_of(tmp_path, "b", 0, 3)}
    table = sides_table(sides)
    assert list(table.index[:2]) == ["Completed", "Failed"]
    assert table.loc["Completed"].tolist() == ["148", "0"]
    assert table.loc["Failed"].tolist() == ["169", "3"]
    assert table.loc["p50 TTFT"].tolist() == ["16.7 s", "-"]
    text = table.to_html()
    assert "nan" not in text.lower()
    assert "_" not in "".join(table.index)


def test_tables_of_runs_policies_and_ratios_have_labels_and_no_nan(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, name, 4, number) for number, name in enumerate("abcdef")]
    rng = np.random.default_rng(0)
    for table in (
        readable(runs_table(runs)),
        readable(policy_table({"p": runs[0]}, "m", {})),
        readable_comparison(compare_runs(runs[:3], runs[3:], rng=rng)),
    ):
        assert "nan" not in table.to_html().lower()
    shown = readable(runs_table(runs))
    assert shown["p50 TTFT"].tolist() == ["16.7 s"] * 6
    assert shown["Failed"].tolist() == [str(number) for number in range(6)]


class TestNotes:
    def test_comparable_runs_have_none(self, tmp_path: Path) -> None:
        assert comparison_notes([run_of(tmp_path, "a", 3, 0)], [run_of(tmp_path, "b", 3, 0)]) == []

    def test_other_notebook_and_empty_results_are_named(self, tmp_path: Path) -> None:
        first = run_of(tmp_path, "a", 3, 0)
        second = run_of(tmp_path, "b", 0, 7, notebook="01_latency_under_load")
        notebooks, empty = comparison_notes([first], [second])
        assert "baseline: 07_backpressure; candidate: 01_latency_under_load" in notebooks
        assert empty.startswith("b (candidate) completed no request: 7 failed")


class TestThroughputOfSides:
    def test_panels_share_bins_scale_and_axis(self, tmp_path: Path) -> None:
        first, second = run_of(tmp_path, "a", 20, 2), run_of(tmp_path, "b", 5, 0)
        figure = throughput_of_sides(
            {"one": first.requests_frame(), "two": second.requests_frame()}
        )
        bars = [trace for trace in figure.data if trace.type == "bar"]
        np.testing.assert_array_equal(bars[0].x, bars[1].x)
        width = bars[0].x[1] - bars[0].x[0]
        assert [round(sum(bar.y) * width) for bar in bars] == [60, 15]  # three tokens a request
        assert figure.layout.yaxis.range == figure.layout.yaxis2.range
        assert figure.layout.xaxis.matches == "x2"
        assert [trace.name for trace in figure.data] == [
            "one: 20 completed",
            "one: 2 failed, shed or cancelled",
            "two: 5 completed",
        ]

    def test_side_without_requests_is_drawn(self) -> None:
        columns = ["status", "end_s", "token_times_s", "output_tokens", "sent_s"]
        empty = pd.DataFrame(columns=columns)
        assert len(throughput_of_sides({"one": empty}).data) == 1
