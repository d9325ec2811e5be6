"""The choice of a replica for a request, as Ray Serve's request routers make it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.whatif._compiled import inner
from workbench.whatif.prefixes import cached_tokens
from workbench.whatif.state import ACTIVE, DRAWS, POWER_OF_TWO, PREFIX_AWARE, TURN

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet, Gate, Model

MATCH_RATE = 0.1
"""Share of a prompt that a replica must have seen to be chosen for it (Ray Serve's default)."""


@inner
def choose(model: Model, gate: Gate, fleet: Fleet, request: int) -> int:
    """Return the slot for a request, -1 if there is none.

    In a handle only replicas with a free place count; on the direct path, where the gate of the
    replica decides, all running ones.
    """
    if fleet.counts[ACTIVE] == 0:
        return -1
    slot = -1
    if gate.routing == PREFIX_AWARE:
        slot = _with_prefix(model, fleet, request)
    if slot < 0 and gate.routing in (POWER_OF_TWO, PREFIX_AWARE):
        slot = _less_busy_of_two(fleet)
    elif slot < 0:
        slot = _in_turn(fleet)
    if gate.composed and fleet.replicas[slot].ongoing >= gate.max_ongoing:
        return _next_free(gate, fleet, slot)
    return slot


@inner
def _in_turn(fleet: Fleet) -> int:
    fleet.counts[TURN] += 1
    return int(fleet.replicas[(fleet.counts[TURN] - 1) % fleet.counts[ACTIVE]].active)


@inner
def _draw(fleet: Fleet, below: int) -> int:
    """Return a random whole number from 0 to `below` - 1."""
    fleet.counts[DRAWS] += 1
    return int(fleet.draws[fleet.counts[DRAWS] % len(fleet.draws)] * below)


@inner
def _less_busy_of_two(fleet: Fleet) -> int:
    replicas, count = fleet.replicas, fleet.counts[ACTIVE]
    first = _draw(fleet, count)
    if count == 1:
        return int(fleet.replicas[first].active)
    second = (first + 1 + _draw(fleet, count - 1)) % count
    one, other = fleet.replicas[first].active, fleet.replicas[second].active
    load = replicas[one].ongoing + replicas[one].queued
    return int(one if load <= replicas[other].ongoing + replicas[other].queued else other)


@inner
def _with_prefix(model: Model, fleet: Fleet, request: int) -> int:
    best, most = -1, MATCH_RATE * fleet.requests[request].prompt
    for at in range(fleet.counts[ACTIVE]):
        tokens = cached_tokens(model, fleet, fleet.replicas[at].active, request)
        if tokens > 0 and tokens >= most:
            best, most = fleet.replicas[at].active, tokens + 1
    return int(best)


@inner
def _next_free(gate: Gate, fleet: Fleet, slot: int) -> int:
    count, start = fleet.counts[ACTIVE], 0
    for at in range(count):
        if fleet.replicas[at].active == slot:
            start = at
    for step in range(1, count):
        other = fleet.replicas[(start + step) % count].active
        if fleet.replicas[other].ongoing < gate.max_ongoing:
            return int(other)
    return -1
