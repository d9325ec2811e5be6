"""What all figures share: the colours, the blank rows, the title with the client's verdict.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, on a transparent ground
that suits light and dark themes.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.metrics.health import ClientHealth

ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE, GREY = "#D55E00", "#CC79A7", "#808080"
_GRID = "rgba(128,128,128,0.25)"


def stacked(heights: list[float], height: int) -> go.Figure:
    """Blank rows on one time axis: each one's share of the height, and all of it in pixels."""
    from plotly.subplots import make_subplots

    rows = len(heights)
    figure = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.06
    )
    return styled(figure, height)


def styled(figure: go.Figure, height: int) -> go.Figure:
    """`figure` in this style, `height` pixels high."""
    axis = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": GREY, "automargin": True}
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 13},
        margin={"l": 60, "r": 20, "t": 100, "b": 50},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        hovermode="closest",
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def titled(
    figure: go.Figure,
    title: str,
    requests: pd.DataFrame | None = None,
    health: ClientHealth | None = None,
) -> go.Figure:
    """`figure` under `title`, marked if `health` or `requests.attrs` says client limited."""
    known = {} if requests is None else requests.attrs
    verdict: Mapping[str, Any] = known.get("client_health") or {}
    if health is not None:
        verdict = health.model_dump()
    text: dict[str, Any] = {"text": title, "x": 0, "xref": "paper", "xanchor": "left"}
    if verdict.get("client_limited"):
        reasons = html.escape("; ".join(map(str, verdict.get("reasons", ()))), quote=False)
        text["text"] = f"{title} - CLIENT LIMITED"
        text["subtitle"] = {"text": reasons, "font": {"color": VERMILLION}}
        text["font"] = {"color": VERMILLION}
        figure.update_layout(margin_t=140)  # the reasons stand above the legend's two rows
    figure.update_layout(title=text | {"yref": "container", "y": 0.98, "yanchor": "top"})
    return figure


_CONFIG = {"responsive": True, "displaylogo": False}


class StaticFigure:
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
        here, carrier = _cell(), StaticFigure._carrier
        # A cell that carried it and is run again has lost its old output, and the script in it.
        carries = carrier is None or (here[0] == carrier[0] and here[1] != carrier[1])
        if carries:
            StaticFigure._carrier = here
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


def show(figure: go.Figure) -> StaticFigure:
    """`figure` as the last line of a cell, or for `display`: it lasts in a saved notebook."""
    return StaticFigure(figure)
