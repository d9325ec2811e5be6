"""Throughput per GPU against speed per user. The upper right is better."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from workbench.errors import SettingError
from workbench.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    styled,
    titled,
)
from workbench.metrics.health import ClientHealth

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)
_REQUIRED = ("label", "group", "concurrency", "tokens_per_user", "tokens_per_gpu", "efficient")


def frontier(points: pd.DataFrame) -> go.Figure:
    """Draw tokens/s per GPU against tokens/s per user, a curve per group.

    A line joins the efficient points: those that no other of their group surpasses in both. The
    others are faint, and points that the client limited are hollow. The text at a point is its
    concurrency.

    Args:
        points: What `workbench.analysis.frontier_points` returned.

    Raises:
        SettingError: `points` lacks a column.
    """
    import plotly.graph_objects as go

    missing = [name for name in _REQUIRED if name not in points]
    if missing:
        raise SettingError(
            f"points must have the columns {', '.join(_REQUIRED)}; {', '.join(missing)} is missing"
        )
    figure = styled(go.Figure(), 480)
    shown = points.dropna(subset=["tokens_per_user", "tokens_per_gpu"])
    for number, (group, part) in enumerate(shown.groupby("group", sort=False)):
        colour = _COLOURS[number % len(_COLOURS)]
        name = html.escape(str(group), quote=False)
        best = part[part.efficient].sort_values("tokens_per_user")
        figure.add_trace(_points(best, name, colour, mode="lines+markers+text"))
        rest = part[~part.efficient]
        if len(rest):
            figure.add_trace(_points(rest, f"{name}, surpassed", colour, opacity=0.4))
    per = points.attrs.get("per", "GPU")
    title = "Output tokens/s" + (f" per {per}" if per == "GPU" else " of the endpoint")
    figure.update_xaxes(title_text="Tokens/s per user (1 / median TPOT)", rangemode="tozero")
    figure.update_yaxes(title_text=title, rangemode="tozero")
    return titled(figure, "Throughput and speed per user", _health(shown))


def _points(rows: pd.DataFrame, name: str, colour: str, **options: Any) -> go.Scatter:
    import plotly.graph_objects as go

    limited = rows.get("client_limited", rows.concurrency * 0).eq(True)
    symbols = ["circle-open" if open_ else "circle" for open_ in limited]
    settings: dict[str, Any] = {"mode": "markers+text"} | options
    return go.Scatter(
        x=rows.tokens_per_user,
        y=rows.tokens_per_gpu,
        text=[f"{value:.3g}" for value in rows.concurrency],
        textposition="top right",
        name=name,
        marker={"color": colour, "size": 10, "symbol": symbols},
        line={"color": colour, "width": 1},
        customdata=[html.escape(str(label), quote=False) for label in rows.label],
        hovertemplate="%{customdata}: %{text} requests in progress<br>%{y:,.4g} tokens/s, "
        "%{x:,.4g} per user<extra></extra>",
        **settings,
    )


def _health(rows: pd.DataFrame) -> ClientHealth | None:
    limited = rows[rows.get("client_limited", rows.concurrency * 0).eq(True)]
    if limited.empty:
        return None
    labels = ", ".join(str(label) for label in limited.label)
    return ClientHealth(client_limited=True, reasons=(f"client limited in {labels}",))
