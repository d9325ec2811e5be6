"""The autoscaler of a simulation: its settings, its timers, and the tables that it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from workbench.whatif.autoscaler import Bounds
from workbench.whatif.policies import Policy
from workbench.whatif.reports import Series

if TYPE_CHECKING:
    from workbench.whatif.state import Floats, Ints

SAMPLE_S = 1.0
"""Seconds between two samples of the deployment, as in telemetry."""

(
    NOW,
    TICKS,
    NEXT_TICK_S,
    NEXT_SAMPLE_S,
    NEXT_REPORT_S,
    LAST_TOTAL,
    LAST_DESIRED,
    CHANGED,
) = range(8)
SAMPLES, DECISIONS, STARTED = range(3)


class Control(NamedTuple):
    """The autoscaler, its timers and what it writes down.

    `ongoing` has a row per slot and a last one for the queue of the handle, `figures` has
    `FIGURES` rows per slot. `due_s` has the next recording and the next report of each slot, and in
    its last row those of the handle. `rows` has room for the sources of a total.
    """

    bounds: Bounds
    policy: Policy
    record_s: float
    report_s: float
    look_back_s: float
    horizon_s: float
    ongoing: Series
    figures: Series
    due_s: Floats
    delays: Floats
    clock: Floats
    total: Floats
    rows: Ints
    start_s: Floats
    stop_s: Floats
    samples: Floats
    decisions: Floats
    replicas: Floats
    sizes: Ints
