"""The demo: notebook 02, shown live in a terminal, and what happened in the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from serving.spec.model import ModelSpec, deployment_name
from workbench.analysis.story import closing_lines
from workbench.automation.execution import run_notebook
from workbench.automation.notebooks import parameters_of
from workbench.metrics.slo import SLO
from workbench.runs.run import Run


def run_demo(path: Path, parameters: Mapping[str, Any], *, runs: Path, run_id: str) -> None:
    """Run the notebook, and print what happened and where its report is.

    In a terminal, a live view is below the notebook's lines. In a pipe there are only lines.

    Raises:
        NotebookError: If the notebook ends with an error.
    """
    folder, values = runs / run_id, parameters_of(path) | dict(parameters)
    model = ModelSpec(source=values["source"], accelerator=values["accelerator"])
    deployment = deployment_name(model)
    with _live_view(folder, deployment):
        run_notebook(path, parameters, runs=runs, run_id=run_id)
    lines = closing_lines(Run.open(folder), deployment=deployment, slo=_slo(values))
    report = (folder / "report.html").as_uri()
    print("", *lines, "", f"report  {report}", sep="\n", flush=True)


def _live_view(folder: Path, deployment: str) -> AbstractContextManager[object]:
    if not sys.stdout.isatty():
        return nullcontext()
    from rich.live import Live

    from workbench.automation.terminal_view import TerminalView

    return Live(TerminalView(folder, deployment), refresh_per_second=2, transient=True)


def _slo(values: Mapping[str, Any]) -> SLO:
    """Return the SLO that the notebook makes of its parameters."""
    bounds = {name: values[f"slo_{name}"] for name in ("ttft_ms", "tpot_ms", "target")}
    return SLO(**(values["slo"] or bounds))
