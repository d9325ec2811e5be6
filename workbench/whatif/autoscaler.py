"""Ray Serve's decision on the number of replicas (Ray 2.60, `ray/serve/autoscaling_policy.py`).

A port of the default policy with its scaling factors of 1, of the delays and of the bounds. A test
compares it with Ray Serve's own classes, tick by tick.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from workbench.whatif._compiled import compiled

if TYPE_CHECKING:
    from workbench.whatif.state import Floats

TICK_S = 0.1
"""Seconds between two decisions of Ray Serve's controller."""

DELAY_TOLERANCE_S = 1e-6
"""Seconds by which a delay may fall short, as in Ray Serve."""

ROUNDING = 1e-9
"""A desired number is a whole one if it is this close. Ray Serve has no such tolerance: there the
rounding of a mean decides by chance whether 2.0000000000000004 replicas are 2 or 3."""

DIRECTION, SINCE_S = range(2)
"""Indices of the decision's state: -1, 0 or 1, and since when, in seconds."""


class Bounds(NamedTuple):
    """The bounds and delays of a decision."""

    min_replicas: int
    max_replicas: int
    upscale_delay_s: float
    downscale_delay_s: float
    downscale_to_zero_delay_s: float


@compiled
def desired_for(total: float, running: int, target: int, per_replica: float) -> float:
    """Return the replicas for `total` ongoing requests, before rounding."""
    if running == 0:
        return float(target)
    return running * (total / (per_replica * running))


@compiled
def decide(
    bounds: Bounds,
    state: Floats,
    now: float,
    total: float,
    desired: float,
    running: int,
    target: int,
) -> int:
    """Return the new target.

    Args:
        bounds: The bounds and delays.
        state: The direction of the last decisions and since when; updated.
        now: The time in seconds.
        total: Ongoing and queued requests.
        desired: What the policy asks for.
        running: The replicas that run.
        target: The target so far.
    """
    if running == 0 and total > 0:
        number = max(1, target)
    else:
        number = math.ceil(desired - ROUNDING)
        if running != 0 or number <= 0:
            number = _delayed(bounds, state, now, max(0, number), target)
    return max(bounds.min_replicas, min(bounds.max_replicas, number))


@compiled
def _delayed(bounds: Bounds, state: Floats, now: float, number: int, target: int) -> int:
    """Return `number` if it has been above or below the target for the delay, else the target."""
    direction = direction_of(number, target)
    if direction != state[DIRECTION] or direction == 0:
        state[DIRECTION], state[SINCE_S] = direction, now
    if direction == 0:
        return target
    if now - state[SINCE_S] + DELAY_TOLERANCE_S < delay_of(bounds, direction, target):
        return target
    if direction < 0 and target != 1:
        number = max(1, number)  # the last replica goes alone
    state[DIRECTION] = 0
    return number


@compiled
def delay_of(bounds: Bounds, direction: int, target: int) -> float:
    """Return the seconds that a direction must last."""
    if direction > 0:
        return bounds.upscale_delay_s
    return bounds.downscale_to_zero_delay_s if target == 1 else bounds.downscale_delay_s


@compiled
def direction_of(number: int, target: int) -> int:
    """Return 1 if a number of replicas is above the target, -1 if it is below, else 0."""
    return int(number > target) - int(number < target)
