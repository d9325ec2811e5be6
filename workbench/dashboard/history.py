"""The points of the live figure's lines: all that the page has, with a limited size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from workbench.figures.cluster_frames import GAP_S, Vector

MAX_POINTS = 2400
"""Points per line; if there are more, the older ones are thinned."""
RECENT_POINTS = 400
"""The latest points, of at least five minutes, which are never thinned."""

Points: TypeAlias = tuple[Vector, Vector, list[str] | None]
"""Times in seconds since the start of the run, values, and hover texts or None."""


@dataclass
class Line:
    """The points of one line, ready for JSON: a missing value is None."""

    x: list[float] = field(default_factory=list)
    y: list[float | None] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    def thin(self) -> None:
        """Keep every second of the older points."""
        lists: tuple[list[Any], ...] = (self.x, self.y, self.text)
        for points in lists:
            points[:-RECENT_POINTS] = points[:-RECENT_POINTS:2]

    def fields(self) -> dict[str, Any]:
        """Return the points as plotly's properties of a trace."""
        return {"x": self.x, "y": self.y} | ({"text": self.text} if self.text else {})


class History:
    """The lines of the live figure. Each change has a number, so that a page notices a lost one.

    Attributes:
        number: The number of changes so far.
        lines: The lines in the order of the figure.
    """

    def __init__(self, lines: int) -> None:
        self.number = 0
        self.lines = [Line() for _ in range(lines)]

    def extend(self, found: Sequence[Points], *, final: bool = False) -> dict[str, Any] | None:
        """Add the points that are new, and return the message that tells a page; None if none is.

        Args:
            found: The latest points of each line, in order of time.
            final: Whether these are the last ones. If not, the newest is held back: samples of the
                same moment may be missing from it.
        """
        added = [
            [index, *new]
            for index, (line, points) in enumerate(zip(self.lines, found, strict=True))
            if (new := _extend(line, points, final))[0]
        ]
        if not added:
            return None
        self.number += 1
        if max(len(line.x) for line in self.lines) <= MAX_POINTS:
            return {"type": "points", "number": self.number, "lines": added}
        for line in self.lines:
            if len(line.x) > MAX_POINTS // 2:
                line.thin()
        return self.message()

    def message(self) -> dict[str, Any]:
        """Return the message that replaces all that a page has."""
        return {"type": "history", "history": self.state()}

    def state(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {"number": self.number, "lines": [line.fields() for line in self.lines]}


def _extend(line: Line, points: Points, final: bool) -> tuple[list[Any], list[Any], list[Any]]:
    times, values, texts = points
    last_s = line.x[-1] if line.x else -np.inf
    start = int(np.searchsorted(times, last_s, side="right"))
    stop = len(times) if final else len(times) - 1
    if start >= stop:
        return [], [], []
    x, y = times[start:stop].tolist(), _without_nan(values[start:stop])
    text = [] if texts is None else texts[start:stop]
    if x[0] - last_s > GAP_S and line.x and y[0] is not None:
        # The earlier sample has left the window from which the gaps were found.
        x, y = [x[0] - GAP_S / 2, *x], [None, *y]
        text = ["", *text] if text else text
    line.x += x
    line.y += y
    line.text += text
    return x, y, text


def _without_nan(values: Vector) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
