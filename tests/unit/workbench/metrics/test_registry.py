"""The registry's lookups, and that a new metric needs only its entry there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.records import failed, record

from workbench.errors import UnknownMetricError
from workbench.metrics import registry
from workbench.metrics.columns import Columns
from workbench.metrics.registry import all_figures, find_metric, metric_label
from workbench.metrics.summary import Summary

ENTRY = """
    Latency(
        "example",
        "Example",
        "Send to second token, as an example.",
        lambda columns: columns.token_s(2) - columns.sent_s,
    ),
"""
SCALAR_ENTRY = """
    Scalar(
        "input_throughput",
        "input throughput",
        "tokens/s",
        "Prompt tokens of completed requests per second.",
        lambda totals: totals.per_second(totals.prompt_tokens),
        direction="higher",
        listed=True,
    ),
"""
PROGRAM = """
import importlib.util, json, sys
import numpy as np
from pathlib import Path

source, root = Path(sys.argv[1]), Path(sys.argv[2])
spec = importlib.util.spec_from_file_location("workbench.metrics.registry", source)
sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

from support.records import record
from workbench.analysis.compare import compare_runs, runs_table
from workbench.automation.sweep_results import RESULT_METRICS as swept
from workbench.experiments.probes import CURVE
from workbench.experiments.search_result import ProbeResult, SearchResult
from workbench.figures.compare import latency_overlay
from workbench.figures.search import search_figure
from workbench.metrics.slo import SLO
from workbench.metrics.summary import Summary, summarize
from workbench.report import write_report
from workbench.runs.run import Run

bound = SLO(example_ms=500)
runs = []
for number in range(6):
    run = Run.create(root, {"notebook": "x"}, run_id=f"r{number}")
    # The second token comes 300 ms after the send; a request of one token has no such time.
    for sent in (0.0, 1.0):
        run.append_request(record(sent, sent + 0.2, sent + 0.3, sent + 0.9))
    run.append_request(record(2.0, 2.1))
    run.finish(summarize(run.records(), slo=bound))
    runs.append(run)
summary = runs[0].summary()
search = SearchResult(1.0, (ProbeResult(1.0, "bracket", True, summary),), True, 0)
compared = compare_runs(runs[:3], runs[3:], rng=np.random.default_rng(0))
drawn = search_figure(search, "p95_example_ms")
page = write_report(runs[0], {}, title="x").read_text()
print(json.dumps({
    "summary": {name: value for name, value in summary.model_dump().items() if "example" in name},
    "attainment": summary.slo_attainment,
    "table": "Example" in summary.table().index,
    "compare": compared.loc["p50_example_ms", "ratio"],
    "runs_table": "p95_example_ms" in runs_table(runs),
    "sweep": "p95_example_ms" in swept,
    "curve": "p95_example_ms" in CURVE,
    "search": search.frame().p95_example_ms.tolist(),
    "search_axis": drawn.layout.yaxis.title.text,
    "overlay_axis": latency_overlay(runs, "example_ms").layout.xaxis.title.text,
    "requests": runs[0].requests_frame().example_ms.dropna().tolist(),
    "report": "Example" in page,
    "input_throughput": summary.input_throughput,
    "input_ratio": compared.loc["input_throughput", "ratio"],
    "scalar_in_sweep": "input_throughput" in swept,
}))
"""


def test_a_new_metric_needs_one_entry(tmp_path: Path) -> None:
    source = Path(registry.__file__).read_text(encoding="utf-8")
    changed = tmp_path / "registry.py"
    source = source.replace("LATENCIES = (\n", f"LATENCIES = ({ENTRY}")
    source = source.replace("SCALARS = (\n", f"SCALARS = ({SCALAR_ENTRY}")
    changed.write_text(source, encoding="utf-8")
    output = subprocess.check_output(
        [sys.executable, "-c", PROGRAM, str(changed), str(tmp_path / "runs")],
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    seen = json.loads(output)
    statistics = ("mean", "median", "std", "p50", "p90", "p95", "p99")
    values = {f"{name}_example_ms": seen["summary"][f"{name}_example_ms"] for name in statistics}
    assert values.pop("std_example_ms") == pytest.approx(0, abs=1e-6)
    assert list(values.values()) == pytest.approx([300] * 6)
    assert seen["attainment"] == pytest.approx(2 / 3), "one request has no second token"
    assert seen["compare"] == pytest.approx(1)
    assert seen["search"] == pytest.approx([300])
    assert seen["requests"] == pytest.approx([300, 300])
    assert seen["search_axis"] == "p95 Example (ms)"
    assert seen["overlay_axis"] == "Example (ms)"
    # Three requests with 10 prompt tokens each, from 0 s to the last end at 2.1 s.
    assert seen["input_throughput"] == pytest.approx(30 / 2.1)
    assert seen["input_ratio"] == pytest.approx(1)
    for place in ("table", "runs_table", "sweep", "scalar_in_sweep", "curve", "report"):
        assert seen[place] is True, place


def test_token_times_by_number() -> None:
    records = [record(0.0, 0.1, 0.3, 0.6), record(1.0, 1.5), record(2.0), record(3.0, 3.1, 3.2)]
    columns = Columns.read([*records, failed("error", token_times_s=(1.0, 2.0))])
    nan = np.nan
    np.testing.assert_allclose(columns.token_s(1), [0.1, 1.5, nan, 3.1, nan])
    np.testing.assert_allclose(columns.token_s(2), [0.3, nan, nan, 3.2, nan])
    np.testing.assert_allclose(columns.token_s(3), [0.6, nan, nan, nan, nan])


@pytest.mark.parametrize(
    ("figure", "label"),
    [
        ("p95_ttft_ms", "p95 TTFT (ms)"),
        ("median_e2el_from_schedule_ms", "median E2EL from schedule (ms)"),
        ("tpot_ms", "TPOT (ms)"),
        ("output_throughput", "output throughput (tokens/s)"),
    ],
)
def test_labels(figure: str, label: str) -> None:
    assert metric_label(figure) == label


def test_an_unknown_figure_is_named_with_the_closest_one() -> None:
    with pytest.raises(UnknownMetricError, match=r"'p99_tft_ms'.*Did you mean 'p99_ttft_ms'"):
        find_metric("p99_tft_ms")


def test_every_metric_is_a_field_of_the_summary() -> None:
    assert set(all_figures()) <= set(Summary.model_fields)
