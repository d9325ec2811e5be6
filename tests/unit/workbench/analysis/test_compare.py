"""Runs with a known ratio: the candidate takes the baseline's time, multiplied by a factor."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.paths import NOTEBOOKS
from support.records import failed, record

from workbench.analysis.compare import (
    DEFAULT_FIGURES,
    compare_runs,
    differing_parameters,
    find_runs,
    pick_sides,
    runs_table,
)
from workbench.errors import RunError, SettingError, UnknownMetricError
from workbench.figures.compare import comparison_figure, latency_overlay
from workbench.metrics.health import ClientHealth
from workbench.metrics.slo import SLO
from workbench.metrics.summary import summarize
from workbench.report import write_page
from workbench.runs.run import Run

OK, LIMITED = ClientHealth.judge(cpu_share=0.5), ClientHealth.judge(cpu_share=0.97)


def make_run(root: Path, minute: int, factor: float = 1.0, **more: Any) -> Run:
    """A run of ten requests: request i has a TTFT of (100 + i) ms and 4 tokens 10 ms apart.

    All times are multiplied by `factor`. The run lasts 2 s x factor, so that rates are
    proportional to 1 / factor.
    """
    experiment = {"notebook": more.get("notebook", "01_latency_under_load"), "seed": minute}
    experiment["load"] = {"rate": more.get("rate", 5), "count": 10}
    now = datetime(2026, 5, 4, 3, minute, tzinfo=UTC)
    run = Run.create(root, experiment, run_id=more.get("run_id", f"r{minute}"), now=now)
    for i in range(10):
        times = [(100 + i + 10 * k) * factor / 1e3 for k in range(4)]
        run.append_request(record(0.0, *times))
    for _ in range(more.get("failed", 0)):
        run.append_request(failed("error"))
    if more.get("finished", True):
        health, slo = more.get("health", OK), more.get("slo")
        run.finish(summarize(run.records(), duration_s=2 * factor, health=health, slo=slo))
    return run


def sides(root: Path, *factors: float, **candidate: Any) -> tuple[list[Run], list[Run]]:
    """Repeats that get slower by a tenth each time; those of the second side also by a factor."""
    first = [make_run(root, i, 1 + i / 10) for i in range(len(factors))]
    second = [make_run(root, 30 + i, (1 + i / 10) * f, **candidate) for i, f in enumerate(factors)]
    return first, second


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class TestFind:
    def test_find_runs_at_any_depth_by_date(self, tmp_path: Path) -> None:
        late, early = make_run(tmp_path, 9, run_id="a"), make_run(tmp_path / "sweep", 3, run_id="z")
        cut = make_run(tmp_path, 5, run_id="cut", finished=False, notebook="00_first_endpoint")
        (tmp_path / "notes").mkdir()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "experiment.json").write_text('{"mine": 1}')
        assert [run.run_id for run in find_runs(tmp_path)] == [early.run_id, late.run_id]
        every = find_runs(tmp_path, finished=False)
        assert [run.run_id for run in every] == ["z", cut.run_id, "a"]
        assert [r.run_id for r in find_runs(tmp_path, notebook="00", finished=False)] == ["cut"]
        assert find_runs(tmp_path, notebook="0", finished=False) == []
        assert find_runs(tmp_path / "nowhere") == []

    def test_a_damaged_run_is_left_out_with_a_warning(self, tmp_path: Path) -> None:
        make_run(tmp_path, 1)
        (make_run(tmp_path, 2).path / "summary.json").write_text('{"completed": "many"}')
        with pytest.warns(UserWarning, match=r"left out: .*r2/summary\.json"):
            assert [run.run_id for run in find_runs(tmp_path)] == ["r1"]


class TestSides:
    def test_newest_runs_in_two_halves(self, tmp_path: Path) -> None:
        for minute in range(8):
            make_run(tmp_path, minute)
        first, second = pick_sides(tmp_path, "", "")
        assert [r.run_id for r in first] == ["r2", "r3", "r4"]
        assert [r.run_id for r in second] == ["r5", "r6", "r7"]

    def test_runs_by_name_and_by_folder(self, tmp_path: Path) -> None:
        for minute in range(3):
            make_run(tmp_path, minute)
            make_run(tmp_path / "sweep", 20 - minute, run_id=f"s{minute}")
        first, second = pick_sides(tmp_path, "r2, r0,r1", "sweep")
        assert [r.run_id for r in first] == ["r2", "r0", "r1"]
        assert [r.run_id for r in second] == ["s2", "s1", "s0"]
        assert pick_sides(tmp_path, "s1", "r0")[0][0].run_id == "s1"

    def test_invalid_arguments(self, tmp_path: Path) -> None:
        make_run(tmp_path, 1, run_id="only")
        with pytest.raises(SettingError, match=r"1 finished runs.*python -m workbench run 01"):
            pick_sides(tmp_path, "", "")
        make_run(tmp_path, 2, run_id="second")
        with pytest.raises(SettingError, match=r"'secnd' is neither a finished run.*'second'"):
            pick_sides(tmp_path, "only", "secnd")
        with pytest.raises(SettingError, match="name both"):
            pick_sides(tmp_path, "only", "")


def test_runs_table(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, 1, failed=2, slo=SLO(ttft_ms=104.5)),
        make_run(tmp_path, 2, 2.0, health=LIMITED),
        make_run(tmp_path, 3, finished=False),
    ]
    table = runs_table(runs).set_index("run_id")
    row = table.loc["r1"]
    assert (row.completed, row.failed, row.shed, row.client) == (10, 2, 0, "ok")
    assert row["request_throughput (requests/s)"] == pytest.approx(10 / 2)
    assert row["output_throughput (tokens/s)"] == pytest.approx(40 / 2)
    assert row["request_goodput (requests/s)"] == pytest.approx(5 / 2)
    assert row["slo_attainment (share)"] == pytest.approx(5 / 12)
    assert row[["p50_ttft_ms", "p95_tpot_ms", "p99_e2el_ms"]].tolist() == pytest.approx(
        [104.5, 10, 138.91]
    )
    assert table.client.tolist() == ["ok", "client limited", "not finished"]
    assert table.isna().loc["r3", "completed":"p99_e2el_ms"].all(), "absent, not zero"
    assert table.attrs["client_health"]["reasons"] == ["r2: cpu_share 0.97 exceeds 0.9"]


def test_differing_parameters(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, 1), make_run(tmp_path, 2, rate=7)]
    runs[1].document["versions"] = {**runs[0].document["versions"], "vllm": "9.9"}
    runs[0].document["experiment"]["load"]["stream"] = True
    runs[1].document["experiment"]["load"]["stream"] = 1
    frame = differing_parameters(runs)
    assert list(frame.columns) == ["r1", "r2"]
    rows = {name: frame.loc[name].tolist() for name in frame.index}
    before = runs[0].document["versions"].get("vllm")
    assert rows == {
        "experiment.seed": [1, 2],
        "experiment.load.rate": [5, 7],
        "experiment.load.stream": [True, 1],
        "versions.vllm": [before, "9.9"],
    }
    assert differing_parameters([]).empty


class TestCompare:
    def test_a_known_factor(self, tmp_path: Path) -> None:
        frame = compare_runs(*sides(tmp_path, 1.3, 1.3, 1.3), rng=rng())
        for name in ("p50_ttft_ms", "p99_ttft_ms", "p50_tpot_ms", "p99_e2el_ms"):
            row = frame.loc[name]
            assert row[["ratio", "low", "high"]].tolist() == pytest.approx([1.3] * 3, rel=1e-5)
            assert (row.verdict, row.repeats, row.unit) == ("worse", 3, "ms")
        assert frame.loc["p50_ttft_ms", "baseline"] == pytest.approx(104.5 * 1.1)
        assert frame.loc["p50_ttft_ms", "candidate"] == pytest.approx(104.5 * 1.1 * 1.3)
        rate = frame.loc["output_throughput"]
        assert rate[["ratio", "low", "high"]].tolist() == pytest.approx([1 / 1.3] * 3)
        assert (rate.verdict, rate.unit) == ("worse", "tokens/s")
        assert frame.loc["failed", "verdict"] == "no difference shown"
        assert frame.loc["request_goodput", "verdict"] == "not compared: absent in a run"
        assert frame.attrs["client_health"]["client_limited"] is False

    def test_a_faster_candidate_is_better(self, tmp_path: Path) -> None:
        slow, fast = sides(tmp_path, 0.5, 0.6, 0.8)
        frame = compare_runs(slow, fast, ["p50_e2el_ms", "request_throughput"], rng=rng())
        latency, rate = frame.loc["p50_e2el_ms"], frame.loc["request_throughput"]
        mean = (0.5 * 0.6 * 0.8) ** (1 / 3)
        # The interval of three values is their range.
        assert latency[["ratio", "low", "high"]].tolist() == pytest.approx(
            [mean, 0.5, 0.8], rel=1e-5
        )
        assert rate[["ratio", "low", "high"]].tolist() == pytest.approx([1 / mean, 1.25, 2])
        assert (latency.verdict, rate.verdict) == ("better", "better")

    def test_an_interval_around_1_shows_no_difference(self, tmp_path: Path) -> None:
        frame = compare_runs(*sides(tmp_path, 0.9, 1.2, 1.3), ["p50_ttft_ms"], rng=rng())
        assert frame.verdict.tolist() == ["no difference shown"]

    def test_new_failures_are_worse_without_a_ratio(self, tmp_path: Path) -> None:
        frame = compare_runs(*sides(tmp_path, 1, 1, 1, failed=4), ["failed"], rng=rng())
        row = frame.loc["failed"]
        assert (row.baseline, row.candidate, row.verdict) == (0, 4, "worse")
        assert row[["ratio", "low", "high"]].isna().all()

    def test_too_few_repeats(self, tmp_path: Path) -> None:
        frame = compare_runs(*sides(tmp_path, 2, 8), ["p50_ttft_ms", "failed"], rng=rng())
        assert set(frame.verdict) == {"too few repeats: 2 of 3"}
        assert frame.loc["p50_ttft_ms", "ratio"] == pytest.approx(4)
        assert frame[["low", "high"]].isna().all(axis=None)

    def test_goodput_with_different_slos_is_not_compared(self, tmp_path: Path) -> None:
        first = [make_run(tmp_path, i, slo=SLO(ttft_ms=105)) for i in range(3)]
        second = [make_run(tmp_path, 30 + i, slo=SLO(ttft_ms=900)) for i in range(3)]
        frame = compare_runs(first, second, ["request_goodput", "completed"], rng=rng())
        assert frame.verdict.tolist() == ["not compared: the SLOs differ", "no difference shown"]

    def test_one_limited_run_marks_every_verdict(self, tmp_path: Path) -> None:
        first, second = sides(tmp_path, 1.3, 1.3, 1.3)
        second[1] = make_run(tmp_path, 50, 1.1 * 1.3, health=LIMITED)
        frame = compare_runs(first, second, rng=rng())
        assert frame.verdict.str.endswith("(client limited)").all()
        health = frame.attrs["client_health"]
        assert health["client_limited"] is True
        assert health["reasons"] == ["r50: cpu_share 0.97 exceeds 0.9"]
        for figure in (comparison_figure(frame), latency_overlay([*first, *second])):
            assert figure.layout.title.text.endswith("CLIENT LIMITED")
            assert "r50: cpu_share 0.97" in figure.layout.title.subtitle.text

    def test_invalid_arguments(self, tmp_path: Path) -> None:
        first, second = sides(tmp_path, 1, 1, 1)
        with pytest.raises(SettingError, match="candidate has no run"):
            compare_runs(first, [], rng=rng())
        with pytest.raises(SettingError, match="baseline has 3 runs and candidate has 2"):
            compare_runs(first, second[:2], rng=rng())
        with pytest.raises(SettingError, match="'r0' is given more than once"):
            compare_runs([first[0]] * 3, second, rng=rng())
        with pytest.raises(SettingError, match=r"confidence must be .* got 95"):
            compare_runs(first, second, rng=rng(), confidence=95)
        with pytest.raises(SettingError, match="'duration'"):
            compare_runs(first, second, ["duration"], rng=rng())
        with pytest.raises(UnknownMetricError, match="p50_ttft_ms"):
            compare_runs(first, second, ["p50_tft_ms"], rng=rng())
        with pytest.raises(RunError, match="is not finished"):
            compare_runs([make_run(tmp_path, 55, finished=False)], second[:1], rng=rng())


class TestFigures:
    def test_forest(self, tmp_path: Path) -> None:
        frame = compare_runs(*sides(tmp_path, 0.5, 0.6, 0.8), rng=rng())
        figure = comparison_figure(frame)
        names = list(figure.layout.yaxis.ticktext)
        assert "Failed" not in names, "it has no ratio"
        better = next(t for t in figure.data if t.name == "Better")
        at = names.index("p50 TTFT")
        place = list(better.y).index(at)
        ends = (
            better.x[place] - better.error_x.arrayminus[place],
            better.x[place] + better.error_x.array[place],
        )
        assert ends == pytest.approx((0.5, 0.8), rel=1e-5)
        assert figure.layout.xaxis.type == "log"
        assert figure.layout.xaxis.title.text == "Candidate / baseline"
        assert set(figure.data[0].x) == {1}
        comparison_figure(frame.iloc[:0])

    def test_overlay_has_the_values_of_each_run_without_warm_up(self, tmp_path: Path) -> None:
        runs = [make_run(tmp_path, 1), make_run(tmp_path, 2, 3.0)]
        cut = make_run(tmp_path, 3, finished=False)
        cut.append_request(record(10.0, 10.5, 10.6))
        cut.finish(summarize(cut.records(), warmup_s=5, health=OK))
        figure = latency_overlay([*runs, cut], sides=["a", "b", "b"])
        assert [t.name for t in figure.data] == ["a r1", "b r2", "b r3"]
        assert list(figure.data[0].x) == pytest.approx(range(100, 110))
        assert list(figure.data[1].x) == pytest.approx([3 * v for v in range(100, 110)])
        assert list(figure.data[2].x) == pytest.approx([500])
        colours = [t.line.color for t in figure.data]
        assert colours[0] != colours[1] == colours[2]
        assert figure.layout.xaxis.title.text == "TTFT (ms)"
        with pytest.raises(UnknownMetricError, match=r"one of ttft_ms, .*tpot_ms"):
            latency_overlay(runs, "tft_ms")

    def test_the_page_needs_no_network_and_escapes_text(self, tmp_path: Path) -> None:
        runs = [make_run(tmp_path, 1, notebook="<script>evil()</script>"), make_run(tmp_path, 2)]
        table = {"Runs & more": runs_table(runs)}
        page = write_page(tmp_path / "c.html", [latency_overlay(runs)] * 2, table, "A <b> title")
        text = page.read_text(encoding="utf-8")
        assert "<script>evil" not in text
        assert "A &lt;b&gt; title" in text
        assert text.count("plotly.js (cartesian") == 1
        assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text)


class TestNotebook:
    """The notebook, run by papermill on saved runs, without an engine."""

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_notebook_compares_the_newest_runs(self, tmp_path: Path) -> None:
        sides(tmp_path, 1.3, 1.3, 1.3)
        text = self.executed(tmp_path)
        # The runs are a table too, with the same labels; the intervals come after it.
        *_, row = re.finditer(r"<tr>\s*<th>p50 TTFT</th>.*?</tr>", text, re.DOTALL)
        assert re.findall(r"<td>(.*?)</td>", row[0])[2:] == ["1.3"] * 3 + ["3", "worse"]
        assert "Nothing prevents a comparison" in text
        assert "<td>NaN</td>" not in text
        assert "<th>experiment.seed</th>" in text
        assert "<th>...</th>" not in text, "no column is hidden"
        page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
        assert page.count('class="plotly-graph-div"') == 2
        assert "p99 E2EL" in page

    def executed(self, root: Path) -> str:
        nbformat, papermill = pytest.importorskip("nbformat"), pytest.importorskip("papermill")
        output = root / "executed.ipynb"
        papermill.execute_notebook(
            NOTEBOOKS / "08_compare_runs.ipynb",
            output,
            {"run_root": str(root)},
            cwd=NOTEBOOKS,
            progress_bar=False,
        )
        cells = nbformat.read(output, as_version=4).cells
        outputs = [o for cell in cells for o in cell.get("outputs", [])]
        return "\n".join(o.get("text") or o["data"].get("text/html", "") for o in outputs)


def test_default_figures_are_figures_of_a_summary(tmp_path: Path) -> None:
    summary = make_run(tmp_path, 1).summary()
    assert summary is not None
    for name in DEFAULT_FIGURES:
        summary.figure(name)
