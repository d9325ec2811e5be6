"""Hold the notebooks to their form; `make check` calls it, `--strip` mends what it can in place.

A notebook in the repository has no outputs, no metadata but its kernel and its cells' tags, one
cell of parameters, and short cells of plain code. Without a kernel JupyterLab asks for one first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
MAX_LINES = 10
# The tag `blueprint` marks the one cell that shows a whole class.
MAX_BLUEPRINT_LINES = 25
# Of the cell of parameters: one plain literal a line.
MAX_PARAMETERS = 20


def faults(notebook: NotebookNode) -> Iterator[str]:
    """What is wrong with a notebook, each as one line; nothing if all is well."""
    if set(notebook.metadata) - {"kernelspec", "language_info"}:
        yield f"has metadata that belongs to a tool: {', '.join(notebook.metadata)} (--strip)"
    if notebook.metadata.get("kernelspec") != KERNEL:
        yield f"its kernelspec is not {KERNEL} (--strip)"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if sum("parameters" in tags(cell) for cell in code) != 1:
        yield "needs exactly one code cell with the tag `parameters`"
    for number, cell in enumerate(notebook.cells, 1):
        where = f"cell {number}"
        if set(cell.metadata) - {"tags"}:
            yield f"{where} has metadata besides its tags: {', '.join(cell.metadata)} (--strip)"
        if cell.cell_type == "code":
            yield from (f"{where} {fault}" for fault in code_faults(cell))


def code_faults(cell: NotebookNode) -> Iterator[str]:
    """What is wrong with one code cell."""
    lines = [line for line in cell.source.splitlines() if line.strip()]
    blueprint = "blueprint" in tags(cell)
    longer = {"blueprint": MAX_BLUEPRINT_LINES, "parameters": MAX_PARAMETERS}
    limit = max([MAX_LINES, *(longer.get(tag, 0) for tag in tags(cell))])
    if cell.outputs or cell.execution_count is not None:
        yield "has outputs or an execution count (--strip)"
    if len(lines) > limit:
        yield f"has {len(lines)} lines of code; at most {limit}"
    if any(line.startswith(("!", "%")) for line in lines):
        yield "calls the shell or a magic"
    if any(line.startswith("class ") for line in lines) and not blueprint:
        yield "defines a class"


def tags(cell: NotebookNode) -> list[str]:
    """A cell's tags."""
    return list(cell.metadata.get("tags", []))


def strip(notebook: NotebookNode) -> None:
    """Take out, in place, what a run or an editor left in a notebook."""
    language = notebook.metadata.get("language_info", {}).get("name", "python")
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": language})
    for cell in notebook.cells:
        cell.metadata = NotebookNode({"tags": tags(cell)} if tags(cell) else {})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def main() -> int:
    """Check every notebook, or strip them; the exit status is 1 if one has a fault."""
    found = 0
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        if "--strip" in sys.argv:
            strip(notebook)
            nbformat.write(notebook, path)
        for fault in faults(notebook):
            found += 1
            print(f"notebooks/{path.name}: {fault}")
    mend = "; `.venv/bin/python scripts/notebooks.py --strip` mends some" if found else ""
    print(f"{len(paths)} notebooks, {found} faults{mend}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
