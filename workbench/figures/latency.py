"""Latency distributions and throughput over time, from `Run.requests_frame()`.

The number of traces and points is bounded, however many requests there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    TIME_TITLE,
    VERMILLION,
    health_of,
    stacked,
    styled,
    titled,
)
from workbench.quantities import SHARE_TICKS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from workbench.metrics.health import ClientHealth

_MAX_POINTS, BINS = 500, 100


def latency_distributions(
    requests: pd.DataFrame, *, health: ClientHealth | None = None
) -> go.Figure:
    """Draw the share of values at or below each latency, for TTFT and ITL, with p50 and p99.

    Only completed requests count. The axis is logarithmic if the tail is long.

    Args:
        requests: `Run.requests_frame()`.
        health: The client's health; by default the one that `requests` carries.
    """
    from plotly.subplots import make_subplots

    done = requests[requests.status == "ok"]
    ttft = done.ttft_ms.dropna().to_numpy(float)
    gaps = [np.diff(np.asarray(times, float)) for times in done.token_times_s]
    itl = np.concatenate([np.empty(0), *gaps]) * 1e3
    figure = styled(make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05), 380)
    for column, (name, values, colour) in enumerate([("TTFT", ttft, BLUE), ("ITL", itl, GREEN)], 1):
        _ecdf(figure, column, name, values, colour)
    figure.update_yaxes(
        title_text="Share at or below", tickformat=SHARE_TICKS, range=[0, 1.02], col=1
    )
    return titled(figure, "Latency distributions", health or health_of(requests))


def throughput_over_time(
    requests: pd.DataFrame, *, bin_s: float | None = None, health: ClientHealth | None = None
) -> go.Figure:
    """Draw output tokens/s, and requests in progress below, on one time axis.

    A chunk with several tokens counts as several, by the server's own count.

    Args:
        requests: `Run.requests_frame()`.
        bin_s: The width of a bin in seconds; by default a round number that gives at most 100 bins.
        health: The client's health; by default the one that `requests` carries.
    """
    figure = stacked([0.55, 0.45], height=520)
    _token_bars(figure, requests, bin_s)
    _in_progress(figure, requests)
    figure.update_layout(bargap=0)
    figure.update_yaxes(title_text="Output tokens/s", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="Requests in progress", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title_text=TIME_TITLE, row=2, col=1)
    return titled(figure, "Throughput", health or health_of(requests))


def _ecdf(
    figure: go.Figure, column: int, name: str, values: NDArray[np.float64], colour: str
) -> None:
    import plotly.graph_objects as go

    figure.update_xaxes(title_text=f"{name} (ms)", row=1, col=column)
    if not len(values):
        return
    shares = np.linspace(0, 1, min(_MAX_POINTS, len(values)))
    points = np.quantile(values, shares)
    long_tail = points[-1] > 30 * max(float(np.median(values)), 0.1)
    if long_tail:
        points = np.maximum(points, 0.1)
        figure.update_xaxes(type="log", row=1, col=column)
    else:
        figure.update_xaxes(rangemode="tozero", row=1, col=column)
    line = go.Scatter(
        x=points.round(3),
        y=shares.round(4),
        name=f"{name} of {len(values):,}",
        mode="lines",
        line={"color": colour, "width": 2},
        hovertemplate=f"%{{y:.1%}} of {name} at or below %{{x:.1f}} ms<extra></extra>",
    )
    figure.add_trace(line, row=1, col=column)
    figure.add_trace(_percentile_marks(values, colour), row=1, col=column)


def _percentile_marks(values: NDArray[np.float64], colour: str) -> go.Scatter:
    import plotly.graph_objects as go

    marks = np.percentile(values, [50, 99])
    return go.Scatter(
        x=marks.round(3),
        y=[0.5, 0.99],
        mode="markers+text",
        text=[f"p{p} {mark:,.1f} ms" for p, mark in zip((50, 99), marks, strict=True)],
        textposition=["middle right", "bottom left"],
        marker={"color": colour, "size": 9, "symbol": "diamond"},
        showlegend=False,
        hoverinfo="skip",
    )


def _token_bars(figure: go.Figure, requests: pd.DataFrame, bin_s: float | None) -> None:
    import plotly.graph_objects as go

    times, tokens = token_arrivals(requests)
    if not len(times):
        return
    width = bin_s or round_up((times.max() - times.min()) / BINS)
    start = np.floor(times.min() / width) * width
    edges = start + width * np.arange(int((times.max() - start) / width) + 2)
    rate = np.histogram(times, edges, weights=tokens)[0] / width
    bars = go.Bar(
        x=(edges[:-1] + width / 2).round(6),
        y=rate.round(3),
        name=f"Output tokens/s, over {width:g} s",
        marker={"color": BLUE, "line": {"width": 0}},
        hovertemplate="%{y:,.0f} tokens/s at %{x:.1f} s<extra></extra>",
    )
    figure.add_trace(bars, row=1, col=1)


def token_arrivals(requests: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the time of each chunk in seconds, and how many tokens it brought."""
    chunks = [np.asarray(times, float) for times in requests.token_times_s]
    lengths = np.array([len(times) for times in chunks], int)
    counted = requests.output_tokens.to_numpy(float)
    tokens = np.where(np.isnan(counted), lengths, counted)
    per_chunk = np.repeat(tokens / np.maximum(lengths, 1), lengths)
    return np.concatenate([np.empty(0), *chunks]), per_chunk


def _in_progress(figure: go.Figure, requests: pd.DataFrame) -> None:
    import plotly.graph_objects as go

    sent, end = requests.sent_s.dropna().to_numpy(), requests.end_s.dropna().to_numpy()
    times = np.concatenate([sent, end])
    order = np.argsort(times, kind="stable")
    level = np.cumsum(np.concatenate([np.ones(len(sent)), -np.ones(len(end))])[order])
    count = min(len(times), 4 * _MAX_POINTS)
    keep = np.unique(np.linspace(0, len(times) - 1, count).astype(int))
    steps = go.Scatter(
        x=times[order][keep].round(6),
        y=level[keep],
        name="Requests in progress",
        mode="lines",
        line={"shape": "hv", "color": ORANGE, "width": 2},
        hovertemplate="%{y} in progress at %{x:.1f} s<extra></extra>",
    )
    figure.add_trace(steps, row=2, col=1)
    failed = requests[requests.status != "ok"].dropna(subset=["end_s"])
    if len(failed):
        figure.add_trace(failure_marks(failed), row=2, col=1)


def failure_marks(failed: pd.DataFrame) -> go.Scatter:
    """Return a cross at the end of each request, of at most `_MAX_POINTS` evenly chosen ones."""
    import plotly.graph_objects as go

    ends_s = failed.end_s.iloc[:: -(-len(failed) // _MAX_POINTS)]
    return go.Scatter(
        x=ends_s.round(6),
        y=np.zeros(len(ends_s)),
        name="Failed, shed or cancelled",
        mode="markers",
        marker={"symbol": "x", "color": VERMILLION, "size": 8},
        hovertemplate="Failed at %{x:.1f} s<extra></extra>",
    )


def round_up(width: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten, at least 0.1."""
    if width <= 0.1:
        return 0.1
    power = 10.0 ** np.floor(np.log10(width))
    return float(next(power * m for m in (1, 2, 5, 10) if power * m >= width * 0.999))
