"""Figures as notebooks and pages show them: as HTML that needs no network, or as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CONFIG = {"responsive": True, "displaylogo": False}


class Rendered:
    """A figure as notebooks save it: for JupyterLab as data, for everything else as HTML.

    nbconvert and viewers without plotly take the HTML, which needs no network. plotly.js (5 MB)
    stands in the HTML of one cell, the first that rendered; the others use it from there.
    """

    _carrier: tuple[str, int] | None = None  # the cell, and at which execution it rendered

    def __init__(self, figure: go.Figure) -> None:
        self.figure = figure

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        import json

        data = json.loads(self.figure.to_json())
        bundle = {"application/vnd.plotly.v1+json": {**data, "config": _CONFIG}}
        return {**bundle, "text/html": self._html(), "text/plain": "a figure"}

    def _html(self) -> str:
        here, carrier = _cell(), Rendered._carrier
        # A cell that carried it and is run again has lost its old output, and the script in it.
        carries = carrier is None or (here[0] == carrier[0] and here[1] != carrier[1])
        if carries:
            Rendered._carrier = here
        return to_div(self.figure, with_script=carries)


def to_div(figure: go.Figure, *, with_script: bool) -> str:
    """`figure` as HTML that needs no network; `with_script` puts plotly.js in it."""
    text: str = figure.to_html(full_html=False, include_plotlyjs=with_script, config=_CONFIG)
    missing = "This figure is drawn by the script of the notebook's first figure: run that cell."
    check = (
        "<script>window.Plotly || document.currentScript.insertAdjacentHTML("
        f"'afterend', '<p>{missing.replace(chr(39), '&#39;')}</p>')</script>"
    )
    return text if with_script else check + text


def _cell() -> tuple[str, int]:
    """The running cell and its execution count. papermill does not say which cell it runs."""
    try:
        from IPython import get_ipython

        shell = get_ipython()
        count = int(shell.execution_count)
        return shell.parent_header.get("metadata", {}).get("cellId") or f"#{count}", count
    except (ImportError, AttributeError):
        return "#0", 0


def render(figure: go.Figure) -> Rendered:
    """`figure` as the last line of a cell, or for `display`: it lasts in a saved notebook."""
    return Rendered(figure)
