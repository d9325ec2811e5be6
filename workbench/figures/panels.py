"""The panels of the timeline, live and static. To add a panel, add an entry to `PANELS`."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.figures.cluster_frames import (
    CostColumn,
    Frames,
    RequestColumn,
    SampleColumn,
    Vector,
)
from workbench.figures.lane_traces import LANE_KEYS, LaneTexts, lane_axis, lane_marks
from workbench.figures.replica_traces import decision_trace
from workbench.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION
from workbench.quantities import SHARE_TICKS, quantity
from workbench.records import LoadChange
from workbench.workload.rate_curve import offered_rates

_DASHES = {"solid": "━━", "dash": "━ ━", "dot": "•••", "dashdot": "━ •"}
"""The symbol of each dash in the legend."""


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
        unit: The unit of `workbench.quantities.quantity` with which `hover` shows "%{text}".
    """

    label: str
    source: RequestColumn | CostColumn | SampleColumn
    colour: str
    hover: str
    dash: str = "solid"
    right: bool = False
    step: bool = False
    unit: str | None = None

    def points(self, frames: Frames) -> tuple[Vector, Vector, list[str] | None]:
        """Return times in seconds, values, and the texts for `hover` (None without a unit)."""
        times, values = self.source.read(frames)
        texts = None if self.unit is None else [quantity(v, self.unit) for v in values.tolist()]
        return times, values, texts

    def style(self) -> dict[str, Any]:
        """Return the trace without its points, as plotly's dictionary."""
        line = {"color": self.colour, "dash": self.dash, "width": 2}
        return {
            "type": "scatter",
            "name": self.label,
            "mode": "lines",
            "line": line | ({"shape": "hv"} if self.step else {}),
            "hovertemplate": f"{self.hover}<extra></extra>",
        }

    @property
    def key(self) -> tuple[str, str, str] | None:
        """What the legend shows: a symbol, its colour and the name."""
        return _DASHES[self.dash], self.colour, self.label


@dataclass(frozen=True, eq=False)
class Panel:
    """A row of the timeline.

    plotly checks the objects of its own classes, at a cost that a live view would pay at every
    drawing. Everything here is therefore a plain dictionary.

    Attributes:
        title: The title, with the unit of the left axis.
        height: The height relative to the other panels; 1 is about the height of a screen.
        traces: The lines, in the order of the legend. A live view only ever adds points to them.
        right_title: The title of the right axis, with its unit.
        axis: More properties of the left axis, as plotly names them.
        right_axis: More properties of the right axis.
        marks: Returns further traces, always the same number in the same order. A live view
            replaces them as a whole.
        scale: Returns more properties of the left axis that depend on the data.
        right_scale: The same for the right axis.
        limits: Returns horizontal lines: a value of the left axis, and its name.
        keys: What the legend shows for the marks: a symbol, its colour and a name.
        empty: What the panel says while it has no data.
    """

    title: str
    height: float
    traces: tuple[Trace | LaneTexts, ...] = ()
    right_title: str = ""
    axis: Mapping[str, Any] = field(default_factory=dict)
    right_axis: Mapping[str, Any] = field(default_factory=dict)
    marks: Callable[[Frames], Iterable[dict[str, Any]]] | None = None
    scale: Callable[[Frames], Mapping[str, Any]] | None = None
    right_scale: Callable[[Frames], Mapping[str, Any]] | None = None
    limits: Callable[[Frames], Iterable[tuple[float, str]]] | None = None
    keys: tuple[tuple[str, str, str], ...] = ()
    empty: str = "No data yet"


def change_marks(frames: Frames) -> Iterator[dict[str, Any]]:
    """Yield one trace: a diamond at each change of the load or the scaling, on the offered rate."""
    changes = [change for change in frames.changes if change.what not in ("start", "end")]
    times = [change.time_s for change in changes]
    yield {
        "type": "scatter",
        "x": times,
        "y": offered_rates(frames.changes, times),
        "name": "Change",
        "mode": "markers",
        "marker": {"symbol": "diamond", "size": 9, "color": ORANGE, "line": {"width": 1}},
        "customdata": [[change_html(change)] for change in changes],
        "hovertemplate": "%{customdata[0]}<extra></extra>",
    }


_CHANGES = {
    "rate": ("Rate", "requests/s"),
    "burstiness": ("Burstiness", ""),
    "output_tokens": ("Output", "tokens"),
    "pause": ("Paused", ""),
    "resume": ("Resumed", ""),
    "scaling": ("Scaling changed", ""),
    "late": ("Not sent in time", "requests"),
}


def change_text(change: LoadChange) -> str:
    """Return what changed, with its new value: "Rate 8 requests/s"."""
    label, unit = _CHANGES.get(change.what, (change.what, ""))
    return label if change.value is None else f"{label} {quantity(change.value, unit)}"


def change_html(change: LoadChange) -> str:
    """Return what changed and why as HTML."""
    note = f"<br>{html.escape(change.note)}" if change.note else ""
    return html.escape(change_text(change)) + note


def decision_marks(frames: Frames) -> Iterator[dict[str, Any]]:
    """Yield one trace: a triangle at each decision of the autoscaler."""
    yield decision_trace(frames.samples("decision"))


def replica_scale(frames: Frames) -> dict[str, Any]:
    """Return the distance between ticks of the replica axis: whole numbers, about three ticks."""
    counts = frames.samples("deployment").reindex(columns=["target", "running"])
    highest = counts.max().max()
    return {"dtick": max(1, round(highest / 3)) if highest == highest else 1}


def slo_limits(frames: Frames) -> Iterator[tuple[float, str]]:
    """Yield the SLO's bounds of the latencies that the panel shows, in ms."""
    bounds = {} if frames.slo is None else frames.slo.bounds()
    for key, name in (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT")):
        if key in bounds:
            yield bounds[key], f"SLO: {name} {quantity(bounds[key], 'ms')}"


_MILLISECONDS = {1: "1 ms", 10: "10 ms", 100: "100 ms", 1e3: "1 s", 1e4: "10 s", 1e5: "100 s"}
_LOG_MILLISECONDS: dict[str, Any] = {
    "type": "log",
    "rangemode": "normal",
    "tickmode": "array",
    "tickvals": list(_MILLISECONDS),
    "ticktext": list(_MILLISECONDS.values()),
}


def _latency(label: str, column: str, colour: str, dash: str = "solid") -> Trace:
    hover = f"{label} %{{text}}"
    return Trace(label, RequestColumn(column), colour, hover, dash, unit="ms")


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
    keys=(("◆", ORANGE, "Change"),),
    empty="Waiting for the load to start",
)

LATENCY = Panel(
    title="Latency",
    height=0.22,
    axis=_LOG_MILLISECONDS,
    traces=(
        _latency("TTFT p50", "ttft_p50_ms", BLUE),
        _latency("TTFT p99", "ttft_p99_ms", BLUE, "dot"),
        _latency("ITL p50", "itl_p50_ms", GREEN),
        _latency("ITL p99", "itl_p99_ms", GREEN, "dot"),
    ),
    limits=slo_limits,
    empty="Waiting for the first completed request",
)


def _replicas(label: str, colour: str, **style: Any) -> Trace:
    column = label.lower()
    source = SampleColumn("deployment", column, "sum")
    return Trace(label, source, colour, f"%{{y:.0f}} replicas {column}", step=True, **style)


REPLICAS = Panel(
    title="Replicas",
    # A queue may make the policy ask for hundreds; on the left axis no replica would be visible.
    right_title="Desired",
    height=0.13,
    axis={"tickmode": "linear", "tick0": 0, "dtick": 1},
    traces=(
        _replicas("Running", GREEN),
        _replicas("Starting", PURPLE, dash="dash"),
        _replicas("Target", BLUE, dash="dot"),
        _replicas("Desired", ORANGE, dash="dashdot", right=True),
    ),
    marks=decision_marks,
    keys=(("▲", VERMILLION, "Decision for more"), ("▼", BLUE, "for fewer")),
    scale=replica_scale,
    empty="Waiting for the first sample of the cluster",
)

LANES = Panel(
    title="Each replica",
    right_title="Batch + queue · KV",
    height=0.16,
    traces=(LaneTexts(),),
    axis={"showgrid": False, "zeroline": False, "rangemode": "normal", "tickmode": "array"},
    right_axis={"tickmode": "array", "rangemode": "normal"},
    marks=lane_marks,
    keys=LANE_KEYS,
    scale=lambda frames: lane_axis(frames.lanes, right=False),
    right_scale=lambda frames: lane_axis(frames.lanes, right=True),
    empty="Waiting for the first replica",
)

ENGINE = Panel(
    title="Engine requests",
    right_title="KV cache",
    height=0.15,
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
    empty="Waiting for the metrics of an engine",
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
    empty="No cost yet: it needs prices and a replica",
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
    empty="No cost yet: it needs prices and a completed request",
)

PANELS = (REQUESTS, LATENCY, REPLICAS, LANES, ENGINE, COST, COST_PER_MILLION)
"""All panels from top to bottom."""
LIVE_PANELS = PANELS[:-1]
"""Those of the dashboard, which shows the cost per million tokens as a number."""
