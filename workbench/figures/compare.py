"""Saved runs side by side as figures, and as one page that needs no network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.analysis.compare import runs_table
from workbench.errors import UnknownMetricError
from workbench.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_METRICS, _POINTS = ("ttft_ms", "tpot_ms", "e2el_ms"), 500


def comparison_figure(frame: pd.DataFrame) -> go.Figure:
    """A forest plot of what `compare` gave: ratios with their intervals, around 1 on a log axis."""
    import plotly.graph_objects as go

    from workbench.figures.style import GREEN, GREY, VERMILLION, health_of, styled, titled

    shown = frame[frame.ratio.notna()]
    n = len(shown)
    figure = styled(go.Figure(), 200 + 36 * n)
    line = {"color": GREY, "dash": "dash"}
    figure.add_scatter(x=[1, 1], y=[-0.5, n - 0.5], mode="lines", line=line, name="no difference")
    places = dict(zip(shown.index, range(n), strict=True))
    for verdict, part in shown.groupby("verdict", sort=False):
        kind = str(verdict).split()[0]
        colour = {"better": GREEN, "worse": VERMILLION}.get(kind, GREY)
        symbol = {"better": "circle", "worse": "diamond"}.get(kind, "circle-open")
        figure.add_scatter(
            x=part.ratio,
            y=[places[name] for name in part.index],
            error_x={"array": part.high - part.ratio, "arrayminus": part.ratio - part.low},
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10},
            name=str(verdict),
            customdata=part[["baseline", "candidate", "low", "high", "unit"]].to_numpy(),
            hovertemplate="%{customdata[0]:.4g} → %{customdata[1]:.4g} %{customdata[4]}<br>ratio "
            "%{x:.3f} (%{customdata[2]:.3f} to %{customdata[3]:.3f})",
        )
    figure.update_xaxes(type="log", title_text="candidate / baseline")
    figure.update_yaxes(tickvals=list(range(n)), ticktext=list(shown.index), range=[n - 0.5, -0.5])
    return titled(figure, "Candidate over baseline", health_of(frame))


def latency_overlay(
    runs: Sequence[Run], metric: str = "ttft_ms", *, sides: Sequence[str] | None = None
) -> go.Figure:
    """The share of completed requests at or below each latency, a line a run, warm-up cut.

    `metric` is ttft_ms, tpot_ms or e2el_ms. Runs of one of the `sides` (a word for each run)
    share a colour. Raises UnknownMetricError for another metric.
    """
    import plotly.graph_objects as go

    from workbench.figures.style import (
        BLUE,
        GREEN,
        ORANGE,
        PURPLE,
        SKY,
        VERMILLION,
        health_of,
        styled,
        titled,
    )

    if metric not in _METRICS:
        raise UnknownMetricError(f"metric is {metric!r}: give one of {', '.join(_METRICS)}")
    colours = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)
    words = list(sides) if sides is not None else ["run"] * len(runs)
    groups = list(dict.fromkeys(words)) if sides is not None else []
    figure = styled(go.Figure(), 440)
    for i, (run, word) in enumerate(zip(runs, words, strict=True)):
        values, shares = _ecdf(run, metric)
        figure.add_scatter(
            x=values,
            y=shares,
            mode="lines",
            line={"color": colours[(groups.index(word) if groups else i) % len(colours)]},
            name=html.escape(f"{word} {run.run_id}", quote=False),
            hovertemplate="%{y:.1%} at most %{x:.1f} ms",
        )
    figure.update_xaxes(title_text=f"{metric.removesuffix('_ms').upper()} (ms)", rangemode="tozero")
    figure.update_yaxes(title_text="share at or below", tickformat=".0%", range=[0, 1.02])
    return titled(
        figure, f"{metric.removesuffix('_ms').upper()}, run by run", health_of(runs_table(runs))
    )


def _ecdf(run: Run, metric: str) -> tuple[Any, Any]:
    import numpy as np

    requests, summary = run.requests_frame(), run.summary()
    due = requests.scheduled_s.fillna(requests.sent_s)
    warmed = due >= due.min() + (summary.warmup_s if summary is not None else 0)
    values = requests[metric][warmed & (requests.status == "ok")].dropna().to_numpy(float)
    if not len(values):
        return [], []
    shares = np.linspace(0, 1, min(_POINTS, len(values)))
    return np.quantile(values, shares).round(3), shares.round(4)
