"""Throughput against latency, a point per load. Client-limited points are hollow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import SettingError, UnknownMetricError
from workbench.experiments.search import knee
from workbench.figures.style import BLUE, ORANGE, health_of, styled, titled
from workbench.metrics.health import ClientHealth
from workbench.metrics.registry import latency_label

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

_THROUGHPUT = "output_throughput"
LOAD, HOLLOW = "Offered load", "Hollow: client limited"


def throughput_latency_curve(
    points: pd.DataFrame, *, latency: str = "p95_ttft_ms", health: ClientHealth | None = None
) -> go.Figure:
    """Draw latency against throughput, with the knee marked.

    Args:
        points: A row per load. `rate` is the offered load and the label of the point, and the
            column `latency` is in ms. Optional are `output_throughput` (tokens/s; the x axis,
            otherwise `rate`), `client_limited`, and columns ending in `_low` and `_high` with the
            ends of an interval, for error bars. `attrs["unit"]` is the unit of the rate,
            requests/s by default. Rows with missing figures are left out.
        latency: The latency on the y axis.
        health: The client's health; by default the one that `points` carries.

    Raises:
        UnknownMetricError: If `latency` is not a column.
        SettingError: If `points` has no `rate`.
    """
    title = latency_label(latency)
    if latency not in points:
        raise UnknownMetricError(
            f"latency must be a column of points ({', '.join(points.columns)}), got {latency!r}"
        )
    if "rate" not in points:
        raise SettingError(f"points must have a column 'rate', got {', '.join(points.columns)}")
    unit = points.attrs.get("unit", "requests/s")
    x = _THROUGHPUT if _THROUGHPUT in points else "rate"
    shown = points.dropna(subset=["rate", x, latency]).sort_values("rate", kind="stable")
    figure = _blank(f"{LOAD} ({unit})" if x == "rate" else "Output tokens/s")
    _add_line(figure, shown, x, latency)
    limited = shown.get("client_limited", shown.rate * 0).eq(True)
    _add_points(figure, shown[~limited], x, latency, f"{title} by load ({unit})", "circle")
    _add_points(figure, shown[limited], x, latency, HOLLOW, "circle-open")
    _add_knee(figure, shown, x, latency, unit)
    latency_axis(figure, shown[latency].to_numpy(float), title)
    health = with_limited_loads(shown.rate[limited].tolist(), unit, health)
    return titled(figure, "Throughput and latency", health or health_of(points))


def _blank(x_title: str) -> go.Figure:
    import plotly.graph_objects as go

    return styled(go.Figure(), 460).update_xaxes(title_text=x_title)


def latency_axis(figure: go.Figure, values: NDArray[np.float64], title: str) -> None:
    """Set up the y axis, logarithmic if overload would flatten all other points."""
    figure.layout.yaxis.update(title_text=title, rangemode="tozero")
    if len(values) and 0 < values.min() < values.max() / 30:
        figure.layout.yaxis.update(type="log")


def _add_line(figure: go.Figure, shown: pd.DataFrame, x: str, latency: str) -> None:
    import plotly.graph_objects as go

    line = {"color": BLUE, "width": 1}
    points = {"x": shown[x], "y": shown[latency], "mode": "lines", "line": line}
    figure.add_trace(go.Scatter(**points, showlegend=False, hoverinfo="skip"))


def _add_points(
    figure: go.Figure, rows: pd.DataFrame, x: str, latency: str, name: str, symbol: str
) -> None:
    import plotly.graph_objects as go

    if rows.empty:
        return
    unit = "tokens/s" if x == _THROUGHPUT else ""
    points = go.Scatter(
        x=rows[x],
        y=rows[latency],
        error_x=_error_bars(rows, x),
        error_y=_error_bars(rows, latency),
        mode="markers+text",
        text=[f"{rate:.4g}" for rate in rows.rate],
        textposition="top left",
        name=name,
        marker={"color": BLUE, "size": 10, "symbol": symbol, "line": {"width": 2}},
        hovertemplate=f"Load %{{text}}: %{{y:,.1f}} ms at %{{x:,.4g}} {unit}<extra></extra>",
    )
    figure.add_trace(points)


def _error_bars(rows: pd.DataFrame, name: str) -> dict[str, Any] | None:
    """Return the interval around `name` as lengths, or None if there is none."""
    if f"{name}_low" not in rows or f"{name}_high" not in rows:
        return None
    up, down = rows[f"{name}_high"] - rows[name], rows[name] - rows[f"{name}_low"]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1}


def _add_knee(figure: go.Figure, shown: pd.DataFrame, x: str, latency: str, unit: str) -> None:
    import plotly.graph_objects as go

    index = knee(shown[x].tolist(), shown[latency].tolist())
    if index is None:
        return
    row = shown.iloc[index]
    ring = go.Scatter(
        x=[row[x]],
        y=[row[latency]],
        name=f"Knee at {row.rate:.4g} {unit}",
        mode="markers",
        marker={"color": ORANGE, "size": 20, "symbol": "circle-open", "line": {"width": 3}},
        hoverinfo="skip",
    )
    figure.add_trace(ring)


def with_limited_loads(
    limited: list[float], unit: str, health: ClientHealth | None
) -> ClientHealth | None:
    """Return `health` with the client-limited loads among its reasons."""
    if not limited:
        return health
    loads = ", ".join(f"{rate:.4g}" for rate in limited)
    reasons = () if health is None else health.reasons
    return ClientHealth(
        client_limited=True, reasons=(*reasons, f"client limited at {loads} {unit}")
    )
