"""The steps of one replica, scheduled as in vLLM 0.29 (`vllm/v1/core/sched/scheduler.py`).

A step first continues the running requests in the order of their admission, then admits waiting
ones, until its budget of tokens is used. A prompt that does not fit into the budget is read in
parts. A waiting request is admitted only if the KV cache has room for all of its tokens so far. If
a running request gets no block, the request that was admitted last loses its blocks, waits in front
of all others and is read again.

While every request in the batch only generates and none can be admitted, the steps up to the next
end of a request are planned together. They take the time that they would take one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.whatif._compiled import inner
from workbench.whatif.prefixes import cached_tokens
from workbench.whatif.state import PREEMPTIONS

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet, Model


@inner
def append_waiting(fleet: Fleet, slot: int, request: int, ready_s: float) -> None:
    """Add a request to the end of an engine's queue; it may be scheduled from `ready_s` on."""
    requests, replicas = fleet.requests, fleet.replicas
    requests[request].ready_s = ready_s
    requests[request].next = -1
    if replicas[slot].waiting == 0:
        replicas[slot].head = request
    else:
        requests[replicas[slot].tail].next = request
    replicas[slot].tail = request
    replicas[slot].waiting += 1


@inner
def _pop_waiting(fleet: Fleet, slot: int) -> int:
    replicas = fleet.replicas
    request = replicas[slot].head
    replicas[slot].head = fleet.requests[request].next
    replicas[slot].waiting -= 1
    return int(request)


@inner
def _preempt_last(fleet: Fleet, slot: int) -> int:
    """Free the blocks of the request that was admitted last, and put it in front of the queue."""
    requests, replicas = fleet.requests, fleet.replicas
    replicas[slot].batch -= 1
    request = fleet.seats[slot, replicas[slot].batch].request
    replicas[slot].free += requests[request].blocks
    replicas[slot].kv -= requests[request].computed
    requests[request].blocks = requests[request].computed = 0
    requests[request].next = replicas[slot].head
    if replicas[slot].waiting == 0:
        replicas[slot].tail = request
    replicas[slot].head = request
    replicas[slot].waiting += 1
    fleet.counts[PREEMPTIONS] += 1
    return int(request)


@inner
def _allocate(model: Model, fleet: Fleet, slot: int, request: int, tokens: int) -> bool:
    """Give a request the blocks for `tokens` more tokens, if there are enough."""
    requests, replicas = fleet.requests, fleet.replicas
    blocks = (requests[request].computed + tokens + model.block_size - 1) // model.block_size
    more = blocks - requests[request].blocks
    if more > replicas[slot].free:
        return False
    if more > 0:
        replicas[slot].free -= more
        requests[request].blocks = blocks
    return True


@inner
def _missing(fleet: Fleet, request: int) -> int:
    """Return how many tokens of a request are not in the KV cache yet."""
    requests = fleet.requests
    return int(requests[request].prompt + requests[request].generated - requests[request].computed)


@inner
def _continue_running(model: Model, fleet: Fleet, slot: int) -> tuple[int, bool]:
    """Schedule the running requests; return the rest of the budget, and if one was preempted."""
    replicas = fleet.replicas
    budget, preempted, at = model.token_budget, False, 0
    while at < replicas[slot].batch:
        request = fleet.seats[slot, at].request
        tokens = min(_missing(fleet, request), budget)
        while not _allocate(model, fleet, slot, request, tokens):
            preempted = True
            if _preempt_last(fleet, slot) == request:
                return budget, True
        fleet.seats[slot, at].tokens = tokens
        budget -= tokens
        at += 1
    return budget, preempted


@inner
def _admit_waiting(model: Model, fleet: Fleet, slot: int, now: float, budget: int) -> None:
    requests, replicas = fleet.requests, fleet.replicas
    while budget > 0 and replicas[slot].waiting > 0 and replicas[slot].batch < model.max_seqs:
        request = replicas[slot].head
        if requests[request].ready_s > now:
            return
        length = requests[request].prompt + requests[request].generated
        if (length + model.block_size - 1) // model.block_size > replicas[slot].free:
            return
        requests[request].computed = cached_tokens(model, fleet, slot, request)
        tokens = min(_missing(fleet, request), budget)
        _allocate(model, fleet, slot, request, tokens)
        _pop_waiting(fleet, slot)
        at = replicas[slot].batch
        fleet.seats[slot, at].request, fleet.seats[slot, at].tokens = request, tokens
        replicas[slot].batch += 1
        replicas[slot].kv += requests[request].computed
        budget -= tokens


@inner
def start_step(model: Model, fleet: Fleet, slot: int, now: float) -> float:
    """Schedule the next step of a replica, or several at once; return when it ends.

    An idle replica returns when its first waiting request is ready, infinity if there is none.
    """
    replicas = fleet.replicas
    budget, preempted = _continue_running(model, fleet, slot)
    if not preempted:
        _admit_waiting(model, fleet, slot, now, budget)
    replicas[slot].step_from_s = now
    replicas[slot].steps = 0
    if replicas[slot].batch == 0:
        idle = replicas[slot].waiting == 0
        return float("inf") if idle else max(now, fleet.requests[replicas[slot].head].ready_s)
    return _plan(model, fleet, slot, now)


@inner
def _plan(model: Model, fleet: Fleet, slot: int, now: float) -> float:
    requests, replicas = fleet.requests, fleet.replicas
    prefill, active, most, decoding = 0, 0, 1 << 60, True
    for at in range(replicas[slot].batch):
        request, tokens = fleet.seats[slot, at].request, fleet.seats[slot, at].tokens
        active += tokens > 0
        if tokens != 1 or _missing(fleet, request) != 1 or requests[request].generated == 0:
            prefill, decoding = prefill + tokens, False
        most = min(most, requests[request].output - requests[request].generated)
    if decoding:
        # The step has its blocks. In every further block_size steps a request needs one at most.
        safe = 1 + replicas[slot].free // replicas[slot].batch * model.block_size
        replicas[slot].decoding, replicas[slot].most_steps = 1, min(most, safe)
        return replan(model, fleet, slot)
    replicas[slot].decoding, replicas[slot].steps = 0, 1
    kv = replicas[slot].kv
    seconds = model.step_s + model.prefill_token_s * prefill + model.running_s * active
    return float(now + seconds + model.kv_token_s * kv)


@inner
def replan(model: Model, fleet: Fleet, slot: int) -> float:
    """Plan steps that only generate, up to the first one after which a request can be admitted.

    Return when the last of them ends.
    """
    replicas = fleet.replicas
    batch, limit_s = replicas[slot].batch, float("inf")
    if replicas[slot].waiting > 0 and batch < model.max_seqs:
        ready_s = fleet.requests[replicas[slot].head].ready_s
        # One that is ready already found no room, and finds none before a request ends.
        if ready_s > replicas[slot].step_from_s:
            limit_s = ready_s
    end_s = replicas[slot].step_from_s
    seconds = model.step_s + model.running_s * batch + model.kv_token_s * replicas[slot].kv
    more = model.kv_token_s * batch
    steps = 0
    while steps < replicas[slot].most_steps and end_s < limit_s:
        end_s += seconds
        seconds += more
        steps += 1
    replicas[slot].steps = steps
    return float(end_s)
