"""Starts and ends of replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workbench.whatif._compiled import compiled, inner
from workbench.whatif.policies import FIGURES
from workbench.whatif.prefixes import forget_prefixes
from workbench.whatif.reports import clear, earliest
from workbench.whatif.state import (
    ACTIVE,
    FREE,
    LEAVING,
    NEW,
    RUNNING,
    STARTING,
    STARTS,
    STOPPING,
    TARGET,
)
from workbench.whatif.tables import CHANGED, NEXT_REPORT_S, STARTED

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet
    from workbench.whatif.tables import Control


@inner
def take_over(fleet: Fleet, control: Control, now: float) -> None:
    """Let replicas that have started take requests, and free the slots of those that ended."""
    replicas = fleet.replicas
    if fleet.counts[NEW] + fleet.counts[LEAVING] == 0:
        return
    for slot in range(len(replicas)):
        if replicas[slot].state == STARTING and replicas[slot].ready_s <= now:
            start_serving(fleet, control, slot, now)
        elif replicas[slot].state == STOPPING:
            if replicas[slot].ongoing + replicas[slot].queued > 0:
                replicas[slot].ready_s = now
            elif now - replicas[slot].ready_s >= replicas[slot].stop_s:
                _end(fleet, control, slot, now)


@compiled
def start_serving(fleet: Fleet, control: Control, slot: int, now: float) -> None:
    """Add a replica to those that get requests; it begins to record and to report."""
    replicas = fleet.replicas
    replicas[slot].state = RUNNING
    control.clock[CHANGED] = 1
    fleet.replicas[fleet.counts[ACTIVE]].active = slot
    fleet.counts[ACTIVE] += 1
    fleet.counts[NEW] -= 1
    control.replicas[replicas[slot].number, 1] = now
    if control.bounds.min_replicas < control.bounds.max_replicas:
        control.due_s[slot, :] = now
        control.clock[NEXT_REPORT_S] = earliest(control.due_s)


@inner
def _end(fleet: Fleet, control: Control, slot: int, now: float) -> None:
    replicas = fleet.replicas
    replicas[slot].state = FREE
    fleet.counts[LEAVING] -= 1
    control.replicas[replicas[slot].number, 3] = now
    control.replicas[replicas[slot].number, 4] = replicas[slot].busy_s
    replicas[slot].busy_s = 0.0
    replicas[slot].used = replicas[slot].firsts = 0
    for at in range(fleet.firsts.shape[1]):
        fleet.firsts[slot, at].at_s = -np.inf
    forget_prefixes(fleet, slot)
    clear(control.ongoing, slot)
    for figure in range(FIGURES):
        clear(control.figures, slot * FIGURES + figure)


@inner
def scale(fleet: Fleet, control: Control, now: float) -> None:
    """Start or stop replicas until their number is the target, if there are free slots."""
    counts = fleet.counts
    target, held = counts[TARGET], counts[ACTIVE] + counts[NEW]
    free = len(fleet.replicas) - held - counts[LEAVING]
    while held < target and free > 0:
        begin_start(fleet, control, now)
        held, free = held + 1, free - 1
    while held > target:
        _stop_one(fleet, control, now)
        held -= 1


@compiled
def begin_start(fleet: Fleet, control: Control, now: float) -> int:
    """Start a replica in a free slot; return the slot."""
    replicas, counts, sizes = fleet.replicas, fleet.counts, control.sizes
    slot = 0
    while replicas[slot].state != FREE:
        slot += 1
    number = counts[STARTS]
    counts[STARTS] += 1
    counts[NEW] += 1
    replicas[slot].state, replicas[slot].number = STARTING, number
    replicas[slot].ready_s = now + control.start_s[number % len(control.start_s)]
    replicas[slot].stop_s = control.stop_s[number % len(control.stop_s)]
    control.replicas[number, 0] = now
    control.replicas[number, 1:4] = np.inf
    sizes[STARTED] = number + 1
    return slot


@inner
def _stop_one(fleet: Fleet, control: Control, now: float) -> None:
    """Stop a replica that is still starting, else the newest one."""
    replicas, counts = fleet.replicas, fleet.counts
    slot = -1
    for other in range(len(replicas)):
        starting = replicas[other].state == STARTING
        if starting and (slot < 0 or replicas[other].number > replicas[slot].number):
            slot = other
    if slot < 0:
        counts[ACTIVE] -= 1
        slot = fleet.replicas[counts[ACTIVE]].active
    else:
        counts[NEW] -= 1
    counts[LEAVING] += 1
    replicas[slot].state = STOPPING
    replicas[slot].ready_s = now
    control.due_s[slot, :] = np.inf
    control.clock[CHANGED] = 1
    control.replicas[replicas[slot].number, 2] = now
