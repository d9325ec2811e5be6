"""What one engine felt under the same load with different limits; pure: frames in, figures out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.analysis.kv_cache import KvCacheWaste
from workbench.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, styled, titled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_COLOURS = (ORANGE, BLUE, GREEN, PURPLE)
_ROWS = {
    "kv_cache_usage": "KV cache in use",
    "preemptions": "preemptions so far",
    "running_requests": "in the batch",
}


def engine_pressure_figure(sides: Mapping[str, pd.DataFrame]) -> go.Figure:
    """KV cache, preemptions and batch of each side over its own run's time.

    A side is the `replica` samples of a run (`Run.samples("replica")`). Preemptions are counted
    from the side's first sample.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=len(_ROWS), shared_xaxes=True, vertical_spacing=0.06)
    for (name, samples), colour in zip(sides.items(), _COLOURS, strict=False):
        for row, column in enumerate(_ROWS, 1):
            values = samples[column].astype("float64")
            if column == "preemptions":
                values = values - values.min()
            figure.add_scatter(
                x=samples["time_s"],
                y=values,
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                mode="lines",
                line={"color": colour, "width": 2},
                row=row,
                col=1,
            )
    for row, title in enumerate(_ROWS.values(), 1):
        figure.update_yaxes(title_text=title, rangemode="tozero", row=row, col=1)
    figure.update_yaxes(tickformat=".0%", row=1, col=1)
    figure.update_xaxes(title_text="seconds since the load began", row=len(_ROWS), col=1)
    return titled(styled(figure, 560), "What the engine felt")


def waste_figure(found: list[KvCacheWaste]) -> go.Figure:
    """The share of held memory that is empty, a bar for each way of giving it out."""
    import plotly.graph_objects as go

    shares = [one.share for one in found]
    bars = go.Bar(
        x=shares,
        y=[one.way for one in found],
        orientation="h",
        marker={"color": [VERMILLION, ORANGE, GREEN][: len(found)]},
        text=[f"{share:.1%}" for share in shares],
        textposition="auto",
        hovertemplate="%{y}: %{text} of what is held is empty<extra></extra>",
    )
    figure = styled(go.Figure(bars), 260)
    figure.update_xaxes(tickformat=".0%", range=[0, 1], title_text="held and empty")
    figure.update_yaxes(autorange="reversed")
    return titled(figure, "Waste of the KV cache, from the same requests")


def kv_cache_figure(frame: pd.DataFrame, reserve: int) -> go.Figure:
    """Slots over time: reported by the engine, explained by the requests, and if `reserve` each."""
    import plotly.graph_objects as go

    figure = styled(go.Figure(), 340)
    lines = [
        ("contiguous, if reserved", frame.requests * reserve, GREY, "dot"),
        ("held by blocks, from the requests", frame.slots, GREEN, "solid"),
        ("tokens of the requests", frame.tokens, BLUE, "solid"),
        ("reported by the engine", frame.reported, ORANGE, "dash"),
    ]
    for name, values, colour, dash in lines:
        line = {"color": colour, "dash": dash, "width": 2}
        figure.add_trace(
            go.Scatter(x=frame.time_s, y=values, name=name, line=line, mode="lines+markers")
        )
    figure.update_xaxes(title_text="time since the start of the load (s)")
    figure.update_yaxes(title_text="slots of the KV cache", rangemode="tozero")
    return titled(figure, "The engine's own account")
