"""Figures of parallel layouts and what fits on which hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.sizing.layouts import Plan
from serving.sizing.memory import GIB
from workbench.analysis.layouts import LayoutPlans
from workbench.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    stacked,
    styled,
    titled,
)
from workbench.metrics.health import ClientHealth

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def fit_figure(found: LayoutPlans) -> go.Figure:
    """One GPU's memory under each layout: weights, activations, CUDA, and what is left for KV.

    The recommended layout is marked; the dashed line is what vLLM may use of a GPU.
    """
    import plotly.graph_objects as go

    names = [f"{_marked(found, plan)}{plan.layout} × {plan.replicas}" for plan in found.plans]
    parts = {
        "weights": ([plan.memory.weights for plan in found.plans], BLUE),
        "activations (estimate)": ([plan.memory.activations for plan in found.plans], ORANGE),
        "CUDA (allowance)": ([plan.memory.overhead for plan in found.plans], GREY),
        "KV cache": ([max(0.0, plan.memory.cache) for plan in found.plans], GREEN),
    }
    figure = go.Figure()
    for name, (values, colour) in parts.items():
        gib = [value / GIB for value in values]
        figure.add_bar(x=gib, y=names, name=name, orientation="h", marker_color=colour)
    figure.add_vline(
        x=found.plans[0].memory.budget / GIB if found.plans else 0,
        line={"color": VERMILLION, "dash": "dash"},
        annotation_text="what vLLM may use",
    )
    for name, plan in zip(names, found.plans, strict=True):
        fits = plan.problem is None
        text = f"{plan.sequences:,} sequences" if fits else "does not fit"
        end = sum(max(0.0, values[names.index(name)]) for values, _ in parts.values()) / GIB
        figure.add_annotation(
            x=end, y=name, text=text, showarrow=False, xanchor="left", font_color=PURPLE
        )
    styled(figure, 180 + 34 * len(names)).update_layout(barmode="stack")
    figure.update_yaxes(autorange="reversed", title_text="layout × replicas")
    figure.update_xaxes(title_text="GiB on the fullest GPU")
    return titled(figure, f"What fits on {found.gpus}")


def _marked(found: LayoutPlans, plan: Plan) -> str:
    return "▶ " if plan == found.advice.plan else ""


def layouts_figure(measured: pd.DataFrame) -> go.Figure:
    """Layouts measured: output tokens/s above, and the mean time per output token below.

    `measured` has `layout`, `concurrency`, `output_throughput` and `mean_tpot_ms`, a row a load.
    """
    figure = stacked([0.5, 0.5], height=460)
    colours = (BLUE, ORANGE, GREEN, PURPLE)
    for number, (concurrency, rows) in enumerate(measured.groupby("concurrency", sort=True)):
        for row, column in enumerate(("output_throughput", "mean_tpot_ms"), 1):
            figure.add_bar(
                x=rows.layout,
                y=rows[column],
                name=f"{concurrency} at a time",
                legendgroup=str(concurrency),
                showlegend=row == 1,
                marker_color=colours[number % len(colours)],
                row=row,
                col=1,
            )
    figure.update_yaxes(title_text="output tokens/s", row=1, col=1)
    figure.update_yaxes(title_text="mean TPOT (ms)", row=2, col=1)
    health = ClientHealth(client_limited=bool(measured.client_limited.any()))
    return titled(figure, "The same workers, laid out differently", health)
