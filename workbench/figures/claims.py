"""Claims: users per engine, fleets and their cost, and paired comparisons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    stacked,
    styled,
    titled,
)
from workbench.metrics.health import ClientHealth
from workbench.quantities import SHARE_TICKS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.claims.claim import Verdict
    from workbench.experiments.paired import PairedComparison
    from workbench.experiments.search_result import SearchResult

_STATES = (
    ("busy", GREEN, ""),
    ("idle", SKY, ""),
    ("starting", PURPLE, "/"),
    ("stopping", GREY, "x"),
    ("unknown", ORANGE, "."),
)
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


def users_figure(searches: dict[str, Sequence[SearchResult]]) -> go.Figure:
    """Draw the most users within the SLO by engine: a point per repeat, and a bar at the mean."""
    import plotly.graph_objects as go

    figure = styled(go.Figure(), 380)
    for (name, results), colour in zip(searches.items(), _COLOURS * 9, strict=False):
        highest = [result.highest or 0 for result in results]
        if not highest:
            continue
        mean = sum(highest) / len(highest)
        label = f"{name}<br>{mean:.3g} users on average"
        bar = go.Bar(
            x=[label],
            y=[mean],
            marker={"color": colour, "opacity": 0.55},
            hovertemplate=f"{name}: %{{y:.4g}} users<extra></extra>",
            showlegend=False,
        )
        symbols = ["circle-open" if result.client_limited else "circle" for result in results]
        points = go.Scatter(
            x=[label] * len(highest),
            y=highest,
            mode="markers",
            marker={"color": colour, "size": 10, "symbol": symbols, "line": {"width": 2}},
            hovertemplate="%{y} users in one repeat<extra></extra>",
            showlegend=False,
        )
        figure.add_traces([bar, points])
    figure.update_yaxes(title_text="Users within the SLO", rangemode="tozero")
    limited = any(result.client_limited for results in searches.values() for result in results)
    note = " (hollow: client limited)" if limited else ""
    return titled(figure, f"Users that each engine can serve{note}")


def fleets_figure(frame: pd.DataFrame) -> go.Figure:
    """Draw replica-seconds by state, and the share of requests within the SLO below, a bar per day.

    Args:
        frame: What `workbench.experiments.fleets.fleet_frame` returned.
    """
    import plotly.graph_objects as go

    figure = stacked([0.7, 0.3], height=520)
    if frame.empty:
        return titled(figure, "No fleet was measured")
    days = [f"{row.fleet}, day {row.day}" for row in frame.itertuples()]
    for state, colour, pattern in _STATES:
        bar = go.Bar(
            x=days,
            y=frame[f"{state}_s"],
            name=state.capitalize(),
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate=f"%{{y:.1f}} replica-seconds {state}<extra>%{{x}}</extra>",
        )
        figure.add_trace(bar, row=1, col=1)
    share = go.Bar(
        x=days,
        y=frame.slo_attainment,
        marker={"color": BLUE},
        text=[f"{share:.1%}" for share in frame.slo_attainment.fillna(0)],
        showlegend=False,
        hovertemplate="%{y:.2%} within the SLO<extra>%{x}</extra>",
    )
    figure.add_trace(share, row=2, col=1)
    figure.update_layout(barmode="stack")
    figure.update_yaxes(title_text="Replica-seconds", row=1, col=1)
    figure.update_yaxes(title_text="Within the SLO", tickformat=SHARE_TICKS, range=[0, 1.05], row=2)
    return titled(figure, "Replica-seconds and SLO attainment of each fleet")


def break_even_figure(
    fixed: Sequence[float], scaled: Sequence[float], goal: float, premium: float = 1.0
) -> go.Figure:
    """Draw $ per million tokens of both fleets over the price of an on-demand replica.

    The x axis is the price of an on-demand replica divided by that of a committed one. The line of
    the autoscaled fleet rises with it, and breaks even where it meets that of the fixed fleet.

    Args:
        fixed: $ per million tokens of the fixed fleet, a value per day.
        scaled: $ per million tokens of the autoscaled fleet at the same price per replica.
        goal: The claimed ratio: how many times cheaper the autoscaled fleet is.
        premium: Today's ratio of the two prices.
    """
    import plotly.graph_objects as go

    figure = styled(go.Figure(), 420)
    if not fixed or not scaled or not all([*fixed, *scaled]):
        return titled(figure, "Nothing to compare: a fleet has no tokens within the SLO")
    even = float(np.mean(fixed) / np.mean(scaled))
    x = np.array([0.0, 1.25 * max(even, goal, premium, 1.0)])
    lines = {"Fixed": (fixed, np.ones(2), ORANGE), "Autoscaled": (scaled, x, BLUE)}
    for name, (values, line, colour) in lines.items():
        figure.add_trace(_band(x, line, values, colour))
        mean = go.Scatter(
            x=x,
            y=np.mean(values) * line,
            mode="lines",
            name=f"{name}: ${np.mean(values):.3g} at equal prices",
            line={"color": colour, "width": 2},
            hovertemplate="$%{y:.4g} per million tokens<extra></extra>",
        )
        figure.add_trace(mean)
    for at, text in ((even, f"Break-even {even:.2f}x"), (premium, f"Today {premium:g}x")):
        figure.add_vline(x=at, line={"color": GREY, "dash": "dot"}, annotation_text=text)
    within = go.Scatter(
        x=x,
        y=np.full(2, np.mean(fixed) / goal),
        mode="lines",
        name=f"Claim: 1/{goal:g} of the fixed fleet",
        line={"color": GREEN, "dash": "dash", "width": 1.5},
        hoverinfo="name",
    )
    figure.add_trace(within)
    figure.update_xaxes(title_text="Price of an on-demand replica / price of a committed one")
    figure.update_yaxes(title_text="$ per million tokens within the SLO", rangemode="tozero")
    return titled(figure, "Where autoscaling breaks even")


def _band(x: np.ndarray, line: np.ndarray, values: Sequence[float], colour: str) -> go.Scatter:
    """Return the area from the cheapest day to the most expensive one."""
    import plotly.graph_objects as go

    return go.Scatter(
        x=[*x, *x[::-1]],
        y=[*(min(values) * line), *(max(values) * line)[::-1]],
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        line={"width": 0},
        showlegend=False,
        hoverinfo="skip",
    )


_VERDICT_COLOURS = {"PASS": GREEN, "FAIL": VERMILLION, "not decided": GREY}


def paired_comparison_figure(
    comparisons: Sequence[PairedComparison],
    figure: str = "output_throughput",
    unit: str = "output tokens/s",
) -> go.Figure:
    """Draw both sides of each repeat as points on a logarithmic axis.

    Args:
        comparisons: Paired comparisons, a row per opponent.
        figure: The metric to show.
        unit: The unit of the metric.
    """
    import plotly.graph_objects as go

    shown = [comparison for comparison in comparisons if comparison.pairs(figure)]
    drawn = styled(go.Figure(), 140 + 70 * max(1, len(shown)))
    for side, (name, colour) in enumerate([("vLLM", BLUE), ("Opponent", ORANGE)]):
        points = [
            (pair[side], comparison.opponent)
            for comparison in shown
            for pair in comparison.pairs(figure)
        ]
        drawn.add_trace(
            go.Scatter(
                x=[value for value, _ in points],
                y=[opponent for _, opponent in points],
                name=name,
                mode="markers",
                marker={"color": colour, "size": 12, "opacity": 0.7},
                hovertemplate=f"{name}: %{{x:,.0f}} {unit}<extra></extra>",
            )
        )
    drawn.update_xaxes(type="log", title_text=unit[:1].upper() + unit[1:])
    drawn.update_yaxes(autorange="reversed")
    healths = (m.summary.client_health for comparison in comparisons for m in comparison.measured)
    return titled(drawn, "Both sides of each repeat", ClientHealth.combine(healths))


def ratio_figure(verdicts: Sequence[Verdict]) -> go.Figure:
    """Draw the ratio against each opponent with its interval, and the claimed ratio."""
    import plotly.graph_objects as go

    known = [verdict for verdict in verdicts if verdict.ratio is not None]
    drawn = styled(go.Figure(), 160 + 60 * max(1, len(known)))
    for verdict in known:
        ratio = verdict.ratio or np.nan
        low, high = verdict.low or ratio, verdict.high or ratio
        bar = {"array": [high - ratio], "arrayminus": [ratio - low]}
        drawn.add_trace(
            go.Scatter(
                x=[ratio],
                y=[verdict.opponent],
                error_x={"type": "data", "symmetric": False, "thickness": 2, **bar},
                mode="markers+text",
                marker={"color": _VERDICT_COLOURS[verdict.verdict], "size": 12},
                text=[f"{ratio:.3g}x {verdict.verdict}"],
                textposition="top center",
                showlegend=False,
                hovertext=[verdict.reason],
                hoverinfo="text",
            )
        )
    for goal in sorted({verdict.claim.goal for verdict in verdicts}):
        drawn.add_vline(x=goal, line={"dash": "dash", "color": GREY}, annotation_text=f"{goal:g}x")
    drawn.update_xaxes(type="log", title_text="Ratio to the opponent")
    drawn.update_yaxes(autorange="reversed")
    return titled(drawn, "Ratio, interval and claim", _limited_verdicts(verdicts))


def _limited_verdicts(verdicts: Sequence[Verdict]) -> ClientHealth | None:
    reasons = [v.reason for v in verdicts if re.search("client[- ]limited", v.reason)]
    return ClientHealth(client_limited=True, reasons=tuple(reasons[:1])) if reasons else None
