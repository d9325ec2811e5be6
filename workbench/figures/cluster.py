"""Load, latency, replicas, engine and cost on one time axis; pure: frames in, figures out.

`timeline_traces` gives the same traces in the same order whatever the frames hold, so that a live
view can be given new ones in place: what is seen live is what stands in the notebook afterwards.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from workbench.figures.replicas import replica_traces
from workbench.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, styled, titled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from workbench.figures.cluster_frames import Frames
    from workbench.metrics.health import ClientHealth

HEIGHT = 980
ROWS = (
    # share of the height, title of the left axis and of the right one
    (0.20, "requests/s", "in flight"),
    (0.22, "latency", ""),
    (0.18, "replicas", "desired"),
    (0.18, "engine requests", "KV-cache"),
    (0.12, "$ per hour", "$ so far"),
    (0.10, "$/1M tokens", ""),
)
REQUESTS, LATENCY, REPLICAS, ENGINE, COST, PER_MILLION = range(1, len(ROWS) + 1)
_TICKS_MS = {1: "1 ms", 10: "10 ms", 100: "100 ms", 1e3: "1 s", 1e4: "10 s", 1e5: "100 s"}
_MOST_POINTS = 2000


@dataclass(frozen=True)
class Placed:
    """A trace, its row, and whether the right axis is its own.

    As data and not as an object of plotly's, which is checked at a cost that a live view would pay
    at each of its drawings.
    """

    trace: dict[str, Any]
    row: int
    right: bool = False


def cluster_timeline(
    frames: Frames,
    *,
    title: str = "Load, replicas and cost on one timeline",
    health: ClientHealth | None = None,
    height: int = HEIGHT,
) -> go.Figure:
    """The whole run on one time axis, as `workbench.figures.cluster_frames.frames_of` reads it."""
    figure = blank_timeline(height)
    for placed in timeline_traces(frames):
        figure.add_trace(placed.trace, row=placed.row, col=1, secondary_y=placed.right)
    figure.update_yaxes(dtick=replica_tick(frames), row=REPLICAS, col=1, secondary_y=False)
    return titled(figure, title, health=health)


def replica_tick(frames: Frames) -> int:
    """The distance of the ticks on the replicas' axis: whole numbers, and few."""
    most = frames.deployments.reindex(columns=["target", "running"]).max().max()
    return max(1, round(most / 4)) if most == most else 1


def blank_timeline(height: int = HEIGHT) -> go.Figure:
    """The rows, their axes and legends, and no trace."""
    import plotly.graph_objects as go

    return go.Figure(_blank(height))


@lru_cache
def _blank(height: int) -> go.Figure:
    """Made once: with so many axes it takes a third of a second, and a copy a twentieth of that."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=len(ROWS),
        cols=1,
        shared_xaxes=True,
        row_heights=[share for share, _, _ in ROWS],
        vertical_spacing=0.045,
        specs=[[{"secondary_y": True}] for _ in ROWS],
    )
    styled(figure, height)
    layout: dict[str, Any] = {"margin": {"l": 70, "r": 70, "t": 80, "b": 45}, "hovermode": "x"}
    for row in range(1, len(ROWS) + 1):
        layout |= _axes(figure, row)
    # All at once: each update of a figure costs milliseconds.
    figure.update_layout(layout)
    return figure


def _axes(figure: go.Figure, row: int) -> dict[str, Any]:
    """One row's axes and legend, by their names in the layout."""
    _, left, right = ROWS[row - 1]
    subplot, other = (figure.get_subplot(row, 1, secondary_y=right) for right in (False, True))
    small = {"title_font_size": 12, "tickfont_size": 11}
    y = small | {"rangemode": "tozero", "nticks": 5, "tickmode": "auto"} | _SPECIAL.get(row, {})
    shared = {name: y[name] for name in ("tickprefix",) if name in y}
    right_y = {"title_text": right, "rangemode": "tozero", "showgrid": False, "nticks": 5}
    right_y |= {"tickmode": "auto"} | small | shared
    if row == ENGINE:
        right_y["tickformat"] = ".0%"
    x = small | {"rangemode": "nonnegative"}
    if row == len(ROWS):
        x["title_text"] = "time since the start of the run (s)"
    return {
        subplot.yaxis.plotly_name: y | {"title_text": left},
        other.yaxis.plotly_name: right_y,
        subplot.xaxis.plotly_name: x,
        _legend(row): _LEGEND | {"y": subplot.yaxis.domain[1]},
    }


_LEGEND = {
    "orientation": "h",
    "x": 0,
    "xanchor": "left",
    "yanchor": "bottom",
    "font": {"size": 11},
    "traceorder": "normal",
    "bgcolor": "rgba(0,0,0,0)",
}


_SPECIAL: dict[int, dict[str, Any]] = {
    LATENCY: {
        "type": "log",
        "rangemode": "normal",
        "tickmode": "array",
        "tickvals": list(_TICKS_MS),
        "ticktext": list(_TICKS_MS.values()),
    },
    REPLICAS: {"tickmode": "linear", "tick0": 0, "dtick": 1},
    COST: {"tickprefix": "$"},
    PER_MILLION: {"tickprefix": "$"},
}


def _legend(row: int) -> str:
    return "legend" if row == 1 else f"legend{row}"


def timeline_traces(frames: Frames) -> list[Placed]:
    """Every trace of the timeline, in an order that does not depend on the frames."""
    rows = [_request_traces(frames), _latency_traces(frames.requests)]
    rows += [_replica_row(frames), _engine_traces(frames.engine), _cost_traces(frames.cost)]
    found = [placed for row in rows for placed in row]
    for placed in found:
        placed.trace["legend"] = _legend(placed.row)
    return found


def _request_traces(frames: Frames) -> Iterator[Placed]:
    rows = _thinned(frames.requests)
    lines = [
        ("offered", "offered", ORANGE, "dash", "%{y:.1f} requests/s offered"),
        ("achieved", "achieved", BLUE, "solid", "%{y:.1f} requests/s answered well"),
        ("failed", "failed", VERMILLION, "solid", "%{y:.1f} requests/s failed"),
        ("shed", "shed", PURPLE, "dashdot", "%{y:.1f} requests/s shed"),
    ]
    for column, name, colour, dash, hover in lines:
        yield Placed(_line(rows, column, name, colour, dash, hover), REQUESTS)
    flight = _line(rows, "in_flight", "in flight", GREY, "dot", "%{y:.0f} in flight")
    yield Placed(flight, REQUESTS, right=True)
    yield Placed(_change_marks(frames), REQUESTS)


def _latency_traces(requests: pd.DataFrame) -> Iterator[Placed]:
    rows = _thinned(requests)
    for latency, colour in (("ttft", BLUE), ("itl", GREEN)):
        for rank, dash in (("p50", "solid"), ("p99", "dot")):
            name = f"{latency.upper()} {rank}"
            hover = f"{name} %{{y:,.0f}} ms" if latency == "ttft" else f"{name} %{{y:,.1f}} ms"
            yield Placed(_line(rows, f"{latency}_{rank}_ms", name, colour, dash, hover), LATENCY)


def _replica_row(frames: Frames) -> Iterator[Placed]:
    for made in replica_traces(frames.deployments, frames.decisions):
        trace = made.to_plotly_json()
        name = next((word for word in ("target", "desired") if word in trace["name"]), None)
        trace["name"] = name or trace["name"].removeprefix("replicas ")
        # A queue may make the policy ask for hundreds, beside which no replica would be seen.
        yield Placed(trace, REPLICAS, right=name == "desired")


def _engine_traces(engine: pd.DataFrame) -> Iterator[Placed]:
    rows = _thinned(engine)
    running = _line(rows, "running_requests", "running", BLUE, "solid", "%{y:.0f} running")
    waiting = _line(rows, "waiting_requests", "waiting", ORANGE, "dash", "%{y:.0f} waiting")
    cache = _line(rows, "kv_cache_usage", "KV-cache in use", GREEN, "dot", "KV-cache %{y:.1%}")
    yield Placed(running, ENGINE)
    yield Placed(waiting, ENGINE)
    yield Placed(cache, ENGINE, right=True)


def _cost_traces(cost: pd.DataFrame) -> Iterator[Placed]:
    rows = _thinned(cost)
    now = _line(rows, "per_hour", "$ per hour now", BLUE, "solid", "$%{y:.2f} per hour")
    now["line"]["shape"] = "hv"
    yield Placed(now, COST)
    so_far = _line(rows, "so_far", "$ so far", ORANGE, "dash", "$%{y:.4f} so far")
    yield Placed(so_far, COST, right=True)
    name, hover = "$ per million tokens so far", "$%{y:,.2f} per million tokens"
    yield Placed(_line(rows, "per_million", name, GREEN, "solid", hover), PER_MILLION)


def _line(
    rows: pd.DataFrame, column: str, name: str, colour: str, dash: str, hover: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": rows.time_s.to_numpy(float),
        "y": rows[column].to_numpy(float).round(6),
        "name": name,
        "mode": "lines",
        "line": {"color": colour, "dash": dash, "width": 2},
        "hovertemplate": f"{hover}<extra></extra>",
    }


def _change_marks(frames: Frames) -> dict[str, Any]:
    from workbench.workload.rate_curve import offered_rates

    shown = [one for one in frames.changes if one.what not in ("start", "end")]
    times = [one.time_s for one in shown]
    told = [f"{one.what} {'' if one.value is None else f'{one.value:g}'}".strip() for one in shown]
    notes = [f"<br>{html.escape(one.note)}" if one.note else "" for one in shown]
    return {
        "type": "scatter",
        "x": times,
        "y": offered_rates(frames.changes, times),
        "name": "changed by hand",
        "mode": "markers",
        "marker": {"symbol": "diamond", "size": 9, "color": ORANGE, "line": {"width": 1}},
        "customdata": [[html.escape(t) + note] for t, note in zip(told, notes, strict=True)],
        "hovertemplate": "%{customdata[0]}<extra></extra>",
    }


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[:: -(-len(rows) // _MOST_POINTS) or 1]
