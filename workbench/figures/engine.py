"""An engine over time: KV cache, preemptions and batch; and the waste of the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.analysis.kv_cache import KvCacheWaste
from workbench.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, styled, titled
from workbench.quantities import SHARE_TICKS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_COLOURS = (ORANGE, BLUE, GREEN, PURPLE)
_ROWS = {
    "kv_cache_usage": "KV cache in use",
    "preemptions": "Preemptions so far",
    "running_requests": "Requests in the batch",
}


def engine_pressure_figure(sides: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Draw KV cache, preemptions and batch size of several runs over each run's own time.

    Args:
        sides: `Run.samples_frame("replica")` by the name of the side. Preemptions are counted from
            its first sample.
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
    figure.update_yaxes(tickformat=SHARE_TICKS, row=1, col=1)
    figure.update_xaxes(title_text="Time since the start of the load (s)", row=len(_ROWS), col=1)
    return titled(styled(figure, 560), "Pressure on the engine")


def waste_figure(wastes: list[KvCacheWaste]) -> go.Figure:
    """Draw the share of allocated memory that is empty, a bar per kind of allocation."""
    import plotly.graph_objects as go

    shares = [waste.share for waste in wastes]
    bars = go.Bar(
        x=shares,
        y=[waste.allocation for waste in wastes],
        orientation="h",
        marker={"color": [VERMILLION, ORANGE, GREEN][: len(wastes)]},
        text=[f"{share:.1%}" for share in shares],
        textposition="auto",
        hovertemplate="%{y}: %{text} of the allocated memory is empty<extra></extra>",
    )
    figure = styled(go.Figure(bars), 260)
    figure.update_xaxes(tickformat=SHARE_TICKS, range=[0, 1], title_text="Allocated but empty")
    figure.update_yaxes(autorange="reversed")
    return titled(figure, "Waste of the KV cache, for the same requests")


def kv_cache_figure(frame: pd.DataFrame, reserve: int) -> go.Figure:
    """Draw the slots of the KV cache in use over time.

    Args:
        frame: The engine's report and what the requests explain, as
            `workbench.analysis.kv_cache.kv_cache_frame` returns it.
        reserve: The slots that each request would hold if they were reserved in advance.
    """
    import plotly.graph_objects as go

    figure = styled(go.Figure(), 340)
    lines = [
        ("Contiguous, if reserved", frame.requests * reserve, GREY, "dot"),
        ("Blocks held, from the requests", frame.slots, GREEN, "solid"),
        ("Tokens of the requests", frame.tokens, BLUE, "solid"),
        ("Reported by the engine", frame.reported, ORANGE, "dash"),
    ]
    for name, values, colour, dash in lines:
        line = {"color": colour, "dash": dash, "width": 2}
        figure.add_trace(
            go.Scatter(x=frame.time_s, y=values, name=name, line=line, mode="lines+markers")
        )
    figure.update_xaxes(title_text="Time since the start of the load (s)")
    figure.update_yaxes(title_text="Slots of the KV cache", rangemode="tozero")
    return titled(figure, "KV cache as the engine reports it")
