"""Replicas over time, the parts of a scaling reaction, and policies side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from workbench.figures.replica_traces import replica_axis, replica_traces
from workbench.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    TIME_TITLE,
    VERMILLION,
    stacked,
    titled,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.analysis.reactions import Reaction
    from workbench.runs.run import Run

STEP_STYLES = (
    ("metrics changed", SKY, ""),
    ("change requested", BLUE, ""),
    ("delay passed", ORANGE, "/"),
    ("actor scheduled", PURPLE, ""),
    ("engine loaded", PURPLE, "/"),
    ("first token served", GREEN, ""),
    ("replicas stopped", GREY, "x"),
)
"""The steps of `Reaction.steps`, with colour and pattern."""
_WINDOW_S = 5.0
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)


def replica_panel(
    telemetry: pd.DataFrame, decisions: pd.DataFrame | None = None, *, deployment: str | None = None
) -> go.Figure:
    """Draw replicas stacked by state under the target, with the autoscaler's decisions.

    Args:
        telemetry: `Run.samples_frame("deployment")`.
        decisions: `Run.samples_frame("decision")`.
        deployment: The deployment to show; by default the sum of all.
    """
    figure = stacked([1.0], height=340)
    traces = replica_traces(telemetry, decisions, deployment=deployment)
    figure.add_traces(traces)
    figure.update_yaxes(title_text="Replicas", **replica_axis(traces))
    figure.update_xaxes(title_text=TIME_TITLE)
    return titled(figure, "Replicas")


def reaction_waterfall(reactions: Sequence[Reaction]) -> go.Figure:
    """Draw a row per decision, with the seconds from the load change to each step."""
    import plotly.graph_objects as go

    figure = stacked([1.0], height=160 + 44 * max(1, len(reactions)))
    for name, colour, pattern in STEP_STYLES:
        steps = [(label, step) for label, step in _labelled(reactions) if step[0] == name]
        if not steps:
            continue
        bar = go.Bar(
            orientation="h",
            y=[label for label, _ in steps],
            base=[start for _, (_, start, _) in steps],
            x=[end - start for _, (_, start, end) in steps],
            name=name.capitalize(),
            marker={"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern}},
            customdata=[[end - start] for _, (_, start, end) in steps],
            hovertemplate=f"Until {name}: %{{customdata[0]:.1f}} s<extra>%{{y}}</extra>",
        )
        figure.add_trace(bar)
    figure.update_layout(barmode="overlay", bargap=0.35)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text=TIME_TITLE)
    return titled(figure, "Reaction: the wait until ...")


def _labelled(reactions: Sequence[Reaction]) -> list[tuple[str, tuple[str, float, float]]]:
    return [
        (f"{number}. {reaction.from_target} → {reaction.to_target}", step)
        for number, reaction in enumerate(reactions, 1)
        for step in reaction.steps()
    ]


def policy_figure(runs: Mapping[str, Run], deployment: str) -> go.Figure:
    """Draw the replicas under each policy, and the TTFT of all policies below, on one time axis.

    Args:
        runs: A run per policy, by the policy's name. Its time starts at its first sample.
        deployment: The deployment to show.
    """
    import plotly.graph_objects as go

    last = len(runs) + 1
    figure = stacked([*[1.0] * len(runs), 1.3], height=190 * len(runs) + 320)
    for row, (name, run) in enumerate(runs.items(), 1):
        start_s = _first_sample_s(run)
        _policy_row(figure, row, name, run, deployment, start_s)
        times, medians = _rolling_ttft(run, start_s)
        line = go.Scatter(
            x=times,
            y=medians,
            name=f"TTFT, {name}",
            mode="lines",
            line={"color": _COLOURS[(row - 1) % len(_COLOURS)], "width": 2},
            hovertemplate=f"{name}: median TTFT %{{y:.0f}} ms at %{{x:.0f}} s<extra></extra>",
        )
        figure.add_trace(line, row=last, col=1)
    figure.update_yaxes(title_text=f"TTFT (ms), {_WINDOW_S:g} s median", row=last, col=1)
    figure.update_xaxes(title_text="Time since the start of each run (s)", row=last, col=1)
    return titled(figure, "The same load under each policy")


def _policy_row(
    figure: go.Figure, row: int, name: str, run: Run, deployment: str, start_s: float
) -> None:
    traces = replica_traces(
        _shifted(run.samples_frame("deployment"), start_s),
        _shifted(run.samples_frame("decision"), start_s),
        deployment=deployment,
    )
    for trace in traces:
        trace.update(showlegend=row == 1, legendgroup=trace.name)
        if trace.stackgroup:
            trace.update(stackgroup=f"replicas {row}")
        figure.add_trace(trace, row=row, col=1)
    figure.update_yaxes(title_text=name, **replica_axis(traces), row=row, col=1)


def _first_sample_s(run: Run) -> float:
    times = run.samples_frame("deployment").time_s
    return float(times.min()) if len(times) else 0.0


def _shifted(frame: pd.DataFrame, start_s: float) -> pd.DataFrame:
    return frame.assign(time_s=frame.time_s.astype(float) - start_s)


def _rolling_ttft(run: Run, start_s: float) -> tuple[list[float], list[float]]:
    """Return each window's middle (s) and the median TTFT from schedule of its requests (ms)."""
    done = run.requests_frame().query("status == 'ok'")
    due = done.scheduled_s.to_numpy(float) - start_s
    ttft_ms = done.ttft_from_schedule_ms.to_numpy(float)
    times, medians = [], []
    for window in np.unique(due // _WINDOW_S):
        times.append(float((window + 0.5) * _WINDOW_S))
        medians.append(float(np.median(ttft_ms[due // _WINDOW_S == window])))
    return times, medians
