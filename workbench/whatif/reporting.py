"""What replicas and the deployment handle record and report, and when.

On the direct path a replica reports its requests. On the composed path the handle reports the
requests that it sent to each replica, and those that wait in it. Figures for this project's
policies come from the replicas on both paths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.whatif._compiled import inner
from workbench.whatif.policies import (
    BATCH,
    FIGURES,
    KV_USAGE,
    REQUESTS,
    TTFT,
    TTFT_TARGET,
    WAITING,
    engine_figures,
    recent_ttft,
)
from workbench.whatif.reports import earliest, record, report
from workbench.whatif.state import HANDLE_SIZE
from workbench.whatif.tables import CHANGED, NEXT_REPORT_S

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet, Gate, Model
    from workbench.whatif.tables import Control


@inner
def report_at_once(fleet: Fleet, control: Control, now: float) -> None:
    """Report the number of queued requests, as a handle does when it finds no running replica."""
    ongoing, handle = control.ongoing, len(fleet.replicas)
    if ongoing.sizes[handle].own > 0:
        report(ongoing, handle, now, control.look_back_s)
    else:
        ongoing.points[handle, 0].reported_s = now
        ongoing.points[handle, 0].reported = fleet.counts[HANDLE_SIZE]
        ongoing.sizes[handle].reported = 1
    control.clock[CHANGED] = 1


@inner
def take_reports(model: Model, gate: Gate, fleet: Fleet, control: Control, now: float) -> None:
    """Do what is due now: a report goes out before a point of the same time is recorded."""
    due_s, slots = control.due_s, len(fleet.replicas)
    for row in range(slots + 1):
        if due_s[row, 1] <= now:
            due_s[row, 1] += control.report_s
            _report_row(gate, fleet, control, row, now)
        if due_s[row, 0] <= now:
            due_s[row, 0] += control.record_s
            _record_row(model, gate, fleet, control, row, now)
    control.clock[NEXT_REPORT_S] = earliest(due_s)


@inner
def _report_row(gate: Gate, fleet: Fleet, control: Control, row: int, now: float) -> None:
    control.clock[CHANGED] = 1
    look_back_s, slots = control.look_back_s, len(fleet.replicas)
    if row < slots:
        for figure in range(FIGURES):
            report(control.figures, row * FIGURES + figure, now, look_back_s)
    if row < slots and gate.composed == 0:
        report(control.ongoing, row, now, look_back_s)
    if row == slots:
        for source in range(slots + 1):
            report(control.ongoing, source, now, look_back_s)


@inner
def _record_row(
    model: Model, gate: Gate, fleet: Fleet, control: Control, row: int, now: float
) -> None:
    replicas, slots = fleet.replicas, len(fleet.replicas)
    if row < slots and gate.composed == 0:
        held = replicas[row].ongoing + replicas[row].queued
        record(control.ongoing, row, now, float(held), control.look_back_s)
    if row == slots:
        for slot in range(slots):
            if replicas[slot].used:
                count = float(replicas[slot].ongoing)
                record(control.ongoing, slot, now, count, control.look_back_s)
        queued = float(fleet.counts[HANDLE_SIZE])
        record(control.ongoing, slots, now, queued, control.look_back_s)
    if row < slots and control.policy.kind != REQUESTS:
        _record_figures(model, fleet, control, row, now)


@inner
def _record_figures(model: Model, fleet: Fleet, control: Control, slot: int, now: float) -> None:
    figures, look_back_s, row = control.figures, control.look_back_s, slot * FIGURES
    waiting, batch, usage = engine_figures(model, fleet, slot)
    record(figures, row + WAITING, now, waiting, look_back_s)
    record(figures, row + BATCH, now, batch, look_back_s)
    record(figures, row + KV_USAGE, now, usage, look_back_s)
    if control.policy.kind == TTFT_TARGET:
        ttft_s = recent_ttft(fleet, slot, now, control.policy.quantile)
        if not np.isnan(ttft_s):
            record(figures, row + TTFT, now, ttft_s, look_back_s)
