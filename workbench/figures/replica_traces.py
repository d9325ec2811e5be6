"""Replicas by state under their target, with the autoscaler's decisions, as plotly traces.

The traces are always the same ones in the same order, so that a live view can update them in place.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from workbench.quantities import significant, words

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

STATE_STYLES = (("running", GREEN, ""), ("starting", PURPLE, "/"), ("stopping", GREY, "x"))
"""The states of a replica, with colour and pattern."""
_MAX_POINTS = 2000


def replica_traces(
    telemetry: pd.DataFrame, decisions: pd.DataFrame | None = None, *, deployment: str | None = None
) -> list[go.Scatter]:
    """Return six traces: running, starting, stopping, target, desired, decisions.

    Args:
        telemetry: `Run.samples_frame("deployment")`. Its `desired` is what the policy requested,
            before delays and bounds.
        decisions: `Run.samples_frame("decision")`.
        deployment: The deployment to show; by default the sum of all.
    """
    import plotly.graph_objects as go

    rows = telemetry if deployment is None else telemetry[telemetry.deployment == deployment]
    names = ["running", "starting", "stopping", "target", "desired"]
    counts = rows.reindex(columns=["time_s", *names]).astype(float).groupby("time_s")[names]
    level = counts.sum(min_count=1)
    level = level.iloc[:: -(-len(level) // _MAX_POINTS) or 1]
    areas = [_area(level[name], name, colour, pattern) for name, colour, pattern in STATE_STYLES]
    target = _line(level["target"], "Target", SKY, 2.5, "solid")
    desired = _line(level["desired"], "Desired", ORANGE, 1.5, "dot")
    decided = decision_trace(decisions, deployment)
    return [*areas, target, desired, go.Scatter(decided)]


def replica_axis(traces: Sequence[go.Scatter]) -> dict[str, Any]:
    """Return an axis for `replica_traces` that is as high as replicas and target need.

    A policy may ask for far more than the bounds allow; such a value does not stretch the axis.
    """
    stack = np.nansum([np.asarray(trace.y, float) for trace in traces[:3]], axis=0)
    target = np.asarray(traces[3].y, float)
    top = max([1.0, *stack, *target[~np.isnan(target)]]) + 0.6
    return {"range": [0, top], "dtick": 1 if top < 12 else None}


def _area(level: pd.Series[float], state: str, colour: str, pattern: str) -> go.Scatter:
    import plotly.graph_objects as go

    fill = {"shape": pattern, "fgcolor": colour, "fillmode": "replace"} if pattern else None
    return go.Scatter(
        x=level.index.to_numpy(float),
        y=level.to_numpy(float),
        name=f"Replicas {state}",
        stackgroup="replicas",
        line={"shape": "hv", "width": 0.5, "color": colour},
        fillcolor=colour,
        fillpattern=fill,
        hovertemplate=f"%{{y}} {state} at %{{x:.1f}} s<extra></extra>",
    )


def _line(level: pd.Series[float], name: str, colour: str, width: float, dash: str) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=level.index.to_numpy(float),
        y=level.to_numpy(float),
        name=name,
        mode="lines",
        line={"shape": "hv", "width": width, "color": colour, "dash": dash},
        hovertemplate=f"{name} %{{y}} at %{{x:.1f}} s<extra></extra>",
    )


def decision_trace(decisions: pd.DataFrame | None, deployment: str | None = None) -> dict[str, Any]:
    """Return a triangle at each decision of the autoscaler, with its reason, as a plotly trace."""
    rows: list[dict[str, Any]] = []
    if decisions is not None:
        own = decisions if deployment is None else decisions[decisions.deployment == deployment]
        rows = [{str(k): v for k, v in row.items()} for row in own.to_dict("records")]
    upscales = [row["to_target"] > row["from_target"] for row in rows]
    return {
        "type": "scatter",
        "x": [row["time_s"] for row in rows],
        "y": [row["to_target"] for row in rows],
        "name": "Decisions",
        "mode": "markers",
        "marker": {
            "symbol": ["triangle-up" if up else "triangle-down" for up in upscales],
            "color": [VERMILLION if up else BLUE for up in upscales],
            "size": 11,
            "line": {"width": 1, "color": "white"},
        },
        "customdata": [[decision_text(row)] for row in rows],
        "hovertemplate": "%{customdata[0]}<extra></extra>",
    }


def decision_text(row: dict[str, Any]) -> str:
    """Return a decision and its reason as HTML."""
    first = f"{row['deployment']}: {row['from_target']:g} → {row['to_target']:g} "
    lines = [f"{first}at {row['time_s']:.1f} s", *decision_reasons(row)]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def decision_reasons(row: dict[str, Any]) -> list[str]:
    """Return what the policy requested and saw, and what held the decision back, as lines."""
    lines = []
    if _is_number(row.get("desired")):
        lines.append(f"Desired by the policy: {row['desired']:g}")
    saw = row.get("saw")
    if isinstance(saw, dict):
        lines += [f"{words(name)}: {significant(float(value))}" for name, value in saw.items()]
    elif _is_number(row.get("total_requests")):
        lines.append(f"Total requests: {significant(float(row['total_requests']))}")
    if isinstance(row.get("held_by"), str):
        wanted_s = row.get("wanted_s")
        since = f" since {wanted_s:.1f} s" if _is_number(wanted_s) else ""
        bounds = ", ".join(words(name) for name in row["held_by"].split(", "))
        lines.append(f"Held by: {bounds}{since}")
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value
