"""Show a figure in a notebook cell, in a form that lasts in the saved notebook."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from workbench.figures.style import CONFIG, to_div

if TYPE_CHECKING:
    import plotly.graph_objects as go


def show(figure: go.Figure) -> StaticFigure:
    """Return `figure` in a form that lasts in a saved notebook, as the last line of a cell."""
    return StaticFigure(figure)


class StaticFigure:
    """A figure as notebooks save it: as data for JupyterLab, and as HTML for everything else.

    nbconvert and viewers without plotly use the HTML, which needs no network. Only the first cell
    that shows a figure includes plotly.js (5 MB); the others use it from there.
    """

    _script_cell: tuple[str, int] | None = None  # the cell and its execution count

    def __init__(self, figure: go.Figure) -> None:
        self.figure = figure

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        data = json.loads(self.figure.to_json())
        bundle = {"application/vnd.plotly.v1+json": {**data, "config": CONFIG}}
        return {**bundle, "text/html": self.html(), "text/plain": "a figure"}

    def html(self) -> str:
        """Return the figure as HTML, with plotly.js if no earlier cell has it."""
        current, earlier = _current_cell(), StaticFigure._script_cell
        # Running the cell with the script again removes its old output, and the script with it.
        rerun = earlier is not None and current[0] == earlier[0] and current[1] != earlier[1]
        with_script = earlier is None or rerun
        if with_script:
            StaticFigure._script_cell = current
        return to_div(self.figure, with_script=with_script)


def _current_cell() -> tuple[str, int]:
    """Return the running cell and its execution count. Under papermill the cell is unknown."""
    try:
        from IPython import get_ipython

        shell = get_ipython()
        count = int(shell.execution_count)
        return shell.parent_header.get("metadata", {}).get("cellId") or f"#{count}", count
    except (ImportError, AttributeError):
        return "#0", 0
