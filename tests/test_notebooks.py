"""Every notebook, run by papermill on the real engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import papermill
import pytest

from serving.tiny import tiny_model_path
from workbench.run import Run

pytestmark = pytest.mark.engine
GLOSSARY = tiny_model_path().parent / "glossary.jsonl"
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.timeout(400)
def test_first_endpoint_with_the_blueprint(tmp_path: Path) -> None:
    executed = tmp_path / "executed.ipynb"
    parameters = {
        "port": 0,
        "requests": 8,
        "output_tokens": 32,
        "run_root": str(tmp_path),
        "run_id": "first",
        "run_blueprint": True,
    }
    papermill.execute_notebook(
        NOTEBOOKS / "00_first_endpoint.ipynb",
        executed,
        parameters,
        cwd=NOTEBOOKS,
        progress_bar=False,
    )
    run = Run.open(tmp_path / "first")
    records = list(run.records())
    assert len(records) == 8
    assert {(r.status, r.output_tokens, len(r.token_times_s)) for r in records} == {("ok", 32, 32)}
    summary = run.summary()
    assert summary is not None
    assert summary.completed == 8
    assert summary.failed == 0
    assert set(run.telemetry().deployment) == {"tiny-llama-glossary", "router"}
    outputs = output_text(executed)
    glossary = [json.loads(line) for line in GLOSSARY.read_text().splitlines()]
    entry = next(e for e in glossary if e["term"].lower() == "continuous batching")
    assert entry["definition"][:60] in outputs  # streamed, and again from the blueprint
    assert outputs.count(entry["definition"][22:50]) >= 2
    kept = executed.read_text() + (tmp_path / "first/experiment.json").read_text()
    assert re.search(r"sk-[\w-]{40}", kept) is None
    report = (tmp_path / "first/report.html").read_text()
    assert "tiny-llama-glossary" in report
    assert "<script" in report
    assert executed.stat().st_size < 8e6  # plotly.js once, not once a figure


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_latency_under_load_and_its_repetition(tmp_path: Path) -> None:
    from workbench.notebooks import recorded, run_notebook

    few = {"rate": 4.0, "duration_s": 4.0, "rates": [4.0, 8.0, 16.0], "probe_s": 1.5}
    given = few | {"input_tokens": 16, "output_tokens": 8, "port": 0, "seed": 3}
    given["slo"] = {"ttft_ms": 1, "target": 0.9}  # nothing can meet it, so the search ends at once
    notebook = NOTEBOOKS / "01_latency_under_load.ipynb"
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
    path, parameters = recorded(first.path)
    assert path == notebook
    assert {name: parameters[name] for name in given} == given
    run_notebook(notebook, parameters, runs=tmp_path, run_id="again")
    plans = [(tmp_path / name / "plan.json").read_bytes() for name in ("first", "again")]
    assert plans[0] == plans[1]


def output_text(path: Path) -> str:
    """What the executed notebook's code cells printed or returned, as text."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            found.append(output.get("text") or json.dumps(output.get("data", {}))[:2000])
    return "".join(found)
