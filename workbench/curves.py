"""Loads in, plotly figures out: throughput against latency, and the probes of a search.

Pure, like `workbench.figures`. A point whose run the client limited is hollow, and named in the
legend and the title.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import SettingError, UnknownMetricError
from workbench.health import ClientHealth
from workbench.search import knee
from workbench.style import BLUE, GREEN, ORANGE, PURPLE, VERMILLION, styled, titled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from workbench.search import ProbeResult, SearchResult

__all__ = ["search_figure", "throughput_latency_curve"]

_ACHIEVED = "output_throughput"
_LOAD, _HOLLOW = "offered load", "hollow: the client limited the run"
_SYMBOLS = {
    True: {"bracket": "circle", "bisect": "diamond", "confirm": "square"},
    False: {"bracket": "x", "bisect": "cross", "confirm": "triangle-down"},
}


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
    title = _worded(latency)
    if latency not in points:
        raise UnknownMetricError(f"latency is {latency!r}: points has only {list(points.columns)}")
    if "rate" not in points:
        raise SettingError(f"points has no 'rate': it has only {list(points.columns)}")
    unit = points.attrs.get("unit", "requests/s")
    x = _ACHIEVED if _ACHIEVED in points else "rate"
    shown = points.dropna(subset=["rate", x, latency]).sort_values("rate", kind="stable")
    figure = _blank(f"{_LOAD} ({unit})" if x == "rate" else "output tokens/s")
    _joined(figure, shown, x, latency)
    limited = shown.get("client_limited", shown.rate * 0).eq(True)
    _marked(figure, shown[~limited], x, latency, f"{title} at a load, in {unit}", "circle")
    _marked(figure, shown[limited], x, latency, _HOLLOW, "circle-open")
    _knee(figure, shown, x, latency, unit)
    _latency_axis(figure, shown[latency].to_numpy(float), title)
    verdict = _verdict(shown.rate[limited].tolist(), unit, health)
    return titled(figure, "Throughput and latency", points, verdict)


def search_figure(result: SearchResult, latency: str = "p95_ttft_ms") -> go.Figure:
    """Every probe by its load and its `latency`, met and missed apart, and the answer as a line.

    Colour and symbol say whether the SLO was met, the symbol in which phase. A probe in which
    nothing has that latency cannot be drawn; the legend counts it. Raises UnknownMetricError.
    """
    title = _worded(latency)
    figure = _blank(f"{_LOAD} ({result.unit})")
    figure.update_xaxes(type="log")
    for met, phases in _SYMBOLS.items():
        for phase, symbol in phases.items():
            chosen = [
                (n, p) for n, p in enumerate(result.probes, 1) if (p.met, p.phase) == (met, phase)
            ]
            if chosen:
                figure.add_trace(_probes(chosen, symbol, latency, result.unit))
    found = [p.summary.figure(latency) for p in result.probes]
    heights = np.array([value for value in found if value is not None], float)
    limited = [p.rate for p in result.probes if p.summary.client_health.client_limited]
    if limited:
        figure.add_trace(_key(_HOLLOW))
    if result.highest is not None:
        figure.add_trace(_answer(result.highest, result.unit, heights))
    _latency_axis(figure, heights, title)
    answer = "none, missed at the lowest"
    if result.highest is not None:
        answer = f"{result.highest:.4g} {result.unit}{'' if result.bounded else ' or more'}"
    verdict = _verdict(sorted(set(limited)), result.unit, None)
    return titled(figure, f"Highest load within the SLO: {answer}", result.frame(), verdict)


def _worded(latency: str) -> str:
    """`p95_ttft_ms` as `p95 TTFT (ms)`."""
    statistic, _, rest = latency.partition("_")
    if not rest.endswith("_ms"):
        raise UnknownMetricError(f"latency is {latency!r}: give one in ms, as 'p95_ttft_ms'")
    head, _, tail = rest.removesuffix("_ms").partition("_")
    return " ".join(f"{statistic} {head.upper()} {tail} (ms)".replace("_", " ").split())


def _blank(x_title: str) -> go.Figure:
    import plotly.graph_objects as go

    return styled(go.Figure(), 460).update_xaxes(title_text=x_title)


def _latency_axis(figure: go.Figure, values: NDArray[np.float64], title: str) -> None:
    """Logarithmic where overload would press all other points to the ground."""
    figure.update_yaxes(title_text=title, rangemode="tozero")
    if len(values) and 0 < values.min() < values.max() / 30:
        figure.update_yaxes(type="log")


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


def _probes(
    chosen: list[tuple[int, ProbeResult]], symbol: str, latency: str, unit: str
) -> go.Scatter:
    import plotly.graph_objects as go

    probes = [p for _, p in chosen]
    heights = [p.summary.figure(latency) for p in probes]
    absent = f", {heights.count(None)} not drawn: no latency" if None in heights else ""
    limited = [p.summary.client_health.client_limited for p in probes]
    verdict = "met" if probes[0].met else "missed"
    return go.Scatter(
        x=[p.rate for p in probes],
        y=heights,
        name=f"{verdict}, {probes[0].phase} ({len(probes)}{absent})",
        mode="markers",
        marker={
            "color": GREEN if probes[0].met else VERMILLION,
            "size": 11,
            "symbol": [f"{symbol}-open" if hollow else symbol for hollow in limited],
        },
        customdata=[(n, p.summary.slo_attainment) for n, p in chosen],
        hovertemplate=f"probe %{{customdata[0]}}: %{{x:.4g}} {unit}, %{{y:,.1f}} ms<br>"
        "%{customdata[1]:.1%} within the SLO<extra>%{fullData.name}</extra>",
    )


def _key(name: str) -> go.Scatter:
    """An entry of the legend alone."""
    import plotly.graph_objects as go

    marker = {"color": BLUE, "size": 11, "symbol": "circle-open"}
    return go.Scatter(x=[None], y=[None], name=name, mode="markers", marker=marker)


def _answer(load: float, unit: str, heights: NDArray[np.float64]) -> go.Scatter:
    """A trace, as plotly places the text of a line shape wrongly on a logarithmic axis."""
    import plotly.graph_objects as go

    ends = [heights.min(), heights.max()] if len(heights) else [0.0, 1.0]
    return go.Scatter(
        x=[load, load],
        y=ends,
        name=f"highest load within the SLO: {load:.4g} {unit}",
        mode="lines+text",
        text=["", f"{load:.4g}"],
        textposition="top center",
        line={"color": PURPLE, "width": 2, "dash": "dash"},
        hoverinfo="name",
    )


def _verdict(limited: list[float], unit: str, health: ClientHealth | None) -> ClientHealth | None:
    """`health`, with the loads that the client limited among its reasons."""
    if not limited:
        return health
    told = f"the client limited the load of {', '.join(f'{r:.4g}' for r in limited)} {unit}"
    before = () if health is None else health.reasons
    return ClientHealth(client_limited=True, reasons=(*before, told))
