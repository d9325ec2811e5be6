"""Check the form of the notebooks; `make check` calls it, `--strip` repairs what it can in place.

A notebook in the repository has no outputs, no metadata but its kernel and its cells' tags, one
cell of parameters, and short cells of plain code. Without a kernel JupyterLab asks for one first.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
MAX_LINES = 15
# The tag `blueprint` marks the one cell that shows a whole class, written without this project.
MAX_BLUEPRINT_LINES = 25
# One plain literal per line.
MAX_PARAMETERS = 24
# Besides the standard library; of this project's packages, notebooks know `workbench` only.
ALLOWED_IMPORTS = frozenset({"workbench", "openai", "pandas"}) | sys.stdlib_module_names


def faults(notebook: NotebookNode) -> Iterator[str]:
    """Yield each fault of a notebook as one line."""
    if set(notebook.metadata) - {"kernelspec", "language_info"}:
        yield f"has metadata that belongs to a tool: {', '.join(notebook.metadata)} (--strip)"
    if notebook.metadata.get("kernelspec") != KERNEL:
        yield f"its kernelspec is not {KERNEL} (--strip)"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if sum("parameters" in tags(cell) for cell in code) != 1:
        yield "needs exactly one code cell with the tag `parameters`"
    for number, cell in enumerate(notebook.cells, 1):
        if set(cell.metadata) - {"tags"}:
            extra = ", ".join(cell.metadata)
            yield f"cell {number} has metadata besides its tags: {extra} (--strip)"
        if cell.cell_type == "code":
            yield from (f"cell {number} {fault}" for fault in code_faults(cell))


def code_faults(cell: NotebookNode) -> Iterator[str]:
    """Yield each fault of a code cell."""
    lines = [line for line in cell.source.splitlines() if line.strip()]
    longer = {"blueprint": MAX_BLUEPRINT_LINES, "parameters": MAX_PARAMETERS}
    limit = max([MAX_LINES, *(longer.get(tag, 0) for tag in tags(cell))])
    if cell.outputs or cell.execution_count is not None:
        yield "has outputs or an execution count (--strip)"
    if len(lines) > limit:
        yield f"has {len(lines)} lines of code; at most {limit}"
    if any(line.startswith(("!", "%")) for line in lines):
        yield "calls the shell or a magic"
        return
    body = ast.parse(cell.source).body
    if "blueprint" not in tags(cell):
        yield from (f"imports {name}" for name in foreign_imports(body))
        if any(isinstance(statement, ast.ClassDef) for statement in body):
            yield "defines a class"
    if any(is_call_of_show(statement) for statement in body[:-1]):
        yield "calls show before its last line, so the figure is not displayed"


def foreign_imports(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the imported modules that are not among `ALLOWED_IMPORTS`."""
    for node in ast.walk(ast.Module(body, [])):
        match node:
            case ast.Import(names=names):
                imported = [alias.name for alias in names]
            case ast.ImportFrom(module=module):
                imported = [module or "."]
            case _:
                continue
        yield from (name for name in imported if name.partition(".")[0] not in ALLOWED_IMPORTS)


def is_call_of_show(statement: ast.stmt) -> bool:
    """Return whether the statement calls a function `show` and discards its value."""
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="show") | ast.Name(id="show"))):
            return True
    return False


def tags(cell: NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return list(cell.metadata.get("tags", []))


def strip(notebook: NotebookNode) -> None:
    """Remove, in place, what a run or an editor left in a notebook."""
    language = notebook.metadata.get("language_info", {}).get("name", "python")
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": language})
    for cell in notebook.cells:
        cell.metadata = NotebookNode({"tags": tags(cell)} if tags(cell) else {})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def main() -> int:
    """Check every notebook, or strip them; the exit status is 1 if one has a fault."""
    count = 0
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        if "--strip" in sys.argv:
            strip(notebook)
            nbformat.write(notebook, path)
        for fault in faults(notebook):
            count += 1
            print(f"notebooks/{path.name}: {fault}")
    hint = "; `.venv/bin/python scripts/notebooks.py --strip` repairs some" if count else ""
    print(f"{len(paths)} notebooks, {count} faults{hint}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
