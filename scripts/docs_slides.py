"""The slides: a notebook as one page of reveal.js, executed by this script, without a network."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import nbformat
from docs_notebooks import figure_html
from docs_sources import ROOT, SLIDES, SOURCES
from gallery import FIGURE, reduced
from nbconvert import SlidesExporter
from nbformat import NotebookNode

from workbench.automation.execution import execute

TEMPLATE = ROOT / "docs" / "slides" / "template.html.j2"
EXECUTED = ROOT / "build" / "slides"


def write_slides() -> None:
    """Execute the notebook of each deck, and write its page."""
    exporter = SlidesExporter(raw_template=TEMPLATE.read_text(encoding="utf-8"))
    exporter.exclude_input = True
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    for source, page in SLIDES.items():
        text, _ = exporter.from_notebook_node(deck(ROOT / source))
        file = SOURCES / page
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def deck(path: Path) -> NotebookNode:
    """Return an executed notebook with its figures as the elements that figures.js draws."""
    with redirect_stdout(StringIO()):
        executed = execute(path, {}, output=EXECUTED / path.name, cwd=ROOT)
    notebook = nbformat.read(executed, as_version=4)
    slides = [cell.metadata.get("slideshow", {}) for cell in notebook.cells]
    notebook = reduced(notebook)
    for cell, slide in zip(notebook.cells, slides, strict=True):
        cell.metadata["slideshow"] = slide
        for output in cell.get("outputs", []):
            if FIGURE in output.get("data", {}):
                output.data = {"text/html": figure_html(output.data[FIGURE])}
    return notebook
