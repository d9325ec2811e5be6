"""What fleets held and what it came to; pure: data in, plotly figures out."""

from __future__ import annotations

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

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.claims.claim import Verdict
    from workbench.experiments.paired import PairedComparison
    from workbench.experiments.search_result import SearchResult

STATES = (
    ("busy", GREEN, ""),
    ("idle", SKY, ""),
    ("starting", PURPLE, "/"),
    ("stopping", GREY, "x"),
    ("unknown", ORANGE, "."),
)
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


def users_figure(found: dict[str, Sequence[SearchResult]]) -> go.Figure:
    """The most users within the SLO, a point a repeat and a bar at the mean, by engine."""
    import plotly.graph_objects as go

    figure = styled(go.Figure(), 380)
    for (name, results), colour in zip(found.items(), _COLOURS * 9, strict=False):
        held = [one.highest or 0 for one in results]
        if not held:
            continue
        mean = sum(held) / len(held)
        place = f"{name}<br>{mean:.3g} users on average"
        bar = go.Bar(
            x=[place],
            y=[mean],
            marker={"color": colour, "opacity": 0.55},
            hovertemplate=f"{name}: %{{y:.4g}} users<extra></extra>",
            showlegend=False,
        )
        limited = [one.client_limited for one in results]
        symbols = ["circle-open" if one else "circle" for one in limited]
        points = go.Scatter(
            x=[place] * len(held),
            y=held,
            mode="markers",
            marker={"color": colour, "size": 10, "symbol": symbols, "line": {"width": 2}},
            hovertemplate="%{y} users in one repeat<extra></extra>",
            showlegend=False,
        )
        figure.add_traces([bar, points])
    figure.update_yaxes(title_text="users within the SLO", rangemode="tozero")
    note = " (hollow: the client limited it)" if _limited(found) else ""
    return titled(figure, f"Users that each engine holds{note}")


def _limited(found: dict[str, Sequence[SearchResult]]) -> bool:
    return any(one.client_limited for results in found.values() for one in results)


def fleets_figure(frame: pd.DataFrame) -> go.Figure:
    """Replica-seconds by state, and the share of requests within the SLO below, a bar a day.

    `frame` is that of `workbench.experiments.fleets.fleet_frame`.
    """
    import plotly.graph_objects as go

    figure = stacked([0.7, 0.3], height=520)
    if frame.empty:
        return titled(figure, "No fleet was measured")
    days = [f"{row.fleet}, day {row.day}" for row in frame.itertuples()]
    for state, colour, pattern in STATES:
        bar = go.Bar(
            x=days,
            y=frame[f"{state}_s"],
            name=state,
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate=f"%{{y:.1f}} replica-seconds {state}<extra>%{{x}}</extra>",
        )
        figure.add_trace(bar, row=1, col=1)
    share = go.Bar(
        x=days,
        y=frame.slo_attainment,
        marker={"color": BLUE},
        text=[f"{one:.1%}" for one in frame.slo_attainment.fillna(0)],
        showlegend=False,
        hovertemplate="%{y:.2%} within the SLO<extra>%{x}</extra>",
    )
    figure.add_trace(share, row=2, col=1)
    figure.update_layout(barmode="stack")
    figure.update_yaxes(title_text="replica-seconds", row=1, col=1)
    figure.update_yaxes(title_text="within the SLO", tickformat=".0%", range=[0, 1.05], row=2)
    return titled(figure, "What each fleet held, and what its users met")


def break_even_figure(
    fixed: Sequence[float], scaled: Sequence[float], goal: float, premium: float = 1.0
) -> go.Figure:
    """$ per million tokens of both fleets over the price of a replica that comes and goes.

    `fixed` and `scaled` are $ per million tokens a day at the same price of a replica. The x axis
    is that price over a committed replica's: the autoscaled fleet's line rises with it, and breaks
    even where it meets the fixed one's. `goal` is the claim, `premium` today's ratio of prices.
    """
    import plotly.graph_objects as go

    figure = styled(go.Figure(), 420)
    if not fixed or not scaled or not all([*fixed, *scaled]):
        return titled(figure, "Nothing to compare: a fleet has no token within the SLO")
    even = float(np.mean(fixed) / np.mean(scaled))
    x = np.array([0.0, 1.25 * max(even, goal, premium, 1.0)])
    lines = {"fixed": (fixed, np.ones(2), ORANGE), "autoscaled": (scaled, x, BLUE)}
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
    for at, text in ((even, f"break-even {even:.2f}x"), (premium, f"prices now {premium:g}x")):
        figure.add_vline(x=at, line={"color": GREY, "dash": "dot"}, annotation_text=text)
    within = go.Scatter(
        x=x,
        y=np.full(2, np.mean(fixed) / goal),
        mode="lines",
        name=f"the claim: 1/{goal:g} of the fixed fleet",
        line={"color": GREEN, "dash": "dash", "width": 1.5},
        hoverinfo="name",
    )
    figure.add_trace(within)
    figure.update_xaxes(title_text="price of an autoscaled replica over a committed one")
    figure.update_yaxes(title_text="$ per million tokens within the SLO", rangemode="tozero")
    return titled(figure, "Where autoscaling breaks even")


def _band(x: np.ndarray, line: np.ndarray, values: Sequence[float], colour: str) -> go.Scatter:
    """From the cheapest day to the dearest."""
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


_WORDS = {"PASS": GREEN, "FAIL": VERMILLION, "not decided": GREY}


def contest_figure(
    contests: Sequence[PairedComparison],
    figure: str = "output_throughput",
    unit: str = "output tokens/s",
) -> go.Figure:
    """Each repeat of each contest: a point for either side, on a logarithmic axis."""
    import plotly.graph_objects as go

    held = [contest for contest in contests if contest.pairs(figure)]
    drawn = styled(go.Figure(), 140 + 70 * max(1, len(held)))
    for side, (name, colour) in enumerate([("vLLM", BLUE), ("the opponent", ORANGE)]):
        points = [
            (pair[side], contest.opponent) for contest in held for pair in contest.pairs(figure)
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
    drawn.update_xaxes(type="log", title_text=unit)
    drawn.update_yaxes(autorange="reversed")
    measured = (one.summary.client_health for contest in contests for one in contest.measured)
    return titled(drawn, "Each repeat, both sides", ClientHealth.combine(measured))


def ratio_figure(verdicts: Sequence[Verdict]) -> go.Figure:
    """The ratio against each opponent with its interval, beside the line of the claim."""
    import plotly.graph_objects as go

    known = [one for one in verdicts if one.ratio is not None]
    drawn = styled(go.Figure(), 160 + 60 * max(1, len(known)))
    for one in known:
        ratio = one.ratio or np.nan
        bar = {"array": [(one.high or ratio) - ratio], "arrayminus": [ratio - (one.low or ratio)]}
        drawn.add_trace(
            go.Scatter(
                x=[ratio],
                y=[one.opponent],
                error_x={"type": "data", "symmetric": False, "thickness": 2, **bar},
                mode="markers+text",
                marker={"color": _WORDS[one.verdict], "size": 12},
                text=[f"{ratio:.3g}x {one.verdict}"],
                textposition="top center",
                showlegend=False,
                hovertext=[one.reason],
                hoverinfo="text",
            )
        )
    for goal in sorted({one.claim.goal for one in verdicts}):
        drawn.add_vline(x=goal, line={"dash": "dash", "color": GREY}, annotation_text=f"{goal:g}x")
    drawn.update_xaxes(type="log", title_text="times the opponent")
    drawn.update_yaxes(autorange="reversed")
    return titled(drawn, "Ratio and interval beside the claim", _limited_verdicts(verdicts))


def _limited_verdicts(verdicts: Sequence[Verdict]) -> ClientHealth | None:
    limited = [one.reason for one in verdicts if "client limited" in one.reason]
    return ClientHealth(client_limited=True, reasons=tuple(limited[:1])) if limited else None
