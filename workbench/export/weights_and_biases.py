"""Log a run to Weights & Biases, with its own client, which is an optional package."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import MissingPackageError, RunError
from workbench.export.artifacts import artifacts_of
from workbench.export.facts import metrics_of, parameters_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.runs.run import Run


def log_to_wandb(
    run: Run,
    *,
    project: str = "llm-serving-workbench",
    figures: Mapping[str, go.Figure] | None = None,
    **init: Any,
) -> str | None:
    """Log the parameters, the metrics, the figures and the report of a finished run.

    Args:
        run: The run.
        project: Name of the project.
        figures: Figures by name.
        init: Further arguments of `wandb.init`, such as `entity` or `mode="offline"`.

    Returns:
        The address of the run's page; None in offline mode.

    Raises:
        MissingPackageError: The package `wandb` is not installed.
        RunError: The run is not finished.
    """
    try:
        wandb: Any = import_module("wandb")
    except ImportError:
        raise MissingPackageError(
            "The package 'wandb' is not installed. Install it: pip install wandb"
        ) from None
    summary = run.summary()
    if summary is None:
        raise RunError(f"run {run.run_id} has no summary: finish it before it is logged")
    config = parameters_of(run)
    with wandb.init(project=project, name=run.run_id, config=config, **init) as logged:
        drawn = {name: wandb.Plotly(figure) for name, figure in (figures or {}).items()}
        logged.log(metrics_of(summary) | drawn)
        with tempfile.TemporaryDirectory() as folder:
            artifact = wandb.Artifact(f"run-{run.run_id}", type="run")
            for name, content in artifacts_of(run, {}):
                file = Path(folder) / name
                file.write_bytes(content)
                artifact.add_file(str(file), name=name)
            logged.log_artifact(artifact)
        address: str | None = logged.url
    return address
