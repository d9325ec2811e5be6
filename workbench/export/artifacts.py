"""The files of a run that a tracking server keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from workbench.figures.style import CONFIG

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.runs.run import Run

FILES = ("experiment.json", "summary.json", "plan.json", "claims.json", "report.html")
"""The files of a run's folder that are uploaded if they exist. They have no secrets."""


def artifacts_of(run: Run, figures: Mapping[str, go.Figure]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file: the run's own, then `figures/NAME.html`."""
    for name in FILES:
        file = run.path / name
        if file.exists():
            yield name, file.read_bytes()
    for name, figure in figures.items():
        page = figure.to_html(include_plotlyjs=True, config=CONFIG)
        yield f"figures/{file_name(name)}.html", page.encode()


def file_name(title: str) -> str:
    """Return a title as the name of a file."""
    return re.sub(r"[^\w.-]+", "-", title).strip("-.").lower() or "figure"
