"""Traces of the timeline that are not plain lines: load changes, replicas and decisions.

They are dictionaries and not plotly objects: plotly checks each object, and a live view would pay
for that at every drawing.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.figures.replicas import replica_traces
from workbench.figures.style import ORANGE

if TYPE_CHECKING:
    from workbench.figures.cluster_frames import Frames
    from workbench.records import LoadChange


@dataclass(frozen=True)
class Mark:
    """A trace as plotly's dictionary, and whether it belongs to the right axis."""

    trace: dict[str, Any]
    right: bool = False


def change_marks(frames: Frames) -> Iterator[Mark]:
    """Yield one trace: a diamond at each manual change of the load, on the offered rate."""
    from workbench.workload.live_schedule import offered

    changes = [change for change in frames.changes if change.what not in ("start", "end")]
    times = [change.time_s for change in changes]
    yield Mark(
        {
            "type": "scatter",
            "x": times,
            "y": offered(frames.changes, times),
            "name": "Manual change",
            "mode": "markers",
            "marker": {"symbol": "diamond", "size": 9, "color": ORANGE, "line": {"width": 1}},
            "customdata": [[_change_text(change)] for change in changes],
            "hovertemplate": "%{customdata[0]}<extra></extra>",
        }
    )


def _change_text(change: LoadChange) -> str:
    value = "" if change.value is None else f" {change.value:g}"
    note = f"<br>{html.escape(change.note)}" if change.note else ""
    return html.escape(f"{change.what}{value}") + note


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
