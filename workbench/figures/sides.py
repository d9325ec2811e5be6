"""Throughput and failures of several runs, a panel each, with the same bins and scales."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from workbench.figures.latency import BINS, failure_marks, round_up, token_arrivals
from workbench.figures.style import BLUE, GREEN, ORANGE, PURPLE, health_of, titled
from workbench.figures.style import stacked as stacked_rows
from workbench.metrics.health import ClientHealth

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_COLOURS = (BLUE, GREEN, ORANGE, PURPLE)


def throughput_of_sides(sides: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draw output tokens/s of several runs below each other, on one time axis and one scale.

    Crosses mark requests that failed, were shed or were cancelled. The legend counts both.

    Args:
        sides: `Run.requests_frame()` by the name of the side.
    """
    figure = stacked_rows([1.0] * len(sides), height=160 + 180 * len(sides))
    arrivals = {name: token_arrivals(requests) for name, requests in sides.items()}
    edges = _common_edges([times for times, _ in arrivals.values()])
    highest = 0.0
    for row, (name, requests) in enumerate(sides.items(), 1):
        times, tokens = arrivals[name]
        rate = np.histogram(times, edges, weights=tokens)[0] / (edges[1] - edges[0])
        highest = max(highest, float(rate.max(initial=0.0)))
        _side(figure, row, html.escape(name, quote=False), requests, edges, rate)
    figure.update_layout(bargap=0)
    figure.update_yaxes(range=[0, 1.05 * highest or 1.0])
    title = "Time since the start of each load (s)"
    figure.update_xaxes(title_text=title, row=len(sides), col=1)
    healths = [health for requests in sides.values() if (health := health_of(requests))]
    return titled(figure, "Throughput side by side", ClientHealth.combine(healths))


def _common_edges(times: list[np.ndarray]) -> np.ndarray:
    end_s = max((float(one.max()) for one in times if len(one)), default=1.0)
    width_s = round_up(end_s / BINS)
    return width_s * np.arange(int(end_s / width_s) + 2)


def _side(
    figure: go.Figure,
    row: int,
    name: str,
    requests: pd.DataFrame,
    edges: np.ndarray,
    rate: np.ndarray,
) -> None:
    import plotly.graph_objects as go

    completed = int((requests.status == "ok").sum())
    bars = go.Bar(
        x=((edges[:-1] + edges[1:]) / 2).round(6),
        y=rate.round(3),
        name=f"{name}: {completed:,} completed",
        marker={"color": _COLOURS[(row - 1) % len(_COLOURS)], "line": {"width": 0}},
        hovertemplate="%{y:,.0f} tokens/s at %{x:.1f} s<extra></extra>",
    )
    figure.add_trace(bars, row=row, col=1)
    figure.update_yaxes(title_text=f"{name}<br>Output tokens/s", row=row, col=1)
    failed = requests[requests.status != "ok"].dropna(subset=["end_s"])
    if len(failed):
        marks = failure_marks(failed)
        marks.name = f"{name}: {len(failed):,} failed, shed or cancelled"
        figure.add_trace(marks, row=row, col=1)
