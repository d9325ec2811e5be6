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
