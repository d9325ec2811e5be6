"""The control loop: time passes, replicas report, the autoscaler decides, replicas start and stop.

As in Ray Serve's controller, a tick first takes over the replicas that have started or stopped,
then starts or stops replicas for the target, then decides on a new target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.whatif._compiled import compiled, inner
from workbench.whatif.autoscaler import (
    DIRECTION,
    SINCE_S,
    TICK_S,
    decide,
    desired_for,
    direction_of,
)
from workbench.whatif.dispatch import advance, drain_handle
from workbench.whatif.lifecycle import scale, take_over
from workbench.whatif.policies import REQUESTS, policy_desired
from workbench.whatif.quiet import skip_quiet_ticks
from workbench.whatif.reporting import report_at_once, take_reports
from workbench.whatif.reports import mean_row, mean_total, total_of
from workbench.whatif.state import (
    ACTIVE,
    DONE,
    HANDLE_SIZE,
    LEAVING,
    NEW,
    SHEDS,
    TARGET,
)
from workbench.whatif.tables import (
    CHANGED,
    DECISIONS,
    LAST_DESIRED,
    LAST_TOTAL,
    NEXT_REPORT_S,
    NEXT_SAMPLE_S,
    NEXT_TICK_S,
    NOW,
    SAMPLE_S,
    SAMPLES,
    STARTED,
    TICKS,
)

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet, Gate, Model
    from workbench.whatif.tables import Control


@compiled
def run(model: Model, gate: Gate, fleet: Fleet, control: Control) -> bool:
    """Simulate until everything has ended; return False if a table is full before."""
    clock = control.clock
    while clock[NOW] < control.horizon_s or fleet.counts[DONE] < len(fleet.requests):
        if _is_full(control):
            return False
        skip_quiet_ticks(fleet, control)
        until_s = min(clock[NEXT_TICK_S], clock[NEXT_SAMPLE_S], clock[NEXT_REPORT_S])
        zero = gate.composed == 1 and fleet.counts[ACTIVE] == 0
        stopped_s = advance(model, gate, fleet, until_s, zero)
        if stopped_s < until_s:
            report_at_once(fleet, control, stopped_s)
            continue
        clock[NOW] = until_s
        if until_s == clock[NEXT_REPORT_S]:
            take_reports(model, gate, fleet, control, until_s)
        if until_s == clock[NEXT_TICK_S]:
            _tick(model, gate, fleet, control, until_s)
            clock[TICKS] += 1
            clock[NEXT_TICK_S] = clock[TICKS] * TICK_S
        if until_s == clock[NEXT_SAMPLE_S]:
            _take_sample(fleet, control, until_s)
            clock[NEXT_SAMPLE_S] += SAMPLE_S
    return True


@inner
def _is_full(control: Control) -> bool:
    sizes, room = control.sizes, 2
    return bool(
        sizes[SAMPLES] + room > len(control.samples)
        or sizes[DECISIONS] + room > len(control.decisions)
        or sizes[STARTED] + control.bounds.max_replicas > len(control.replicas)
    )


@inner
def _tick(model: Model, gate: Gate, fleet: Fleet, control: Control, now: float) -> None:
    take_over(fleet, control, now)
    scale(fleet, control, now)
    if fleet.counts[HANDLE_SIZE] > 0:
        drain_handle(model, gate, fleet, now)
    bounds = control.bounds
    if bounds.min_replicas < bounds.max_replicas:
        _decide(gate, fleet, control, now)


@inner
def _decide(gate: Gate, fleet: Fleet, control: Control, now: float) -> None:
    counts, policy, clock = fleet.counts, control.policy, control.clock
    running, target = counts[ACTIVE], counts[TARGET]
    total = _mean_ongoing(gate, fleet, control, now)
    if policy.kind == REQUESTS:
        desired = desired_for(total, running, target, policy.per_replica)
    else:
        handle = len(fleet.replicas)
        in_handle = mean_row(control.ongoing, handle, now) if gate.composed == 1 else 0.0
        desired = policy_desired(policy, fleet, control.figures, now, in_handle, target)
    state = control.delays
    direction, since_s = state[DIRECTION], state[SINCE_S]
    new = decide(control.bounds, state, now, total, desired, running, target)
    clock[LAST_TOTAL], clock[LAST_DESIRED] = total, desired
    if new != target:
        same = direction == direction_of(new, target)
        wanted_s = since_s if same else now
        row = control.decisions[control.sizes[DECISIONS]]
        row[0], row[1], row[2] = now, target, new
        row[3], row[4], row[5] = desired, total, wanted_s
        control.sizes[DECISIONS] += 1
        counts[TARGET] = new


@inner
def _mean_ongoing(gate: Gate, fleet: Fleet, control: Control, now: float) -> float:
    """Return the ongoing and queued requests as the controller counts them."""
    running, total = fleet.counts[ACTIVE], control.total
    if control.clock[CHANGED]:
        rows = control.rows[: running + gate.composed]
        for at in range(running):
            rows[at] = fleet.replicas[at].active
        if gate.composed == 1:
            rows[running] = len(fleet.replicas)
        total[0], total[1], total[2], total[3] = total_of(control.ongoing, rows)
        control.clock[CHANGED] = 0
    return mean_total((total[0], total[1], total[2], total[3]), now)


@inner
def _take_sample(fleet: Fleet, control: Control, now: float) -> None:
    replicas, counts, clock = fleet.replicas, fleet.counts, control.clock
    row = control.samples[control.sizes[SAMPLES]]
    control.sizes[SAMPLES] += 1
    row[0], row[1], row[2] = now, counts[TARGET], counts[ACTIVE]
    row[3], row[4] = counts[NEW], counts[LEAVING]
    row[5], row[6] = clock[LAST_DESIRED], clock[LAST_TOTAL]
    row[7] = counts[HANDLE_SIZE]
    for slot in range(len(replicas)):
        row[7] += replicas[slot].waiting + replicas[slot].queued
    row[8] = counts[SHEDS]
