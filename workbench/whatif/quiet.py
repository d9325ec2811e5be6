"""Skip the ticks of the controller that cannot change anything.

Between two reports the mean of the ongoing requests tends to its last value, without turning. So if
the first and the last tick ask for the same direction, all ticks between them do. They change
nothing if that was the direction before and its delay does not end.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workbench.whatif._compiled import inner
from workbench.whatif.autoscaler import (
    DELAY_TOLERANCE_S,
    DIRECTION,
    ROUNDING,
    SINCE_S,
    TICK_S,
    delay_of,
    desired_for,
    direction_of,
)
from workbench.whatif.dispatch import next_arrival_s
from workbench.whatif.policies import REQUESTS
from workbench.whatif.reports import mean_total
from workbench.whatif.state import ACTIVE, HANDLE_SIZE, LEAVING, NEW, TARGET
from workbench.whatif.tables import (
    CHANGED,
    LAST_DESIRED,
    LAST_TOTAL,
    NEXT_REPORT_S,
    NEXT_SAMPLE_S,
    NEXT_TICK_S,
    TICKS,
)

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet
    from workbench.whatif.tables import Control


@inner
def skip_quiet_ticks(fleet: Fleet, control: Control) -> None:
    """Move the next tick behind those before the next report or sample that change nothing."""
    clock, counts = control.clock, fleet.counts
    if clock[CHANGED] or counts[ACTIVE] != counts[TARGET] or counts[HANDLE_SIZE] > 0:
        return
    end_s = min(clock[NEXT_REPORT_S], clock[NEXT_SAMPLE_S])
    if counts[ACTIVE] == 0:
        end_s = min(end_s, next_arrival_s(fleet))
    ticks = int((end_s - clock[NEXT_TICK_S]) / TICK_S)
    if ticks < 1 or counts[NEW] + counts[LEAVING] > 0:
        return
    last_s = (clock[TICKS] + ticks - 1) * TICK_S
    bounds = control.bounds
    fixed = bounds.min_replicas == bounds.max_replicas
    if not fixed and not _is_quiet(fleet, control, clock[NEXT_TICK_S], last_s):
        return
    clock[TICKS] += ticks
    clock[NEXT_TICK_S] = clock[TICKS] * TICK_S


@inner
def _is_quiet(fleet: Fleet, control: Control, first_s: float, last_s: float) -> bool:
    """Return whether no tick from `first_s` to `last_s` changes the decision or its state."""
    if control.policy.kind != REQUESTS:
        return False
    direction, target = control.delays[DIRECTION], fleet.counts[TARGET]
    if _direction(fleet, control, first_s) != direction:
        return False
    if _direction(fleet, control, last_s) != direction:
        return False
    delay_s = delay_of(control.bounds, direction, target)
    waited_s = last_s - control.delays[SINCE_S] + DELAY_TOLERANCE_S
    return bool(direction == 0 or waited_s < delay_s)


@inner
def _direction(fleet: Fleet, control: Control, now: float) -> int:
    """Return whether a tick asks for more replicas (1), for fewer (-1) or neither (0)."""
    counts, total = fleet.counts, control.total
    mean = mean_total((total[0], total[1], total[2], total[3]), now)
    target = counts[TARGET]
    desired = desired_for(mean, counts[ACTIVE], target, control.policy.per_replica)
    control.clock[LAST_TOTAL], control.clock[LAST_DESIRED] = mean, desired
    if counts[ACTIVE] == 0 and mean > 0:
        return 2
    return direction_of(math.ceil(desired - ROUNDING), target)
