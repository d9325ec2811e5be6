"""The probes of a search, drawn: how late they were, and what share of each met the SLO."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.figures.curve import HOLLOW, LOAD, latency_axis, with_limited
from workbench.figures.style import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILLION,
    metric_label,
    stacked,
    titled,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.experiments.search_result import ProbeResult, SearchResult

_SYMBOLS = {
    True: {"bracket": "circle", "bisect": "diamond", "confirm": "square"},
    False: {"bracket": "x", "bisect": "cross", "confirm": "triangle-down"},
}


def search_figure(result: SearchResult, latency: str = "p95_ttft_ms") -> go.Figure:
    """Every probe by its load, and the answer as a line: its `latency`, and below what decided.

    That is the share of its requests within the SLO. Colour and symbol say whether it was met, the
    symbol in which phase; one that was replaced is pale. A probe in which nothing has that latency
    is drawn below only, and the legend counts it. Raises UnknownMetricError.
    """
    title = metric_label(latency)
    figure = stacked([0.62, 0.38], 560)
    for met, phases in _SYMBOLS.items():
        for phase, symbol in phases.items():
            chosen = [
                (n, p) for n, p in enumerate(result.probes, 1) if (p.met, p.phase) == (met, phase)
            ]
            if chosen:
                _probes(figure, chosen, symbol, latency, result.unit)
    limited = [p for p in result.probes if p.summary.client_health.client_limited]
    if limited:
        again = any(p.replaced for p in limited)
        figure.add_trace(_key(f"{HOLLOW}, pale: and was repeated" if again else HOLLOW))
    found = [p.summary.figure(latency) for p in result.probes]
    heights = np.array([value for value in found if value is not None], float)
    answer = "none, missed at the lowest"
    if result.highest is not None:
        answer = f"{result.highest:.4g} {result.unit}{'' if result.bounded else ' or more'}"
        ends = [heights.min(), heights.max()] if len(heights) else [0.0, 1.0]
        figure.add_trace(_answer(result.highest, result.unit, ends), row=1, col=1)
        line = _answer(result.highest, result.unit, [0.0, 1.0])
        figure.add_trace(line.update(text=None, showlegend=False), row=2, col=1)
    latency_axis(figure, heights, title)
    _shares_axis(figure, result)
    loads = [p.rate for p in result.probes]
    figure.update_xaxes(type="log", tickvals=ticks(min(loads), max(loads)))
    figure.update_xaxes(title_text=f"{LOAD} ({result.unit})", row=2)
    marked = sorted({p.rate for p in limited if not p.replaced})
    verdict = with_limited(marked, result.unit, None)
    return titled(figure, f"Highest load within the SLO: {answer}", verdict)


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten around `low` to `high`: plotly's own are bare digits."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**ten for ten in tens for step in (1, 2, 5)]


def _shares_axis(figure: go.Figure, result: SearchResult) -> None:
    asked = result.probes[0].summary.slo
    figure.update_yaxes(
        title_text="within the SLO", tickformat=".0%", range=[-0.06, 1.1], row=2, col=1
    )
    if asked is not None:
        figure.add_hline(
            y=asked.target,
            line={"color": GREY, "width": 1, "dash": "dot"},
            annotation={"text": f"{100 * asked.target:.4g}% wanted", "yanchor": "top"},
            annotation_position="bottom left",
            row=2,
            col=1,
        )


def _probes(
    figure: go.Figure, chosen: list[tuple[int, ProbeResult]], symbol: str, latency: str, unit: str
) -> None:
    """The probes of one verdict and phase, in both rows."""
    import plotly.graph_objects as go

    probes = [p for _, p in chosen]
    heights = [p.summary.figure(latency) for p in probes]
    absent = f", {heights.count(None)} not drawn: no latency" if None in heights else ""
    limited = [p.summary.client_health.client_limited for p in probes]
    verdict = "met" if probes[0].met else "missed"
    said = "probe %{customdata[0]}: %{x:.4g} " + unit
    both: dict[str, Any] = {
        "x": [p.rate for p in probes],
        "name": f"{verdict}, {probes[0].phase} ({len(probes)}{absent})",
        "mode": "markers",
        "marker": {
            "color": GREEN if probes[0].met else VERMILLION,
            "size": 11,
            "symbol": [f"{symbol}-open" if hollow else symbol for hollow in limited],
            "opacity": [0.4 if p.replaced else 1 for p in probes],
        },
        "customdata": [(n, p.summary.slo_attainment) for n, p in chosen],
        "hovertemplate": f"{said}, %{{y:,.1f}} ms<br>"
        "%{customdata[1]:.1%} within the SLO<extra>%{fullData.name}</extra>",
    }
    figure.add_trace(go.Scatter(**both, y=heights), row=1, col=1)
    shares = both | {"y": [p.summary.slo_attainment for p in probes], "showlegend": False}
    shares["hovertemplate"] = f"{said}, %{{y:.1%}} within the SLO<extra>%{{fullData.name}}</extra>"
    figure.add_trace(go.Scatter(**shares), row=2, col=1)


def _key(name: str) -> go.Scatter:
    """An entry of the legend alone."""
    import plotly.graph_objects as go

    marker = {"color": BLUE, "size": 11, "symbol": "circle-open"}
    return go.Scatter(x=[None], y=[None], name=name, mode="markers", marker=marker)


def _answer(load: float, unit: str, ends: list[float]) -> go.Scatter:
    """A trace, as plotly places the text of a line shape wrongly on a logarithmic axis."""
    import plotly.graph_objects as go

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
