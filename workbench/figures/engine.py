"""What one engine felt under the same load with different limits; pure: frames in, figures out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.figures.style import BLUE, GREEN, ORANGE, PURPLE, styled, titled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_COLOURS = (ORANGE, BLUE, GREEN, PURPLE)
_ROWS = {
    "kv_cache_usage": "KV cache in use",
    "preemptions": "preemptions so far",
    "running_requests": "in the batch",
}


def engine_pressure(sides: Mapping[str, pd.DataFrame]) -> go.Figure:
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


def pressure_row(samples: pd.DataFrame) -> dict[str, float | None]:
    """Peak KV cache (a share), peak batch, and preemptions of one side; None where unknown."""

    def peak(column: str) -> float | None:
        values = samples[column].astype("float64").dropna()
        return None if values.empty else float(values.max())

    counted = samples["preemptions"].astype("float64").dropna()
    grown = None if counted.empty else float(counted.max() - counted.min())
    return {
        "peak_kv_cache": peak("kv_cache_usage"),
        "peak_batch": peak("running_requests"),
        "preemptions": grown,
    }
