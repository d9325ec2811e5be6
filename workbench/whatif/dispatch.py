"""Arrivals, gates, queues and routing, and the events of a fleet in the order of their times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.whatif._compiled import inner
from workbench.whatif.heaps import pop_later, push_later, set_end
from workbench.whatif.prefixes import remember_prefix
from workbench.whatif.routing import choose
from workbench.whatif.state import (
    ARRIVED,
    DONE,
    HANDLE_HEAD,
    HANDLE_SIZE,
    HANDLE_TAIL,
    IN_SYSTEM,
    LATER_SIZE,
    NEXT_SESSION,
    OK,
    PLANNED,
    RUNNING,
    SESSIONS,
    SHED,
    SHEDS,
    STEPS,
)
from workbench.whatif.steps import append_waiting, replan, start_step
from workbench.whatif.tokens import generate, read_prompts

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet, Gate, Model


@inner
def advance(model: Model, gate: Gate, fleet: Fleet, until_s: float, zero: bool) -> float:
    """Process all events up to and including `until_s`.

    Return when it stopped: at `until_s`, or after an arrival to no replica if `zero` is set.
    """
    counts, requests = fleet.counts, fleet.requests
    while True:
        slot = fleet.replicas[0].heap
        arrival_s = next_arrival_s(fleet)
        at_s = min(fleet.replicas[slot].end_s, arrival_s)
        if at_s > until_s or at_s == float("inf"):
            return until_s
        if fleet.replicas[slot].end_s < arrival_s:  # requests of one time share a step
            _end_step(model, fleet, slot, at_s)
            continue
        later = counts[LATER_SIZE] > 0 and fleet.requests[0].later_s <= _planned_s(fleet)
        if later:
            request = pop_later(fleet)
        else:
            request = counts[ARRIVED]
            counts[ARRIVED] += 1
        requests[request].sent_s = at_s
        _arrive(model, gate, fleet, request, at_s)
        if zero and counts[HANDLE_SIZE] > 0:
            return float(at_s)


@inner
def _planned_s(fleet: Fleet) -> float:
    """Return when the next request that follows no other arrives: the first ones, sorted."""
    at = fleet.counts[ARRIVED]
    return fleet.requests[at].due_s if at < fleet.counts[PLANNED] else float("inf")


@inner
def next_arrival_s(fleet: Fleet) -> float:
    """Return when the next request arrives, as far as it is known."""
    planned_s = _planned_s(fleet)
    return min(planned_s, fleet.requests[0].later_s) if fleet.counts[LATER_SIZE] > 0 else planned_s


@inner
def _arrive(model: Model, gate: Gate, fleet: Fleet, request: int, now: float) -> None:
    replicas, counts = fleet.replicas, fleet.counts
    counts[IN_SYSTEM] += 1
    if gate.composed:
        if counts[IN_SYSTEM] > gate.capacity:
            _refuse(fleet, request, now)
            return
        slot = choose(model, gate, fleet, request) if counts[HANDLE_SIZE] == 0 else -1
        if slot < 0:
            _append_handle(fleet, request)
        else:
            enter(model, fleet, slot, request, now)
        return
    slot = choose(model, gate, fleet, request)
    if slot < 0:
        _refuse(fleet, request, now)
    elif replicas[slot].ongoing < gate.max_ongoing:
        enter(model, fleet, slot, request, now)
    elif replicas[slot].queued < gate.max_queued:
        _append_gate(fleet, slot, request)
    else:
        _refuse(fleet, request, now)


@inner
def enter(model: Model, fleet: Fleet, slot: int, request: int, now: float) -> None:
    """Let a request pass to the engine of a slot, which may be idle or in the middle of a step."""
    replicas = fleet.replicas
    ready_s = _admit(model, fleet, slot, request, now)
    if replicas[slot].batch == 0:
        if replicas[slot].waiting == 1:
            set_end(fleet, slot, ready_s)
    elif replicas[slot].decoding and replicas[slot].waiting == 1:
        set_end(fleet, slot, replan(model, fleet, slot))


@inner
def _admit(model: Model, fleet: Fleet, slot: int, request: int, now: float) -> float:
    """Give a request a place, and put it into the engine's queue for after its front end."""
    requests, replicas = fleet.requests, fleet.replicas
    if replicas[slot].ongoing == 0 and replicas[slot].batch == 0 and replicas[slot].steps == 0:
        replicas[slot].busy_from_s = now
    replicas[slot].ongoing += 1
    replicas[slot].used = 1
    requests[request].replica = replicas[slot].number
    ready_s = now + model.request_s + model.prompt_token_s * requests[request].prompt
    append_waiting(fleet, slot, request, ready_s)
    return float(ready_s)


@inner
def _end_step(model: Model, fleet: Fleet, slot: int, now: float) -> None:
    """Take over the result of a step that ends now, and start the next."""
    replicas = fleet.replicas
    steps, batch = replicas[slot].steps, replicas[slot].batch
    fleet.counts[STEPS] += steps
    if steps > 0:
        if replicas[slot].decoding:
            generate(model, fleet, slot, steps)
        else:
            read_prompts(model, fleet, slot, now)
        _remove_ended(model, fleet, slot, now, batch)
    set_end(fleet, slot, start_step(model, fleet, slot, now))


@inner
def _remove_ended(model: Model, fleet: Fleet, slot: int, now: float, batch: int) -> None:
    requests, replicas = fleet.requests, fleet.replicas
    kept, ended = 0, 0
    for at in range(batch):
        request = fleet.seats[slot, at].request
        if requests[request].generated < requests[request].output:
            fleet.seats[slot, kept].request = request
            kept += 1
            continue
        ended += 1
        replicas[slot].free += requests[request].blocks
        replicas[slot].kv -= requests[request].computed
        requests[request].end_s = now + model.token_s * batch
        requests[request].status = OK
        remember_prefix(fleet, slot, request)
        _follow(fleet, request, requests[request].end_s)
    replicas[slot].batch = kept
    for _ in range(ended):
        replicas[slot].ongoing -= 1
        _next_in_queue(model, fleet, slot, now)
    if ended > 0 and replicas[slot].ongoing == 0:
        replicas[slot].busy_s += now - replicas[slot].busy_from_s


@inner
def _next_in_queue(model: Model, fleet: Fleet, slot: int, now: float) -> None:
    """Give a free place of a slot to a request that waits for it."""
    requests, replicas = fleet.requests, fleet.replicas
    if replicas[slot].queued > 0:
        request = replicas[slot].gate_head
        replicas[slot].gate_head = requests[request].next
        replicas[slot].queued -= 1
        _admit(model, fleet, slot, request, now)
    elif fleet.counts[HANDLE_SIZE] > 0 and replicas[slot].state == RUNNING:
        _admit(model, fleet, slot, _pop_handle(fleet), now)


@inner
def _pop_handle(fleet: Fleet) -> int:
    counts = fleet.counts
    request = counts[HANDLE_HEAD]
    counts[HANDLE_HEAD] = fleet.requests[request].next
    counts[HANDLE_SIZE] -= 1
    return int(request)


@inner
def drain_handle(model: Model, gate: Gate, fleet: Fleet, now: float) -> None:
    """Give requests that wait in the handle to replicas with a free place."""
    counts = fleet.counts
    while counts[HANDLE_SIZE] > 0:
        slot = choose(model, gate, fleet, counts[HANDLE_HEAD])
        if slot < 0:
            return
        enter(model, fleet, slot, _pop_handle(fleet), now)


@inner
def _append_gate(fleet: Fleet, slot: int, request: int) -> None:
    replicas = fleet.replicas
    fleet.requests[request].next = -1
    fleet.requests[request].replica = replicas[slot].number
    if replicas[slot].queued == 0:
        replicas[slot].gate_head = request
    else:
        fleet.requests[replicas[slot].gate_tail].next = request
    replicas[slot].gate_tail = request
    replicas[slot].queued += 1


@inner
def _append_handle(fleet: Fleet, request: int) -> None:
    counts = fleet.counts
    fleet.requests[request].next = -1
    if counts[HANDLE_SIZE] == 0:
        counts[HANDLE_HEAD] = request
    else:
        fleet.requests[counts[HANDLE_TAIL]].next = request
    counts[HANDLE_TAIL] = request
    counts[HANDLE_SIZE] += 1


@inner
def _refuse(fleet: Fleet, request: int, now: float) -> None:
    fleet.requests[request].status = SHED
    fleet.requests[request].end_s = now
    fleet.counts[SHEDS] += 1
    _follow(fleet, request, now)


@inner
def _follow(fleet: Fleet, request: int, now: float) -> None:
    """Let what follows a request that ended arrive: the next turn, or a user's next request."""
    requests, counts = fleet.requests, fleet.counts
    counts[IN_SYSTEM] -= 1
    counts[DONE] += 1
    following = requests[request].successor
    if following < 0 and counts[NEXT_SESSION] < counts[SESSIONS]:
        following = requests[counts[NEXT_SESSION]].session
        counts[NEXT_SESSION] += 1
    if following >= 0:
        push_later(fleet, following, now + requests[following].think_s)
