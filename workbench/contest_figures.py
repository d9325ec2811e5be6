"""Contests as figures: both sides' figure of every repeat, and the ratios beside the claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.figures.style import BLUE, GREEN, GREY, ORANGE, VERMILLION, styled, titled

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.claims.claim import Verdict
    from workbench.experiments.paired import Contest

_WORDS = {"PASS": GREEN, "FAIL": VERMILLION, "not decided": GREY}


def contest_figure(
    contests: Sequence[Contest], figure: str = "output_throughput", unit: str = "output tokens/s"
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
    return titled(drawn, "Each repeat, both sides", _health(contests), None)


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
    return titled(drawn, "Ratio and interval beside the claim", _doubted(verdicts), None)


def _health(contests: Sequence[Contest]) -> Any:
    import pandas as pd

    frame = pd.DataFrame()
    measured = [one for contest in contests for one in contest.measured]
    limited = [m for m in measured if m.summary.client_health.client_limited]
    reasons = sorted({r for m in limited for r in m.summary.client_health.reasons})
    frame.attrs["client_health"] = {"client_limited": bool(limited), "reasons": reasons[:2]}
    return frame


def _doubted(verdicts: Sequence[Verdict]) -> Any:
    import pandas as pd

    frame = pd.DataFrame()
    limited = [one.reason for one in verdicts if "client limited" in one.reason]
    frame.attrs["client_health"] = {"client_limited": bool(limited), "reasons": limited[:1]}
    return frame
