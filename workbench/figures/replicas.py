"""Replicas under their target, and where the time of a reaction went; pure: frames in, figures out.

`replica_traces` are the same traces, in the same order, whatever the frame holds, so that a live
view can be given new ones in place.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    titled,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.analysis.reactions import Reaction
    from workbench.runs.run import Run

AREAS = (("running", GREEN, ""), ("starting", PURPLE, "/"), ("stopping", GREY, "x"))
STEPS = (
    ("metric saw it", SKY, ""),
    ("policy wanted it", BLUE, ""),
    ("delay passed", ORANGE, "/"),
    ("actor scheduled", PURPLE, ""),
    ("engine loaded", PURPLE, "/"),
    ("first token served", GREEN, ""),
    ("replicas stopped", GREY, "x"),
)
_MOST_POINTS = 2000


def replica_panel(
    telemetry: pd.DataFrame, decisions: pd.DataFrame | None = None, *, deployment: str | None = None
) -> go.Figure:
    """Replicas stacked by state under the target line, with the autoscaler's decisions as marks.

    `telemetry` is `Run.samples("deployment")` (columns time_s, deployment, target, running,
    starting, stopping, desired), `decisions` is `Run.samples("decision")`. One `deployment`, or
    the sum of all.
    """
    figure = stacked([1.0], height=340)
    traces = replica_traces(telemetry, decisions, deployment=deployment)
    figure.add_traces(traces)
    figure.update_yaxes(title_text="replicas", **replica_axis(traces))
    figure.update_xaxes(title_text="time since the start of the run (s)")
    return titled(figure, "Replicas")


def replica_traces(
    telemetry: pd.DataFrame, decisions: pd.DataFrame | None = None, *, deployment: str | None = None
) -> list[go.Scatter]:
    """Six traces, always: running, starting, stopping, target, desired, decisions.

    Frames as for `replica_panel`. `desired` is what the policy asked for before delays and bounds.
    """
    rows = telemetry if deployment is None else telemetry[telemetry.deployment == deployment]
    names = ["running", "starting", "stopping", "target", "desired"]
    counts = rows.reindex(columns=["time_s", *names]).astype(float).groupby("time_s")[names]
    level = counts.sum(min_count=1)
    level = level.iloc[:: -(-len(level) // _MOST_POINTS) or 1]
    areas = [_area(level[name], name, colour, pattern) for name, colour, pattern in AREAS]
    target = _line(level["target"], "Target", SKY, 2.5, "solid")
    desired = _line(level["desired"], "Desired", ORANGE, 1.5, "dot")
    return [*areas, target, desired, _marks(decisions, deployment)]


def replica_axis(traces: Sequence[go.Scatter]) -> dict[str, Any]:
    """An axis for `replica_traces` as high as replicas and target need: a policy may ask for far
    more than the bounds allow, and would flatten all the rest.
    """
    import numpy as np

    stack = np.nansum([np.asarray(one.y, float) for one in traces[:3]], axis=0)
    target = np.asarray(traces[3].y, float)
    top = max([1.0, *stack, *target[~np.isnan(target)]]) + 0.6
    return {"range": [0, top], "dtick": 1 if top < 12 else None}


def _area(level: pd.Series[float], name: str, colour: str, pattern: str) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=level.index.to_numpy(float),
        y=level.to_numpy(float),
        name=f"Replicas {name}",
        stackgroup="replicas",
        line={"shape": "hv", "width": 0.5, "color": colour},
        fillcolor=colour,
        fillpattern={"shape": pattern, "fgcolor": colour, "fillmode": "replace"}
        if pattern
        else None,
        hovertemplate=f"%{{y}} {name} at %{{x:.1f}} s<extra></extra>",
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


def _marks(decisions: pd.DataFrame | None, deployment: str | None) -> go.Scatter:
    import plotly.graph_objects as go

    rows: list[dict[str, Any]] = []
    if decisions is not None:
        own = decisions if deployment is None else decisions[decisions.deployment == deployment]
        rows = [{str(k): v for k, v in row.items()} for row in own.to_dict("records")]
    up = [row["to_target"] > row["from_target"] for row in rows]
    return go.Scatter(
        x=[row["time_s"] for row in rows],
        y=[row["to_target"] for row in rows],
        name="Decisions",
        mode="markers",
        marker={
            "symbol": ["triangle-up" if one else "triangle-down" for one in up],
            "color": [VERMILLION if one else BLUE for one in up],
            "size": 11,
            "line": {"width": 1, "color": "white"},
        },
        customdata=[[_told(row)] for row in rows],
        hovertemplate="%{customdata[0]}<extra></extra>",
    )


def _told(row: dict[str, Any]) -> str:
    """A decision in a few lines, for its mark."""
    lines = [
        f"{row['deployment']}: {row['from_target']:g} → {row['to_target']:g} "
        f"at {row['time_s']:.1f} s"
    ]
    if _known(row.get("desired")):
        lines.append(f"the policy asked for {row['desired']:g}")
    saw = row.get("saw")
    if isinstance(saw, dict):
        lines += [f"{name} {value:.3g}" for name, value in saw.items()]
    elif _known(row.get("total_requests")):
        lines.append(f"total_requests {row['total_requests']:.3g}")
    if isinstance(row.get("held_by"), str):
        wanted = row.get("wanted_s")
        since = f" since {wanted:.1f} s" if _known(wanted) else ""
        lines.append(f"held by {row['held_by']}{since}")
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and value == value


def reaction_waterfall(reactions: Sequence[Reaction]) -> go.Figure:
    """A row a decision: the seconds from the change of load to each mark of `Reaction.marks`."""
    import plotly.graph_objects as go

    figure = stacked([1.0], height=160 + 44 * max(1, len(reactions)))
    for name, colour, pattern in STEPS:
        bars = [(label, step) for label, step in _labelled(reactions) if step[0] == name]
        if not bars:
            continue
        bar = go.Bar(
            orientation="h",
            y=[label for label, _ in bars],
            base=[start for _, (_, start, _) in bars],
            x=[end - start for _, (_, start, end) in bars],
            name=name,
            marker={"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern}},
            customdata=[[end - start] for _, (_, start, end) in bars],
            hovertemplate=f"until {name}: %{{customdata[0]:.1f}} s<extra>%{{y}}</extra>",
        )
        figure.add_trace(bar)
    figure.update_layout(barmode="overlay", bargap=0.35)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="time since the start of the run (s)")
    return titled(figure, "Reaction: the wait until ...")


def _labelled(reactions: Sequence[Reaction]) -> list[tuple[str, tuple[str, float, float]]]:
    return [
        (f"{i}. {one.from_target} → {one.to_target}", step)
        for i, one in enumerate(reactions, 1)
        for step in one.steps()
    ]


_WINDOW_S = 5.0
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)


def policy_figure(runs: Mapping[str, Run], deployment: str) -> go.Figure:
    """Replicas under the target for each policy, and below all their TTFT, on one time axis.

    Each run's time starts at its first sample.
    """
    import plotly.graph_objects as go

    count = len(runs)
    figure = stacked([*[1.0] * count, 1.3], height=190 * count + 320)
    for row, (name, run) in enumerate(runs.items(), 1):
        start_s = _first_sample(run)
        traces = replica_traces(
            _shifted(run.samples("deployment"), start_s),
            _shifted(run.samples("decision"), start_s),
            deployment=deployment,
        )
        for trace in traces:
            trace.update(showlegend=row == 1, legendgroup=trace.name)
            if trace.stackgroup:
                trace.update(stackgroup=f"replicas {row}")
            figure.add_trace(trace, row=row, col=1)
        figure.update_yaxes(title_text=name, **replica_axis(traces), row=row, col=1)
        at, seconds = _rolling_ttft(run, start_s)
        line = go.Scatter(
            x=at,
            y=seconds,
            name=f"TTFT, {name}",
            mode="lines",
            line={"color": _COLOURS[(row - 1) % len(_COLOURS)], "width": 2},
            hovertemplate=f"{name}: median TTFT %{{y:.0f}} ms at %{{x:.0f}} s<extra></extra>",
        )
        figure.add_trace(line, row=count + 1, col=1)
    figure.update_yaxes(title_text=f"TTFT (ms), {_WINDOW_S:g} s median", row=count + 1, col=1)
    figure.update_xaxes(title_text="time since the start of each run (s)", row=count + 1, col=1)
    return titled(figure, "The same load under each policy")


def _first_sample(run: Run) -> float:
    times = run.samples("deployment").time_s
    return float(times.min()) if len(times) else 0.0


def _shifted(frame: pd.DataFrame, start_s: float) -> pd.DataFrame:
    return frame.assign(time_s=frame.time_s.astype(float) - start_s)


def _rolling_ttft(run: Run, start_s: float) -> tuple[list[float], list[float]]:
    """The median TTFT from schedule of the requests due in each window, at its middle."""
    done = run.requests_frame().query("status == 'ok'")
    due = done.scheduled_s.to_numpy(float) - start_s
    ttft_ms = (done.first_token_s - done.scheduled_s).to_numpy(float) * 1e3
    at, medians = [], []
    for window in np.unique(due // _WINDOW_S):
        at.append(float((window + 0.5) * _WINDOW_S))
        medians.append(float(np.median(ttft_ms[due // _WINDOW_S == window])))
    return at, medians
