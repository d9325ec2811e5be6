"""Load, latency, replicas, engine and cost on one time axis, as `workbench.figures.panels` defines.

`timeline_traces` returns the same traces in the same order for any data. A live view
can therefore update its figure in place, and shows what the saved notebook shows later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from workbench.figures.panels import PANELS, Mark, Panel, Trace
from workbench.figures.style import TIME_TITLE, styled, titled

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.figures.cluster_frames import Frames
    from workbench.metrics.health import ClientHealth

HEIGHT = round(980 * sum(panel.height for panel in PANELS))
"""Pixels of the whole figure."""


@dataclass(frozen=True)
class TimelineTrace(Mark):
    """A trace with its row, counted from 1."""

    row: int = 1


def cluster_timeline(
    frames: Frames,
    *,
    title: str = "Load, replicas and cost on one timeline",
    health: ClientHealth | None = None,
    height: int = HEIGHT,
) -> go.Figure:
    """Return a whole run on one time axis.

    Args:
        frames: The run, as read by `workbench.figures.cluster_frames.frames_of`.
        title: The title.
        health: The client's health; a client-limited run is marked.
        height: The height in pixels.
    """
    figure = blank_timeline(height)
    for placed in timeline_traces(frames):
        figure.add_trace(placed.trace, row=placed.row, col=1, secondary_y=placed.right)
    figure.update_layout(tick_layout(figure, frames))
    return titled(figure, title, health)


def tick_layout(figure: go.Figure, frames: Frames) -> dict[str, Any]:
    """Return the tick distances that depend on the data, by axis, for `figure.update_layout`."""
    return {
        _left_axis(figure, row): {"dtick": panel.tick(frames)}
        for row, panel in enumerate(PANELS, 1)
        if panel.tick is not None
    }


def _left_axis(figure: go.Figure, row: int) -> str:
    name: str = figure.get_subplot(row, 1, secondary_y=False).yaxis.plotly_name
    return name


def blank_timeline(height: int = HEIGHT) -> go.Figure:
    """Return the panels with their axes and legends, without traces."""
    import plotly.graph_objects as go

    return go.Figure(_blank(height))


@lru_cache
def _blank(height: int) -> go.Figure:
    """Create the figure once: its axes take a third of a second, a copy a twentieth of that."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=len(PANELS),
        cols=1,
        shared_xaxes=True,
        row_heights=[panel.height for panel in PANELS],
        vertical_spacing=0.045,
        specs=[[{"secondary_y": True}] for _ in PANELS],
    )
    styled(figure, height)
    layout: dict[str, Any] = {"margin": {"l": 70, "r": 70, "t": 80, "b": 45}, "hovermode": "x"}
    for row, panel in enumerate(PANELS, 1):
        layout |= _axes(figure, row, panel)
    # All at once: each update of a figure costs milliseconds.
    figure.update_layout(layout)
    return figure


def _axes(figure: go.Figure, row: int, panel: Panel) -> dict[str, Any]:
    """Return a panel's axes and legend by their names in the layout."""
    subplot, right = (figure.get_subplot(row, 1, secondary_y=second) for second in (False, True))
    small = {"title_font_size": 12, "tickfont_size": 11}
    y = small | {"rangemode": "tozero", "nticks": 5, "tickmode": "auto"}
    x: dict[str, Any] = small | {"rangemode": "nonnegative"}
    if row == len(PANELS):
        x["title_text"] = TIME_TITLE
    left_y = y | {"title_text": panel.title, **panel.axis}
    right_y = y | {"title_text": panel.right_title, "showgrid": False, **panel.right_axis}
    return {
        subplot.yaxis.plotly_name: left_y,
        right.yaxis.plotly_name: right_y,
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


def _legend(row: int) -> str:
    return "legend" if row == 1 else f"legend{row}"


def timeline_traces(frames: Frames) -> list[TimelineTrace]:
    """Return every trace of the timeline, in an order that does not depend on the frames."""
    return [
        TimelineTrace(mark.trace | {"legend": _legend(row)}, mark.right, row)
        for row, panel in enumerate(PANELS, 1)
        for mark in _marks(panel, frames)
    ]


def _marks(panel: Panel, frames: Frames) -> Iterator[Mark]:
    for trace in panel.traces:
        yield Mark(_line(trace, frames), trace.right)
    if panel.marks is not None:
        yield from panel.marks(frames)


def _line(trace: Trace, frames: Frames) -> dict[str, Any]:
    times, values = trace.source.read(frames)
    line = {"color": trace.colour, "dash": trace.dash, "width": 2}
    return {
        "type": "scatter",
        "x": times,
        "y": values,
        "name": trace.label,
        "mode": "lines",
        "line": line | ({"shape": "hv"} if trace.step else {}),
        "hovertemplate": f"{trace.hover}<extra></extra>",
    }
