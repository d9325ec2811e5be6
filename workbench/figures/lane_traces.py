"""Swim-lanes of replicas as plotly traces: a bar per state, and a hover text per moment."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.figures.cluster_frames import Frames, Vector, thinned
from workbench.figures.lanes import LANE_STATES, Lanes, lane_texts, short
from workbench.figures.style import BLUE, GREY, ORANGE, SKY

if TYPE_CHECKING:
    from collections.abc import Sequence

LANE_STYLES = {
    "starting": (ORANGE, "/"),
    "serving": (BLUE, ""),
    "idle": (SKY, ""),
    "draining": (GREY, "x"),
}
"""The colour and the pattern of each state."""
LANE_KEYS = (
    ("▨", ORANGE, "Starting"),
    ("■", BLUE, "Serving"),
    ("■", SKY, "Idle"),
    ("▩", GREY, "Draining"),
)
"""What the legend shows of them: a symbol, its colour and a name."""
MAX_LINES = 12
"""Replicas that a hover text lists."""


def lane_marks(frames: Frames) -> Iterator[dict[str, Any]]:
    """Yield a trace of bars for each state; a bar begins at its `base`, in seconds."""
    for state in LANE_STATES:
        segments = list(frames.lanes.segments(state))
        colour, pattern = LANE_STYLES[state]
        yield {
            "type": "bar",
            "orientation": "h",
            "name": state.capitalize(),
            "base": [round(segment.start_s, 2) for _, segment in segments],
            "x": [round(segment.end_s - segment.start_s, 2) for _, segment in segments],
            "y": [row for row, _ in segments],
            "width": 0.7,
            "marker": {"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern}},
            "hoverinfo": "skip",
        }


def lane_axis(lanes: Lanes, *, right: bool) -> dict[str, Any]:
    """Return the axis of the rows: the replicas on the left, or what they do on the right.

    There are at least two rows, so that one replica is not a thick bar.
    """
    rows = lanes.rows
    texts = [row.load() if right else short(row.replica) for row in rows]
    bottom = max(2, len(rows)) - 0.5
    ticks = {"tickvals": list(range(len(rows))), "ticktext": [html.escape(text) for text in texts]}
    return ticks | {"range": [bottom, -0.5]}


class LaneTexts:
    """An invisible line, whose hover text lists all replicas at a moment."""

    right = True  # otherwise plotly does not draw that axis
    key = None

    def points(self, frames: Frames) -> tuple[Vector, Vector, list[str] | None]:
        """Return times in seconds, zeros, and the texts."""
        moments = list(lane_texts(frames.samples("replica")))
        times = np.array([at_s for at_s, _ in moments], float)
        kept, zeros = thinned(times, np.zeros(len(times)))
        step = -(-len(times) // len(kept)) if len(kept) else 1
        return kept, zeros, [_lines(lines) for _, lines in moments[::step]]

    def style(self) -> dict[str, Any]:
        """Return the trace without its points, as plotly's dictionary."""
        return {
            "type": "scatter",
            "name": "Replicas",
            "mode": "lines",
            "line": {"width": 0},
            "hovertemplate": "%{text}<extra></extra>",
        }


def _lines(lines: Sequence[str]) -> str:
    further = len(lines) - MAX_LINES
    more = [f"and {further} more"] if further > 0 else []
    return "<br>".join(html.escape(line) for line in [*lines[:MAX_LINES], *more])
