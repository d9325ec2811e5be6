"""Autoscaling policies side by side on one load: a row and a panel for each, from their runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analysis.reactions import run_reactions
from workbench.errors import DeployError
from workbench.figures.replicas import replica_axis, replica_traces
from workbench.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, stacked, titled
from workbench.telemetry.decisions import flapping, recorded_decisions

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.endpoints.deployed import Endpoint
    from workbench.runs.run import Run

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
_WINDOW_S, POLL_S = 5.0, 0.5


def policy_table(
    runs: Mapping[str, Run], deployment: str, load_changes_s: Mapping[str, list[float]]
) -> pd.DataFrame:
    """A row a policy: what its users saw, what it held, and how it decided.

    `ttft_p50_ms`, `ttft_p99_ms`: of completed requests, from when each was due. `failed_or_shed`:
    requests that got no whole answer. `replica_s`: the integral over the run of replicas running,
    starting or stopping. `changes`: of the target. `wanted_s`, `second_replica_s`: from the load's
    rise to the policy asking for more, and to the new replica's first token (NaN: it never did).
    `flaps`: stretches in which the target went back and forth.
    """
    import pandas as pd

    rows = {name: _row(run, deployment, load_changes_s.get(name, [])) for name, run in runs.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")


def _row(run: Run, deployment: str, changes: list[float]) -> dict[str, Any]:
    requests = run.requests_frame()
    done = requests[requests.status == "ok"]
    ttft_ms = ((done.first_token_s - done.scheduled_s) * 1e3).to_numpy(float)
    made = [one for one in recorded_decisions(run) if one.deployment == deployment]
    up = next((r for r in run_reactions(run, changes) if r.deployment == deployment and r.up), None)
    quantiles = np.percentile(ttft_ms, [50, 99]) if len(ttft_ms) else [np.nan, np.nan]
    return {
        "requests": len(requests),
        "failed_or_shed": len(requests) - len(done),
        "ttft_p50_ms": quantiles[0],
        "ttft_p99_ms": quantiles[1],
        "replica_s": held(run.samples("deployment"), deployment),
        "changes": len(made),
        "wanted_s": _since(up, "policy_wanted_s"),
        "second_replica_s": _since(up, "first_token_s"),
        "flaps": len(flapping(made)),
    }


def _since(reaction: Any, mark: str) -> float:
    if reaction is None or reaction.load_changed_s is None or getattr(reaction, mark) is None:
        return float("nan")
    return float(getattr(reaction, mark) - reaction.load_changed_s)


def held(telemetry: pd.DataFrame, deployment: str) -> float:
    """Replica-seconds of one deployment over its samples: running, starting and stopping ones."""
    rows = telemetry[telemetry.deployment == deployment].sort_values("time_s")
    replicas = rows[["running", "starting", "stopping"]].astype(float).sum(axis=1).to_numpy()
    times = rows.time_s.to_numpy(float)
    return float((replicas[:-1] * np.diff(times)).sum())


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


async def settled(endpoint: Endpoint, replicas: int = 1, *, timeout_s: float = 300.0) -> None:
    """Return once the model has exactly so many replicas, running, and none on its way.

    Raises DeployError past `timeout_s`, EndpointGoneError if the service is gone.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        now = (await asyncio.to_thread(endpoint.status)).deployments[endpoint.deployment]
        if (now.target, now.running, now.starting + now.stopping) == (replicas, replicas, 0):
            return
        if time.monotonic() > deadline:
            raise DeployError(
                f"{endpoint.deployment} has not settled at {replicas} replicas in {timeout_s:g} s: "
                f"{now.running} running of {now.target}. Is there load on it?"
            )
        await asyncio.sleep(POLL_S)
