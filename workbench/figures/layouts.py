"""Parallel layouts: what fits on which hardware, and what was measured."""

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
    health_of,
    stacked,
    styled,
    titled,
)
from workbench.metrics.health import ClientHealth

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def layout_memory_figure(plans: LayoutPlans) -> go.Figure:
    """Draw one GPU's memory under each layout: weights, activations, CUDA, and the KV cache.

    The recommended layout is marked. The dashed line is the memory that vLLM may use.
    """
    import plotly.graph_objects as go

    names = [f"{_marker(plans, plan)}{plan.layout} × {plan.replicas}" for plan in plans.plans]
    parts = {
        "Weights": ([plan.memory.weights for plan in plans.plans], BLUE),
        "Activations (estimate)": ([plan.memory.activations for plan in plans.plans], ORANGE),
        "CUDA (allowance)": ([plan.memory.overhead for plan in plans.plans], GREY),
        "KV cache": ([max(0.0, plan.memory.cache) for plan in plans.plans], GREEN),
    }
    figure = go.Figure()
    for name, (values, colour) in parts.items():
        gib = [value / GIB for value in values]
        figure.add_bar(x=gib, y=names, name=name, orientation="h", marker_color=colour)
    figure.add_vline(
        x=plans.plans[0].memory.budget / GIB if plans.plans else 0,
        line={"color": VERMILLION, "dash": "dash"},
        annotation_text="Memory for vLLM",
    )
    totals = [sum(max(0.0, value) for value in bars) for bars in zip(*_values(parts), strict=True)]
    for name, plan, total in zip(names, plans.plans, totals, strict=True):
        text = f"{plan.sequences:,} sequences" if plan.problem is None else "does not fit"
        figure.add_annotation(
            x=total / GIB, y=name, text=text, showarrow=False, xanchor="left", font_color=PURPLE
        )
    styled(figure, 180 + 34 * len(names)).update_layout(barmode="stack")
    figure.update_yaxes(autorange="reversed", title_text="Layout × replicas")
    figure.update_xaxes(title_text="Memory of the fullest GPU (GiB)")
    return titled(figure, f"What fits on {plans.gpus}")


def _values(parts: dict[str, tuple[list[float], str]]) -> list[list[float]]:
    return [values for values, _ in parts.values()]


def _marker(plans: LayoutPlans, plan: Plan) -> str:
    return "▶ " if plan == plans.advice.plan else ""


def layouts_figure(measured: pd.DataFrame) -> go.Figure:
    """Draw measured layouts: output tokens/s above, and the mean time per output token below.

    Args:
        measured: A row per load, with `layout`, `concurrency`, `output_throughput` (tokens/s),
            `mean_tpot_ms` and `client_limited`.
    """
    figure = stacked([0.5, 0.5], height=460)
    colours = (BLUE, ORANGE, GREEN, PURPLE)
    for number, (concurrency, rows) in enumerate(measured.groupby("concurrency", sort=True)):
        for row, column in enumerate(("output_throughput", "mean_tpot_ms"), 1):
            figure.add_bar(
                x=rows.layout,
                y=rows[column],
                name=f"{concurrency} concurrent requests",
                legendgroup=str(concurrency),
                showlegend=row == 1,
                marker_color=colours[number % len(colours)],
                row=row,
                col=1,
            )
    figure.update_yaxes(title_text="Output tokens/s", row=1, col=1)
    figure.update_yaxes(title_text="Mean TPOT (ms)", row=2, col=1)
    health = ClientHealth(client_limited=bool(measured.client_limited.any()))
    return titled(figure, "The same workers in different layouts", health)


def disaggregation_figure(frame: pd.DataFrame) -> go.Figure:
    """Draw TTFT above and TPOT below against the rate, for disaggregated and colocated replicas.

    Solid lines are medians, dotted lines are 95th percentiles.

    Args:
        frame: What `workbench.analysis.disaggregation_frame` returned.
    """
    figure = stacked([0.5, 0.5], height=480)
    for row, latency in enumerate(("TTFT", "TPOT"), 1):
        for variant, colour in (("split", BLUE), ("colocated", ORANGE)):
            for percentile, dash in (("p50", "solid"), ("p95", "dot")):
                points = frame[frame.figure == f"{percentile}_{latency.lower()}_ms"]
                figure.add_scatter(
                    x=points.rate,
                    y=points[variant],
                    name=f"{percentile}, {variant}",
                    legendgroup=f"{percentile}, {variant}",
                    showlegend=row == 1,
                    mode="lines+markers",
                    line={"color": colour, "dash": dash},
                    hovertemplate=f"{percentile} {latency} %{{y:,.4g}} ms at %{{x:g}} requests/s",
                    row=row,
                    col=1,
                )
        figure.update_yaxes(title_text=f"{latency} (ms)", rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title_text="Offered load (requests/s)", row=2, col=1)
    title = "Prefill and decode split, and colocated on as many replicas"
    return titled(figure, title, health_of(frame))
