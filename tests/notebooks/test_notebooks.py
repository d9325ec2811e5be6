"""Notebooks 00 and 02, executed by papermill on a real engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from support.executed_notebook import output_text
from support.offline import NEEDS_ROOT, may_be_offline, run_offline
from support.paths import NOTEBOOKS, ROOT

from workbench.runs.run import Run

pytestmark = pytest.mark.engine
GLOSSARY = ROOT / "tools" / "tiny_model" / "glossary.jsonl"


class First(NamedTuple):
    """Notebook 00 with its blueprint, executed once by the command that a user would type."""

    folder: Path
    executed: Path
    offline: bool


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    """Where a network namespace is permitted, the notebook runs in one without a network."""
    runs = tmp_path_factory.mktemp("runs")
    parameters = runs / "first.yaml"
    given = {"port": 0, "requests": 8, "output_tokens": 32, "run_blueprint": True}
    parameters.write_text(json.dumps(given))
    command = [sys.executable, "-m", "workbench", "run", "00", "--profile", "workshop"]
    command += ["-f", str(parameters), "--runs", str(runs), "--run-id", "first"]
    offline = may_be_offline()
    ran = (run_offline if offline else run_online)(*command, cwd=ROOT, timeout=840)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    (executed,) = (runs / "first").glob("*.ipynb")
    return First(runs / "first", executed, offline)


def run_online(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.timeout(900)
def test_first_endpoint_with_the_blueprint(first: First) -> None:
    run = Run.open(first.folder)
    records = list(run.records())
    assert len(records) == 8
    assert {(r.status, r.output_tokens) for r in records} == {("ok", 32)}
    # Tokens share an event if they complete one character, or if the reader is slow.
    events = [len(record.token_times_s) for record in records]
    assert max(events) >= 2
    assert all(1 <= count <= 32 for count in events)
    summary = run.summary()
    assert summary is not None
    assert summary.completed == 8
    assert summary.failed == 0
    assert set(run.samples_frame().deployment) == {"tiny-llama-glossary", "router"}
    outputs = output_text(first.executed)
    glossary = [json.loads(line) for line in GLOSSARY.read_text().splitlines()]
    entry = next(e for e in glossary if e["term"].lower() == "continuous batching")
    assert entry["definition"][:60] in outputs  # streamed, and again from the blueprint
    assert outputs.count(entry["definition"][22:50]) >= 2
    kept = first.executed.read_text() + (first.folder / "experiment.json").read_text()
    assert re.search(r"sk-[\w-]{40}", kept) is None
    report = (first.folder / "report.html").read_text()
    assert "tiny-llama-glossary" in report
    assert "<script" in report
    assert first.executed.stat().st_size < 8e6  # plotly.js once, not once a figure


@pytest.mark.timeout(900)
def test_first_endpoint_needs_no_network(first: First) -> None:
    if not first.offline:
        pytest.skip(NEEDS_ROOT)
    assert (first.folder / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.timeout(900)
def test_watch_autoscaling_goes_from_nothing_to_two_replicas_and_back(tmp_path: Path) -> None:
    from workbench.automation.execution import run_notebook

    given = {"ramp_s": 15.0, "hold_s": 45.0, "output_tokens": 32, "port": 0}
    notebook = NOTEBOOKS / "02_watch_autoscaling.ipynb"
    executed = run_notebook(notebook, given, runs=tmp_path, run_id="watch")
    run = Run.open(tmp_path / "watch")
    assert {record.status for record in run.records()} == {"ok"}
    replicas = run.samples_frame()
    model = replicas[replicas.deployment == "tiny-llama-glossary"]
    assert model.target.iloc[0] == model.target.iloc[-1] == model.running.iloc[-1] == 0
    assert model.target.max() == 2
    decisions = run.samples_frame("decision")
    path = decisions[decisions.deployment == "tiny-llama-glossary"]
    assert (path.from_target.iloc[0], path.to_target.iloc[-1]) == (0, 0)
    made = [change.what for change in run.changes() if change.what != "late"]
    assert made == ["start", "end"]
    summary = run.summary()
    assert summary is not None
    assert summary.failed == summary.shed == 0
    assert summary.cost is not None
    assert summary.cost["dollars"] > 0
    outputs = output_text(executed)
    assert "requests/s offered" in outputs
    assert "0 → 1: " in outputs
    data = [
        o.get("data", {})
        for cell in nbformat.read(executed, 4).cells
        for o in cell.get("outputs", [])
    ]
    assert not any("widget" in mime for bundle in data for mime in bundle)
    report = (run.path / "report.html").read_text()
    assert "KV cache in use" in report
    assert "python -m workbench repeat" in report
