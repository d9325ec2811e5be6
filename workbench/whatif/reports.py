"""The figures that Ray Serve's controller sees: recorded in replicas and handles, then reported.

A port of `InMemoryMetricsStore` and of the aggregation in `DeploymentAutoscalingState` (Ray 2.60,
`ray/serve/_private/metrics_utils.py`, `autoscaling_metrics_merge.py`). A figure is recorded every
`min(0.2 * look_back_period_s, metrics_interval_s)` and the recorded points are reported every
`metrics_interval_s`. The controller adds the step functions of all sources, and takes their mean
over time from when all sources have a point until now.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from workbench.whatif._compiled import compiled, inner

if TYPE_CHECKING:
    from workbench.whatif.state import Floats, Ints

RECORD_FACTOR = 0.2
"""Share of the look-back period between two recorded points (Ray Serve's default)."""

SMALLEST_WINDOW_S = 1e-3
"""Seconds for which the last point counts if it is not in the past, as in Ray Serve."""


POINT = np.dtype(
    [("at_s", "f8"), ("value", "f8"), ("reported_s", "f8"), ("reported", "f8")], align=True
)
SIZES = np.dtype([("own", "i8"), ("reported", "i8")], align=True)


class Series(NamedTuple):
    """Points in time, a row per source: as recorded at the source, and as last reported."""

    points: Any
    sizes: Any


def empty_series(rows: int, points: int) -> Series:
    """Return `rows` sources without points, with room for `points` in each."""
    points_table = np.zeros((rows, points), POINT)
    return Series(points_table.view(np.recarray), np.zeros(rows, SIZES).view(np.recarray))


def points_needed(look_back_s: float, record_s: float) -> int:
    """Return how many points of a source fit into the look-back period."""
    return math.ceil(look_back_s / record_s) + 2


@compiled
def prune(series: Series, row: int, from_s: float) -> None:
    """Drop the points of a source up to `from_s`."""
    size, old = series.sizes[row].own, 0
    while old < size and series.points[row, old].at_s <= from_s:
        old += 1
    if old > 0:
        for at in range(old, size):
            series.points[row, at - old].at_s = series.points[row, at].at_s
            series.points[row, at - old].value = series.points[row, at].value
        series.sizes[row].own = size - old


@compiled
def record(series: Series, row: int, now: float, value: float, look_back_s: float) -> None:
    """Add a point to a source, and drop those before the look-back period."""
    prune(series, row, now - look_back_s)
    at = series.sizes[row].own
    series.points[row, at].at_s, series.points[row, at].value = now, value
    series.sizes[row].own = at + 1


@compiled
def report(series: Series, row: int, now: float, look_back_s: float) -> None:
    """Send the points of a source to the controller."""
    prune(series, row, now - look_back_s)
    size = series.sizes[row].own
    for at in range(size):
        point = series.points[row, at]
        point.reported_s, point.reported = point.at_s, point.value
    series.sizes[row].reported = size


@inner
def earliest(due_s: Floats) -> float:
    """Return the earliest time of a table with two columns."""
    first_s = np.inf
    for row in range(len(due_s)):
        first_s = min(first_s, due_s[row, 0], due_s[row, 1])
    return first_s


@compiled
def clear(series: Series, row: int) -> None:
    """Forget a source."""
    series.sizes[row].own = series.sizes[row].reported = 0


@compiled
def _rounded(at_s: float, several: bool) -> float:
    """Round to 10 ms, half up, as Ray Serve does where it adds several sources."""
    return math.floor(at_s * 100 + 0.5) / 100 if several else at_s


@compiled
def total_of(series: Series, rows: Ints) -> tuple[float, float, float, float]:
    """Add the sources in `rows`; return what :func:`mean_total` needs.

    Returns:
        The integral up to the last change, the value after it, its time, and the start of the
        window. All are 0 without points.
    """
    sources, aligned_s = 0, -np.inf
    for row in rows:
        if series.sizes[row].reported > 0:
            sources += 1
            aligned_s = max(aligned_s, series.points[row, 0].reported_s)
    first_s, last_s, value = _changes(series, rows, sources > 1)
    if first_s == np.inf:
        return 0.0, 0.0, 0.0, 0.0
    start_s = first_s
    if sources > 1 and aligned_s <= last_s:
        start_s = max(aligned_s, first_s)
    integral = 0.0
    for row in rows:
        before = 0.0
        for at in range(series.sizes[row].reported):
            now = series.points[row, at].reported
            at_s = _rounded(series.points[row, at].reported_s, sources > 1)
            integral += (now - before) * (last_s - max(at_s, start_s))
            before = now
    return integral, value, last_s, start_s


@compiled
def _changes(series: Series, rows: Ints, several: bool) -> tuple[float, float, float]:
    """Return the first and the last time at which a source changed, and the total after it."""
    first_s, last_s, value = np.inf, -np.inf, 0.0
    for row in rows:
        before = 0.0
        for at in range(series.sizes[row].reported):
            now = series.points[row, at].reported
            # A single source is taken as it is, with the points at which it does not change.
            if now != before or not several:
                at_s = _rounded(series.points[row, at].reported_s, several)
                first_s, last_s = min(first_s, at_s), max(last_s, at_s)
            before = now
        value += before
    return first_s, last_s, value


@compiled
def mean_total(total: tuple[float, float, float, float], now: float) -> float:
    """Return the mean over time of what :func:`total_of` returned, from its start until `now`."""
    integral, value, last_s, start_s = total
    window_s = now - last_s
    if window_s <= 0:
        window_s = SMALLEST_WINDOW_S
    length_s = last_s + window_s - start_s
    return (integral + value * window_s) / length_s if length_s > 0 else 0.0


@compiled
def mean_row(series: Series, row: int, now: float) -> float:
    """Return the mean over time of what one source reported, until `now`; 0 without points."""
    size = series.sizes[row].reported
    if size == 0:
        return 0.0
    points = series.points[row]
    last_s = points[size - 1].reported_s
    window_s = now - last_s
    if window_s <= 0:
        window_s = SMALLEST_WINDOW_S
    integral = points[size - 1].reported * window_s
    for at in range(size - 1):
        integral += points[at].reported * (points[at + 1].reported_s - points[at].reported_s)
    return float(integral / (last_s + window_s - points[0].reported_s))
