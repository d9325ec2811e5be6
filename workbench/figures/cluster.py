"""Load, latency, replicas, engine and cost on one time axis, as `workbench.figures.panels` defines.

The traces are the same ones in the same order for any data. A live view can therefore update its
figure in place, and shows what the saved notebook shows later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from workbench.figures.panels import PANELS, Panel
from workbench.figures.style import BLUE, GREY, TIME_TITLE, VERMILLION, styled, titled

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.figures.cluster_frames import Frames
    from workbench.metrics.health import ClientHealth

_GAP_PX, _TOP_PX, _BOTTOM_PX = 28, 90, 45
"""Pixels above each panel, for its title and legend; above the first one, and below the last."""
_PANEL_PX = 640
HEIGHT = round(_TOP_PX + _BOTTOM_PX + sum(_GAP_PX + _PANEL_PX * panel.height for panel in PANELS))
"""Pixels of the whole figure."""
MAX_DECISIONS = 100
"""The latest decisions are drawn as lines across all panels."""


@dataclass(frozen=True)
class TimelineTrace:
    """A trace as plotly's dictionary, with its row (from 1) and whether it uses the right axis."""

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
    """Return a whole run on one time axis.

    Args:
        frames: The run, as read by `workbench.figures.cluster_frames.frames_of`.
        title: The title.
        health: The client's health; a client-limited run is marked.
        height: The height in pixels.
    """
    figure = blank_timeline(height)
    traces = timeline_traces(frames)
    figure.add_traces([placed.trace for placed in traces])
    filled = {placed.row for placed in traces if len(placed.trace["x"])}
    for row, note in enumerate(figure.layout.annotations[len(PANELS) :], 1):
        note.visible = row not in filled
    figure.update_layout(scales(frames) | {"shapes": shapes(frames)})
    return titled(figure, title, health)


def blank_timeline(
    height: int = HEIGHT, panels: Sequence[Panel] | None = None, *, top: int = _TOP_PX
) -> go.Figure:
    """Return the panels with their axes, titles and legends, without traces.

    The annotations are a title per panel, then the text of each panel that has no data.

    Args:
        height: The height in pixels.
        panels: The panels; by default all.
        top: Pixels above the first panel.
    """
    import plotly.graph_objects as go

    return go.Figure(_blank(height, tuple(panels or PANELS), top))


@lru_cache
def _blank(height: int, panels: tuple[Panel, ...], top: int) -> go.Figure:
    """Create the figure once: its axes take a third of a second, a copy a twentieth of that."""
    import plotly.graph_objects as go

    domains = _domains(height - top - _BOTTOM_PX, panels)
    titles, empties = [], []
    layout: dict[str, Any] = {"xaxis": {"anchor": f"y{2 * len(panels) - 1}"}}
    for row, (panel, domain) in enumerate(zip(panels, domains, strict=True), 1):
        layout |= _axes(row, panel, domain)
        titles.append(_title(panel, domain))
        empties.append(_empty(panel, domain))
    layout["yaxis"] = layout.pop("yaxis1")
    figure = styled(go.Figure(layout=layout | {"annotations": [*titles, *empties]}), height)
    figure.update_layout(
        margin={"l": 70, "r": 90, "t": top, "b": _BOTTOM_PX},
        # All panels have one x axis, so that one hover box shows a moment in all of them.
        hovermode="x unified",
        hoversubplots="axis",
        barmode="overlay",
        showlegend=False,
        dragmode="zoom",
    )
    figure.update_xaxes(
        title_text=TIME_TITLE,
        title_font_size=12,
        tickfont_size=11,
        rangemode="nonnegative",
        hoverformat=",.1f",
        unifiedhovertitle_text="<b>%{x} s</b>",
        showspikes=True,
        spikemode="across",
        spikesnap="cursor",
        spikethickness=-2,  # one pixel, without the border that a positive one gets
        spikedash="solid",
        spikecolor=GREY,
    )
    return figure


def _domains(height: int, panels: Sequence[Panel]) -> list[tuple[float, float]]:
    """Return the part of the height that each panel takes, from top to bottom."""
    gaps = _GAP_PX * (len(panels) - 1)
    unit = (height - gaps) / sum(panel.height for panel in panels) / height
    domains, top = [], 1.0
    for panel in panels:
        bottom = max(0.0, top - unit * panel.height)
        domains.append((bottom, top))
        top = bottom - _GAP_PX / height
    return domains


def _axes(row: int, panel: Panel, domain: tuple[float, float]) -> dict[str, Any]:
    """Return a panel's axes by their names in the layout."""
    small = {"title_font_size": 11, "tickfont_size": 11, "domain": domain}
    y = small | {"rangemode": "tozero", "nticks": 4, "tickmode": "auto", "anchor": "x"}
    right = {"title_text": panel.right_title, "title_standoff": 6, "showgrid": False}
    right |= {"overlaying": axis_name(row), "side": "right", "zeroline": False}
    return {
        f"yaxis{2 * row - 1}": y | dict(panel.axis),
        f"yaxis{2 * row}": y | right | dict(panel.right_axis),
    }


def _title(panel: Panel, domain: tuple[float, float]) -> dict[str, Any]:
    place = {"x": 0, "xref": "paper", "xanchor": "left", "y": domain[1], "yref": "paper"}
    keys = [*(trace.key for trace in panel.traces if trace.key), *panel.keys]
    # plotly's own legends take space from the panels, and wrap into the panel above.
    legend = [
        f'<span style="color:{colour}">{symbol}</span> {name}' for symbol, colour, name in keys
    ]
    parts = [f"<b>{panel.title}</b>", *legend]
    # plotly takes what is between two dollars for a formula.
    joined = "&nbsp;&nbsp;&nbsp;".join(parts).replace("$", "&#36;")
    text = {"text": joined, "font": {"size": 11}}
    return place | text | {"yanchor": "bottom", "yshift": 3, "showarrow": False}


def _empty(panel: Panel, domain: tuple[float, float]) -> dict[str, Any]:
    place = {"x": 0.5, "xref": "paper", "y": sum(domain) / 2, "yref": "paper"}
    return place | {"text": panel.empty, "font": {"size": 12}, "showarrow": False}


def axis_name(row: int, *, right: bool = False) -> str:
    """Return the name of a y axis, as traces refer to it."""
    number = 2 * row - (not right)
    return "y" if number == 1 else f"y{number}"


def _layout_name(axis: str) -> str:
    return axis.replace("y", "yaxis", 1)


def scales(frames: Frames, panels: Sequence[Panel] | None = None) -> dict[str, Any]:
    """Return the properties of axes that depend on the data, by the name of the axis."""
    found = {}
    for row, panel in enumerate(panels or PANELS, 1):
        for right, scale in ((False, panel.scale), (True, panel.right_scale)):
            if scale is not None:
                found[_layout_name(axis_name(row, right=right))] = dict(scale(frames))
    return found


def shapes(frames: Frames, panels: Sequence[Panel] | None = None) -> list[dict[str, Any]]:
    """Return the lines across the panels: the decisions, and the limits of each panel."""
    limits = [
        _limit(row, value, name)
        for row, panel in enumerate(panels or PANELS, 1)
        if panel.limits is not None
        for value, name in panel.limits(frames)
    ]
    return [*limits, *_decision_lines(frames)]


def _limit(row: int, value: float, name: str) -> dict[str, Any]:
    label = {"text": name, "textposition": "end", "font": {"size": 11, "color": VERMILLION}}
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "yref": axis_name(row),
        "y0": value,
        "y1": value,
        "line": {"color": VERMILLION, "width": 1.5, "dash": "dash"},
        "label": label | {"yanchor": "bottom", "padding": 1},
    }


def _decision_lines(frames: Frames) -> Iterator[dict[str, Any]]:
    """Yield a line per decision: solid for more replicas, dotted for fewer."""
    for row in frames.samples("decision").tail(MAX_DECISIONS).to_dict("records"):
        more = row["to_target"] > row["from_target"]
        style = {"color": VERMILLION if more else BLUE, "dash": "solid" if more else "dot"}
        at = {"x0": row["time_s"], "x1": row["time_s"], "yref": "paper", "y0": 0, "y1": 1}
        yield {"type": "line", **at, "line": style | {"width": 1}, "opacity": 0.7}


def timeline_traces(frames: Frames, panels: Sequence[Panel] | None = None) -> list[TimelineTrace]:
    """Return every trace of the timeline, in an order that does not depend on the frames."""
    return [
        *line_traces(frames, panels),
        *mark_traces(frames, panels),
    ]


def line_traces(frames: Frames, panels: Sequence[Panel] | None = None) -> list[TimelineTrace]:
    """Return the lines of all panels. As a run continues, they only get more points."""
    found = []
    for row, panel in enumerate(panels or PANELS, 1):
        for line in panel.traces:
            times, values, texts = line.points(frames)
            data = {"x": times, "y": values} | ({} if texts is None else {"text": texts})
            found.append(_placed(line.style() | data, row, right=line.right))
    return found


def mark_traces(frames: Frames, panels: Sequence[Panel] | None = None) -> list[TimelineTrace]:
    """Return the other traces of all panels."""
    return [
        _placed(mark, row)
        for row, panel in enumerate(panels or PANELS, 1)
        if panel.marks is not None
        for mark in panel.marks(frames)
    ]


def _placed(trace: dict[str, Any], row: int, *, right: bool = False) -> TimelineTrace:
    axes = {"xaxis": "x", "yaxis": axis_name(row, right=right)}
    return TimelineTrace(trace | axes, row, right)
