"""Saved runs side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.analysis.compare import runs_table
from workbench.analysis.tables import label_of, readable_comparison
from workbench.errors import UnknownMetricError
from workbench.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    health_of,
    styled,
    titled,
)
from workbench.metrics.registry import PER_REQUEST, metric_label
from workbench.quantities import SHARE_TICKS
from workbench.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

_METRICS, _MAX_POINTS = tuple(metric.key for metric in PER_REQUEST), 500
_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)
_HOVER = ["baseline", "candidate", "low", "high"]
_VERDICTS = {"better": (GREEN, "circle"), "worse": (VERMILLION, "diamond")}


def comparison_figure(frame: pd.DataFrame) -> go.Figure:
    """Draw the ratios of `compare_runs` with their intervals around 1, on a logarithmic axis.

    Args:
        frame: What `workbench.analysis.compare.compare_runs` returned.
    """
    import plotly.graph_objects as go

    shown = frame[frame.ratio.notna()]
    rows = {name: row for row, name in enumerate(shown.index)}
    figure = styled(go.Figure(), 200 + 36 * len(rows))
    line = {"color": GREY, "dash": "dash"}
    ends = [-0.5, len(rows) - 0.5]
    figure.add_scatter(x=[1, 1], y=ends, mode="lines", line=line, name="No difference")
    for verdict, part in shown.groupby("verdict", sort=False):
        colour, symbol = _VERDICTS.get(str(verdict).split()[0], (GREY, "circle-open"))
        figure.add_scatter(
            x=part.ratio,
            y=[rows[name] for name in part.index],
            error_x={"array": part.high - part.ratio, "arrayminus": part.ratio - part.low},
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10},
            name=str(verdict).capitalize(),
            customdata=readable_comparison(part)[_HOVER].to_numpy(),
            hovertemplate="%{customdata[0]} → %{customdata[1]}<br>Ratio "
            "%{x:.3f} (%{customdata[2]} to %{customdata[3]})",
        )
    figure.update_xaxes(type="log", title_text="Candidate / baseline")
    figure.update_yaxes(
        tickvals=list(rows.values()),
        ticktext=[label_of(str(name)) for name in rows],
        range=ends[::-1],
    )
    return titled(figure, "Candidate against baseline", health_of(frame))


def latency_overlay(
    runs: Sequence[Run], metric: str = "ttft_ms", *, sides: Sequence[str] | None = None
) -> go.Figure:
    """Draw the share of completed requests at or below each latency, a line per run.

    Requests of the warm-up do not count.

    Args:
        runs: The runs.
        metric: The key of a latency with a value per request, such as `ttft_ms`.
        sides: The side of each run; runs of one side share a colour.

    Raises:
        UnknownMetricError: For another metric.
    """
    import plotly.graph_objects as go

    if metric not in _METRICS:
        raise UnknownMetricError(f"metric must be one of {', '.join(_METRICS)}, got {metric!r}")
    names = list(sides) if sides is not None else ["run"] * len(runs)
    groups = list(dict.fromkeys(names)) if sides is not None else []
    label = metric_label(metric)
    figure = styled(go.Figure(), 440)
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        values, shares = _ecdf(run, metric)
        colour = groups.index(name) if groups else number
        figure.add_scatter(
            x=values,
            y=shares,
            mode="lines",
            line={"color": _COLOURS[colour % len(_COLOURS)]},
            name=html.escape(f"{name} {run.run_id}", quote=False),
            hovertemplate="%{y:.1%} at or below %{x:.1f} ms",
        )
    figure.update_xaxes(title_text=label, rangemode="tozero")
    figure.update_yaxes(title_text="Share at or below", tickformat=SHARE_TICKS, range=[0, 1.02])
    return titled(figure, f"{label.removesuffix(' (ms)')}, run by run", health_of(runs_table(runs)))


def _ecdf(run: Run, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    requests, summary = run.requests_frame(), run.summary()
    due = requests.scheduled_s.fillna(requests.sent_s)
    warmed = due >= due.min() + (summary.warmup_s if summary is not None else 0)
    values = requests[metric][warmed & (requests.status == "ok")].dropna().to_numpy(float)
    if not len(values):
        return values, values
    shares = np.linspace(0, 1, min(_MAX_POINTS, len(values)))
    return np.quantile(values, shares).round(3), shares.round(4)
