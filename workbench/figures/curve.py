"""Loads in, a plotly figure out: throughput against latency.

Pure, like `workbench.figures.latency`. A point whose run the client limited is hollow, and named
in the
legend and the title.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import SettingError, UnknownMetricError
from workbench.experiments.search import knee
from workbench.figures.style import BLUE, ORANGE, health_of, metric_label, styled, titled
from workbench.metrics.health import ClientHealth

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

_ACHIEVED = "output_throughput"
LOAD, HOLLOW = "offered load", "hollow: the client limited the run"


def throughput_latency_curve(
    points: pd.DataFrame, *, latency: str = "p95_ttft_ms", health: ClientHealth | None = None
) -> go.Figure:
    """Latency against throughput, a point a row, labelled with its offered `rate`; knee marked.

    `points` has `rate`, the column `latency` in ms and, where known, `output_throughput` (the x
    axis in output tokens/s; without it, x is the rate), `client_limited`, and for error bars the
    ends of an interval under a column's name with `_low` and `_high`. `attrs["unit"]` is the unit
    of the rate, requests/s by default. Rows without the figures are left out. Raises
    UnknownMetricError for a latency that is no column, SettingError without a `rate`.
    """
    title = metric_label(latency)
    if latency not in points:
        raise UnknownMetricError(f"latency is {latency!r}: points has only {list(points.columns)}")
    if "rate" not in points:
        raise SettingError(f"points has no 'rate': it has only {list(points.columns)}")
    unit = points.attrs.get("unit", "requests/s")
    x = _ACHIEVED if _ACHIEVED in points else "rate"
    shown = points.dropna(subset=["rate", x, latency]).sort_values("rate", kind="stable")
    figure = _blank(f"{LOAD} ({unit})" if x == "rate" else "output tokens/s")
    _joined(figure, shown, x, latency)
    limited = shown.get("client_limited", shown.rate * 0).eq(True)
    _marked(figure, shown[~limited], x, latency, f"{title} at a load, in {unit}", "circle")
    _marked(figure, shown[limited], x, latency, HOLLOW, "circle-open")
    _knee(figure, shown, x, latency, unit)
    latency_axis(figure, shown[latency].to_numpy(float), title)
    verdict = with_limited(shown.rate[limited].tolist(), unit, health)
    return titled(figure, "Throughput and latency", verdict or health_of(points))


def _blank(x_title: str) -> go.Figure:
    import plotly.graph_objects as go

    return styled(go.Figure(), 460).update_xaxes(title_text=x_title)


def latency_axis(figure: go.Figure, values: NDArray[np.float64], title: str) -> None:
    """Logarithmic where overload would press all other points to the ground."""
    figure.layout.yaxis.update(title_text=title, rangemode="tozero")
    if len(values) and 0 < values.min() < values.max() / 30:
        figure.layout.yaxis.update(type="log")


def _joined(figure: go.Figure, shown: pd.DataFrame, x: str, latency: str) -> None:
    import plotly.graph_objects as go

    line = {"color": BLUE, "width": 1}
    points = {"x": shown[x], "y": shown[latency], "mode": "lines", "line": line}
    figure.add_trace(go.Scatter(**points, showlegend=False, hoverinfo="skip"))


def _marked(
    figure: go.Figure, rows: pd.DataFrame, x: str, latency: str, name: str, symbol: str
) -> None:
    import plotly.graph_objects as go

    if rows.empty:
        return
    unit = "tokens/s" if x == _ACHIEVED else ""
    marks = go.Scatter(
        x=rows[x],
        y=rows[latency],
        error_x=_bars(rows, x),
        error_y=_bars(rows, latency),
        mode="markers+text",
        text=[f"{rate:.4g}" for rate in rows.rate],
        textposition="top left",
        name=name,
        marker={"color": BLUE, "size": 10, "symbol": symbol, "line": {"width": 2}},
        hovertemplate=f"load %{{text}}: %{{y:,.1f}} ms at %{{x:,.4g}} {unit}<extra></extra>",
    )
    figure.add_trace(marks)


def _bars(rows: pd.DataFrame, name: str) -> dict[str, Any] | None:
    """The interval around `name` as lengths, None where the frame has none."""
    if f"{name}_low" not in rows or f"{name}_high" not in rows:
        return None
    up, down = rows[f"{name}_high"] - rows[name], rows[name] - rows[f"{name}_low"]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1}


def _knee(figure: go.Figure, shown: pd.DataFrame, x: str, latency: str, unit: str) -> None:
    import plotly.graph_objects as go

    at = knee(shown[x].tolist(), shown[latency].tolist())
    if at is None:
        return
    row = shown.iloc[at]
    ring = go.Scatter(
        x=[row[x]],
        y=[row[latency]],
        name=f"knee at {row.rate:.4g} {unit}",
        mode="markers",
        marker={"color": ORANGE, "size": 20, "symbol": "circle-open", "line": {"width": 3}},
        hoverinfo="skip",
    )
    figure.add_trace(ring)


def with_limited(
    limited: list[float], unit: str, health: ClientHealth | None
) -> ClientHealth | None:
    """`health`, with the loads that the client limited among its reasons."""
    if not limited:
        return health
    told = f"the client limited the load of {', '.join(f'{r:.4g}' for r in limited)} {unit}"
    before = () if health is None else health.reasons
    return ClientHealth(client_limited=True, reasons=(*before, told))
