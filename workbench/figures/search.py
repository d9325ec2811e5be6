"""The probes of a search for the highest load: their latency, and how many met the SLO."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.figures.curve import HOLLOW, LOAD, latency_axis, with_limited_loads
from workbench.figures.style import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILLION,
    stacked,
    titled,
)
from workbench.metrics.registry import latency_label
from workbench.quantities import SHARE_TICKS

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.experiments.search_result import ProbeResult, SearchResult

_SYMBOLS = {
    True: {"bracket": "circle", "bisect": "diamond", "confirm": "square"},
    False: {"bracket": "x", "bisect": "cross", "confirm": "triangle-down"},
}


def search_figure(result: SearchResult, latency: str = "p95_ttft_ms") -> go.Figure:
    """Draw every probe by its load, with the highest load as a line.

    The upper row has the probe's latency, the lower row the share of its requests within the SLO,
    which decided. Colour and symbol show whether the SLO was met, the symbol also the phase. A
    probe that was repeated is pale. A probe without that latency is drawn in the lower row only,
    and the legend counts it.

    Raises:
        UnknownMetricError: If `latency` is not a metric in ms.
    """
    title = latency_label(latency)
    figure = stacked([0.62, 0.38], 560)
    for met, phases in _SYMBOLS.items():
        for phase, symbol in phases.items():
            chosen = [
                (number, probe)
                for number, probe in enumerate(result.probes, 1)
                if (probe.met, probe.phase) == (met, phase)
            ]
            if chosen:
                _add_probes(figure, chosen, symbol, latency, result.unit)
    limited = [probe for probe in result.probes if probe.summary.client_health.client_limited]
    if limited:
        repeated = any(probe.replaced for probe in limited)
        figure.add_trace(_legend_entry(f"{HOLLOW}; pale: repeated" if repeated else HOLLOW))
    known = [probe.summary.figure(latency) for probe in result.probes]
    heights = np.array([value for value in known if value is not None], float)
    _add_answer(figure, result, heights)
    latency_axis(figure, heights, title)
    _add_shares_axis(figure, result)
    loads = [probe.rate for probe in result.probes]
    figure.update_xaxes(type="log", tickvals=ticks(min(loads), max(loads)))
    figure.update_xaxes(title_text=f"{LOAD} ({result.unit})", row=2)
    doubtful = sorted({probe.rate for probe in limited if not probe.replaced})
    health = with_limited_loads(doubtful, result.unit, None)
    return titled(figure, f"Highest load within the SLO: {_answer(result)}", health)


def ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten around `low` to `high`.

    plotly's own ticks are single digits without their power of ten.
    """
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**ten for ten in tens for step in (1, 2, 5)]


def _answer(result: SearchResult) -> str:
    if result.highest is None:
        return "none, missed at the lowest"
    return f"{result.highest:.4g} {result.unit}{'' if result.bounded else ' or more'}"


def _add_answer(figure: go.Figure, result: SearchResult, heights: np.ndarray[Any, Any]) -> None:
    if result.highest is None:
        return
    ends = [heights.min(), heights.max()] if len(heights) else [0.0, 1.0]
    figure.add_trace(_answer_line(result.highest, result.unit, ends), row=1, col=1)
    line = _answer_line(result.highest, result.unit, [0.0, 1.0])
    figure.add_trace(line.update(text=None, showlegend=False), row=2, col=1)


def _answer_line(load: float, unit: str, ends: list[float]) -> go.Scatter:
    """A trace, since plotly misplaces the text of a line shape on a logarithmic axis."""
    import plotly.graph_objects as go

    return go.Scatter(
        x=[load, load],
        y=ends,
        name=f"Highest load within the SLO: {load:.4g} {unit}",
        mode="lines+text",
        text=["", f"{load:.4g}"],
        textposition="top center",
        line={"color": PURPLE, "width": 2, "dash": "dash"},
        hoverinfo="name",
    )


def _add_shares_axis(figure: go.Figure, result: SearchResult) -> None:
    slo = result.probes[0].summary.slo
    figure.update_yaxes(
        title_text="Within the SLO", tickformat=SHARE_TICKS, range=[-0.06, 1.1], row=2, col=1
    )
    if slo is not None:
        figure.add_hline(
            y=slo.target,
            line={"color": GREY, "width": 1, "dash": "dot"},
            annotation={"text": f"Target {100 * slo.target:.4g}%", "yanchor": "top"},
            annotation_position="bottom left",
            row=2,
            col=1,
        )


def _add_probes(
    figure: go.Figure, chosen: list[tuple[int, ProbeResult]], symbol: str, latency: str, unit: str
) -> None:
    """Add the probes of one verdict and phase to both rows."""
    import plotly.graph_objects as go

    probes = [probe for _, probe in chosen]
    heights = [probe.summary.figure(latency) for probe in probes]
    absent = f", {heights.count(None)} without latency" if None in heights else ""
    limited = [probe.summary.client_health.client_limited for probe in probes]
    verdict = "Met" if probes[0].met else "Missed"
    hover = "Probe %{customdata[0]}: %{x:.4g} " + unit
    both: dict[str, Any] = {
        "x": [probe.rate for probe in probes],
        "name": f"{verdict}, {probes[0].phase} ({len(probes)}{absent})",
        "mode": "markers",
        "marker": {
            "color": GREEN if probes[0].met else VERMILLION,
            "size": 11,
            "symbol": [f"{symbol}-open" if hollow else symbol for hollow in limited],
            "opacity": [0.4 if probe.replaced else 1 for probe in probes],
        },
        "customdata": [(number, probe.summary.slo_attainment) for number, probe in chosen],
        "hovertemplate": f"{hover}, %{{y:,.1f}} ms<br>"
        "%{customdata[1]:.1%} within the SLO<extra>%{fullData.name}</extra>",
    }
    figure.add_trace(go.Scatter(**both, y=heights), row=1, col=1)
    shares = both | {"y": [probe.summary.slo_attainment for probe in probes], "showlegend": False}
    shares["hovertemplate"] = f"{hover}, %{{y:.1%}} within the SLO<extra>%{{fullData.name}}</extra>"
    figure.add_trace(go.Scatter(**shares), row=2, col=1)


def _legend_entry(name: str) -> go.Scatter:
    import plotly.graph_objects as go

    marker = {"color": BLUE, "size": 11, "symbol": "circle-open"}
    return go.Scatter(x=[None], y=[None], name=name, mode="markers", marker=marker)
