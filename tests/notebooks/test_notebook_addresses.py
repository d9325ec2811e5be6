"""Notebooks that get the URL of an endpoint and a key, and deploy nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.executed_notebook import output_text

from workbench.automation.execution import parameters_of_run, run_notebook
from workbench.automation.notebooks import find_notebook
from workbench.endpoints.deployed import Endpoint
from workbench.runs.run import Run

pytestmark = pytest.mark.engine
SHORT: dict[str, Any] = {"input_tokens": 16, "output_tokens": 8}


def test_first_notebook_deploys_nothing_at_a_url(
    url: str, endpoint: Endpoint, tmp_path: Path
) -> None:
    before = endpoint.status()
    given = {"address": url, "requests": 8, "output_tokens": 16}
    executed = run_notebook(find_notebook("00"), given, runs=tmp_path, run_id="by-url")
    run = Run.open(tmp_path / "by-url")
    assert [record.status for record in run.records()] == ["ok"] * 8
    assert run.samples_frame().empty
    assert endpoint.status() == before
    kept = executed.read_text() + (run.path / "experiment.json").read_text()
    assert endpoint.api_key.get_secret_value() not in kept


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("02", SHORT | {"ramp_s": 2.0, "hold_s": 3.0, "peak_rate": 4.0}),
        ("06", SHORT | {"layouts": [[1, 1]], "concurrencies": [1, 4], "requests": 8}),
    ],
)
def test_notebook_writes_summary_and_report_at_a_url(
    url: str, tmp_path: Path, name: str, given: dict[str, Any]
) -> None:
    run_notebook(find_notebook(name), given | {"address": url}, runs=tmp_path, run_id="by-url")
    run = Run.open(tmp_path / "by-url")
    assert run.summary() is not None
    assert (run.path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_latency_under_load_can_be_repeated(url: str, tmp_path: Path) -> None:
    few = {"rate": 4.0, "duration_s": 4.0, "rates": [4.0, 8.0, 16.0], "probe_s": 1.5}
    given = SHORT | few | {"address": url, "seed": 3}
    given["slo"] = {"ttft_ms": 1, "target": 0.9}  # nothing can meet it, so the search ends at once
    notebook = find_notebook("01")
    executed = run_notebook(notebook, given, runs=tmp_path, run_id="first")
    outputs = output_text(executed)
    assert "requests ended" in outputs
    assert "SLO" in outputs
    first = Run.open(tmp_path / "first")
    summary = first.summary()
    assert summary is not None
    assert summary.completed > 0
    assert summary.failed == 0
    assert summary.client_health.cpu_share is not None
    assert len(list((first.path / "probes").iterdir())) >= 4
    report = (first.path / "report.html").read_text()
    assert "python -m workbench repeat" in report
    path, parameters = parameters_of_run(first.path)
    assert path == notebook
    assert {name: parameters[name] for name in given} == given
    run_notebook(notebook, parameters, runs=tmp_path, run_id="again")
    plans = [(tmp_path / name / "plan.json").read_bytes() for name in ("first", "again")]
    assert plans[0] == plans[1]
