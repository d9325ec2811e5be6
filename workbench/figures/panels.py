"""The panels of the timeline, live and static. To add a panel, add an entry to `PANELS`."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.figures.cluster_frames import CostColumn, Frames, RequestColumn, SampleColumn
from workbench.figures.replica_traces import replica_traces
from workbench.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION
from workbench.quantities import SHARE_TICKS, quantity
from workbench.records import LoadChange
from workbench.workload.rate_curve import offered_rates


@dataclass(frozen=True)
class Mark:
    """A trace as plotly's dictionary, and whether it belongs to the right axis.

    plotly checks the objects of its own classes, at a cost that a live view would pay at every
    drawing.
    """

    trace: dict[str, Any]
    right: bool = False


@dataclass(frozen=True)
class Trace:
    """A line of a panel.

    Attributes:
        label: The name in the legend.
        source: Where the values come from: a column of the requests (one row per second), of the
            cost, or of a kind of samples.
        colour: The colour of the line.
        hover: The hover text, a plotly template such as "%{y:.1f} requests/s offered".
        dash: The line's dash, as plotly names it.
        right: Whether the line belongs to the right axis.
        step: Whether a value holds until the next one.
    """

    label: str
    source: RequestColumn | CostColumn | SampleColumn
    colour: str
    hover: str
    dash: str = "solid"
    right: bool = False
    step: bool = False


@dataclass(frozen=True)
class Panel:
    """A row of the timeline.

    Attributes:
        title: The title of the left axis, with its unit.
        height: The height relative to the other panels; 1 is the whole of the first six.
        traces: The lines, in the order of the legend.
        right_title: The title of the right axis, with its unit.
        axis: More properties of the left axis, as plotly names them.
        right_axis: More properties of the right axis.
        marks: Returns further traces that are not plain lines, always the same number in the same
            order, because a live figure is updated in place.
        tick: Returns the distance between ticks of the left axis.
    """

    title: str
    height: float
    traces: tuple[Trace, ...] = ()
    right_title: str = ""
    axis: Mapping[str, Any] = field(default_factory=dict)
    right_axis: Mapping[str, Any] = field(default_factory=dict)
    marks: Callable[[Frames], Iterable[Mark]] | None = None
    tick: Callable[[Frames], float] | None = None


def change_marks(frames: Frames) -> Iterator[Mark]:
    """Yield one trace: a diamond at each manual change of the load, on the offered rate."""
    changes = [change for change in frames.changes if change.what not in ("start", "end")]
    times = [change.time_s for change in changes]
    yield Mark(
        {
            "type": "scatter",
            "x": times,
            "y": offered_rates(frames.changes, times),
            "name": "Manual change",
            "mode": "markers",
            "marker": {"symbol": "diamond", "size": 9, "color": ORANGE, "line": {"width": 1}},
            "customdata": [[_change_text(change)] for change in changes],
            "hovertemplate": "%{customdata[0]}<extra></extra>",
        }
    )


_CHANGES = {
    "rate": ("Rate", "requests/s"),
    "burstiness": ("Burstiness", ""),
    "output_tokens": ("Output", "tokens"),
    "pause": ("Paused", ""),
    "resume": ("Resumed", ""),
    "scaling": ("Scaling changed", ""),
    "late": ("Not sent in time", "requests"),
}


def _change_text(change: LoadChange) -> str:
    label, unit = _CHANGES.get(change.what, (change.what, ""))
    value = "" if change.value is None else f" {quantity(change.value, unit)}"
    note = f"<br>{html.escape(change.note)}" if change.note else ""
    return html.escape(f"{label}{value}") + note


def replica_marks(frames: Frames) -> Iterator[Mark]:
    """Yield the replicas by state, the target, the desired count and the decisions."""
    for scatter in replica_traces(frames.samples("deployment"), frames.samples("decision")):
        trace = scatter.to_plotly_json()
        label = trace["name"].removeprefix("Replicas ").capitalize()
        yield Mark(trace | {"name": label}, right=label == "Desired")


def replica_tick(frames: Frames) -> float:
    """Return the distance between ticks of the replica axis: whole numbers, about four ticks."""
    counts = frames.samples("deployment").reindex(columns=["target", "running"])
    highest = counts.max().max()
    return max(1, round(highest / 4)) if highest == highest else 1


_MILLISECONDS = {1: "1 ms", 10: "10 ms", 100: "100 ms", 1e3: "1 s", 1e4: "10 s", 1e5: "100 s"}
_LOG_MILLISECONDS = {
    "type": "log",
    "rangemode": "normal",
    "tickmode": "array",
    "tickvals": list(_MILLISECONDS),
    "ticktext": list(_MILLISECONDS.values()),
}

REQUESTS = Panel(
    title="Requests/s",
    right_title="In flight",
    height=0.20,
    traces=(
        Trace(
            label="Offered",
            source=RequestColumn("offered"),
            colour=ORANGE,
            dash="dash",
            hover="%{y:.1f} requests/s offered",
        ),
        Trace(
            label="Completed",
            source=RequestColumn("achieved"),
            colour=BLUE,
            hover="%{y:.1f} requests/s completed",
        ),
        Trace(
            label="Failed",
            source=RequestColumn("failed"),
            colour=VERMILLION,
            hover="%{y:.1f} requests/s failed",
        ),
        Trace(
            label="Shed",
            source=RequestColumn("shed"),
            colour=PURPLE,
            dash="dashdot",
            hover="%{y:.1f} requests/s shed",
        ),
        Trace(
            label="In flight",
            source=RequestColumn("in_flight"),
            colour=GREY,
            dash="dot",
            hover="%{y:.0f} requests in flight",
            right=True,
        ),
    ),
    marks=change_marks,
)

LATENCY = Panel(
    title="Latency",
    height=0.22,
    axis=_LOG_MILLISECONDS,
    traces=(
        Trace("TTFT p50", RequestColumn("ttft_p50_ms"), BLUE, "TTFT p50 %{y:,.0f} ms"),
        Trace("TTFT p99", RequestColumn("ttft_p99_ms"), BLUE, "TTFT p99 %{y:,.0f} ms", "dot"),
        Trace("ITL p50", RequestColumn("itl_p50_ms"), GREEN, "ITL p50 %{y:,.1f} ms"),
        Trace("ITL p99", RequestColumn("itl_p99_ms"), GREEN, "ITL p99 %{y:,.1f} ms", "dot"),
    ),
)

REPLICAS = Panel(
    title="Replicas",
    # A queue may make the policy ask for hundreds; on the left axis no replica would be visible.
    right_title="Desired",
    height=0.18,
    axis={"tickmode": "linear", "tick0": 0, "dtick": 1},
    marks=replica_marks,
    tick=replica_tick,
)

ENGINE = Panel(
    title="Engine requests",
    right_title="KV cache",
    height=0.18,
    right_axis={"tickformat": SHARE_TICKS},
    traces=(
        Trace(
            label="In the batch",
            source=SampleColumn("replica", "running_requests", "sum"),
            colour=BLUE,
            hover="%{y:.0f} requests in the batch",
        ),
        Trace(
            label="Waiting",
            source=SampleColumn("replica", "waiting_requests", "sum"),
            colour=ORANGE,
            dash="dash",
            hover="%{y:.0f} requests waiting",
        ),
        Trace(
            label="KV cache in use",
            source=SampleColumn("replica", "kv_cache_usage", "mean"),
            colour=GREEN,
            dash="dot",
            hover="%{y:.1%} of the KV cache in use",
            right=True,
        ),
    ),
)

COST = Panel(
    title="$/hour",
    right_title="$ so far",
    height=0.12,
    axis={"tickprefix": "$"},
    right_axis={"tickprefix": "$"},
    traces=(
        Trace("$ per hour", CostColumn("per_hour"), BLUE, "$%{y:.2f} per hour", step=True),
        Trace("$ so far", CostColumn("so_far"), ORANGE, "$%{y:.4f} so far", "dash", right=True),
    ),
)

COST_PER_MILLION = Panel(
    title="$/1M tokens",
    height=0.10,
    axis={"tickprefix": "$"},
    traces=(
        Trace(
            label="$ per million tokens so far",
            source=CostColumn("per_million"),
            colour=GREEN,
            hover="$%{y:,.2f} per million tokens",
        ),
    ),
)

PANELS = (REQUESTS, LATENCY, REPLICAS, ENGINE, COST, COST_PER_MILLION)
"""All panels from top to bottom."""
