"""The common parts of all figures: colours, blank rows, and titles that mark a client-limited run.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart. Backgrounds are
transparent, for light and dark themes.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from workbench.metrics.health import ClientHealth
from workbench.quantities import TICKS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE, GREY = "#D55E00", "#CC79A7", "#808080"
_GRID = "rgba(128,128,128,0.25)"
_MAX_REASONS = 4

CONFIG = {"displaylogo": False}
"""The configuration of every plotly figure.

It is not responsive: JupyterLab's renderer follows the width of the cell by itself, and on a resize
plotly deletes the height of a responsive figure, which leaves a few pixels of it in a notebook.
"""
_PAGE_CONFIG = CONFIG | {"responsive": True}  # in a page, the figure's own element has the height
TIME_TITLE = "Time since the start of the run (s)"


def stacked(heights: list[float], height: int) -> go.Figure:
    """Return blank rows on one time axis.

    Args:
        heights: The height of each row relative to the others.
        height: The height of the whole figure in pixels.
    """
    from plotly.subplots import make_subplots

    rows = len(heights)
    figure = make_subplots(
        rows=rows, cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=0.06
    )
    return styled(figure, height)


def styled(figure: go.Figure, height: int) -> go.Figure:
    """Apply the common style to `figure`, make it `height` pixels high, and return it."""
    axis = TICKS | {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": GREY}
    axis |= {"automargin": True}
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


def titled(figure: go.Figure, title: str, health: ClientHealth | None = None) -> go.Figure:
    """Give `figure` its title, mark it if `health` says client-limited, and return it."""
    text: dict[str, Any] = {"text": title, "x": 0, "xref": "paper", "xanchor": "left"}
    if health is not None and health.client_limited:
        text["text"] = f"{title} - CLIENT LIMITED"
        text["subtitle"] = {"text": _reasons(health), "font": {"color": VERMILLION}}
        text["font"] = {"color": VERMILLION}
        figure.update_layout(margin_t=140)  # the reasons are above two rows of legend
    figure.update_layout(title=text | {"yref": "container", "y": 0.98, "yanchor": "top"})
    return figure


def _reasons(health: ClientHealth) -> str:
    further = len(health.reasons) - _MAX_REASONS
    more = [f"and {further} more"] if further > 0 else []
    return html.escape("; ".join([*health.reasons[:_MAX_REASONS], *more]), quote=False)


def health_of(frame: pd.DataFrame) -> ClientHealth | None:
    """Return the health that `Run.requests_frame` and `compare` put into a frame's `attrs`."""
    fields = frame.attrs.get("client_health")
    if not fields:
        return None
    return ClientHealth(
        client_limited=fields.get("client_limited"), reasons=tuple(fields.get("reasons", ()))
    )


def page_div(figure: go.Figure) -> str:
    """Return `figure` as HTML for a page that has plotly.js before it."""
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config=_PAGE_CONFIG)
    return text


def to_div(figure: go.Figure, *, with_script: bool) -> str:
    """Return `figure` as HTML that needs no network; `with_script` includes plotly.js."""
    text: str = figure.to_html(full_html=False, include_plotlyjs=with_script, config=_PAGE_CONFIG)
    missing = "This figure needs the script of the first figure in this notebook: run that cell."
    check = (
        "<script>window.Plotly || document.currentScript.insertAdjacentHTML("
        f"'afterend', '<p>{missing}</p>')</script>"
    )
    return text if with_script else check + text
