"""Every request of a run over time, with the replicas below on the same axis."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from workbench.figures.replica_traces import replica_traces
from workbench.figures.style import (
    BLUE,
    ORANGE,
    TIME_TITLE,
    VERMILLION,
    health_of,
    stacked,
    titled,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.metrics.health import ClientHealth

_MAX_BARS = 1000
_HOVER = (
    "Request %{customdata[0]}: %{customdata[1]}<br>Sent at %{customdata[2]} s<br>"
    "TTFT %{customdata[3]} ms, E2EL %{customdata[4]} ms<br>%{customdata[5]} output tokens"
    "<br>%{customdata[6]}<extra>%{fullData.name}</extra>"
)


def request_timeline(
    requests: pd.DataFrame,
    telemetry: pd.DataFrame | None = None,
    *,
    health: ClientHealth | None = None,
    deployment: str | None = None,
) -> go.Figure:
    """Draw every request as a bar over time: waiting, then streaming; failures are crossed.

    Beyond 1,000 requests, evenly chosen ones are shown, and the title says so.

    Args:
        requests: `Run.requests_frame()`.
        telemetry: `Run.samples_frame("deployment")`, for a second row with the replicas: running
            and starting stacked, and the autoscaler's target as a line.
        health: The client's health; by default the one that `requests` carries.
        deployment: The deployment in the second row; by default the sum of all.
    """
    replicas = telemetry is not None and not telemetry.empty
    figure = stacked([0.72, 0.28] if replicas else [1.0], height=620 if replicas else 460)
    ordered = requests.sort_values(["sent_s", "end_s"], kind="stable").reset_index(drop=True)
    step = -(-len(ordered) // _MAX_BARS) or 1
    shown = ordered.iloc[::step]
    _request_bars(figure, shown)
    if telemetry is not None and replicas:
        _replica_areas(figure, telemetry, deployment)
    sampled = f" (1 in {step} of {len(ordered):,})" if step > 1 else ""
    figure.update_traces(width=step * (0.85 if len(shown) < 200 else 1), selector={"type": "bar"})
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(title_text="Request, by time sent", autorange="reversed", row=1, col=1)
    figure.update_xaxes(title_text=TIME_TITLE, row=1 + replicas, col=1)
    return titled(figure, f"Requests{sampled}", health or health_of(requests))


def _request_bars(figure: go.Figure, shown: pd.DataFrame) -> None:
    import plotly.graph_objects as go

    ok = shown.status == "ok"
    first = shown.first_token_s.fillna(shown.end_s)
    phases = [
        ("Waiting for the first token", ok, shown.sent_s, first, ORANGE, ""),
        ("Streaming", ok & shown.first_token_s.notna(), first, shown.end_s, BLUE, ""),
        ("Failed, shed or cancelled", ~ok, shown.sent_s, shown.end_s, VERMILLION, "/"),
    ]
    for name, mask, start, end, colour, pattern in phases:
        if mask.any():
            bars = go.Bar(
                orientation="h",
                y=shown.index[mask],
                base=start[mask].round(6),
                x=(end - start)[mask].round(6),
                name=name,
                marker={"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern}},
                customdata=_hover_data(shown[mask]),
                hovertemplate=_HOVER,
            )
            figure.add_trace(bars, row=1, col=1)
    if (~ok).any():
        figure.add_trace(_crosses(shown[~ok], 7 if len(shown) < 200 else 4), row=1, col=1)


def _crosses(failed: pd.DataFrame, size: int) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=failed.end_s.round(6),
        y=failed.index,
        mode="markers",
        marker={"symbol": "x", "color": VERMILLION, "size": size},
        showlegend=False,
        hoverinfo="skip",
    )


def _hover_data(rows: pd.DataFrame) -> list[list[str]]:
    def number(value: Any, form: str = "{:,.0f}") -> str:
        return "-" if value is None or value != value else form.format(value)

    def text(*values: Any) -> str:
        return html.escape(" ".join(v for v in values if isinstance(v, str)), quote=False)

    return [
        [
            text(row["request_id"])[:12],
            row["status"],
            number(row["sent_s"], "{:.3f}"),
            number(row["ttft_ms"]),
            number(row["e2el_ms"]),
            number(row["output_tokens"]),
            text(row["model"], row["tenant"], row["error"]),
        ]
        for row in rows.to_dict("records")
    ]


def _replica_areas(figure: go.Figure, telemetry: pd.DataFrame, deployment: str | None) -> None:
    running, starting, _, target, *_ = replica_traces(telemetry, deployment=deployment)
    figure.add_traces([running, starting, target], rows=2, cols=1)
    figure.update_yaxes(title_text="Replicas", rangemode="tozero", dtick=1, row=2, col=1)
