"""The tokens of a step: what its requests have read and generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.whatif._compiled import inner

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet, Model


@inner
def generate(model: Model, fleet: Fleet, slot: int, steps: int) -> None:
    """Add `steps` tokens to every request of the batch."""
    requests, replicas = fleet.requests, fleet.replicas
    batch = replicas[slot].batch
    if len(fleet.token_times) > 0:
        _note_tokens(model, fleet, slot, steps)
    for at in range(batch):
        request = fleet.seats[slot, at].request
        requests[request].computed += steps
        requests[request].generated += steps
        blocks = (requests[request].computed + model.block_size - 1) // model.block_size
        replicas[slot].free -= blocks - requests[request].blocks
        requests[request].blocks = blocks
    replicas[slot].kv += batch * steps


@inner
def _note_tokens(model: Model, fleet: Fleet, slot: int, steps: int) -> None:
    requests, replicas = fleet.requests, fleet.replicas
    batch, at_s = replicas[slot].batch, replicas[slot].step_from_s
    seconds = model.step_s + model.running_s * batch + model.kv_token_s * replicas[slot].kv
    for step in range(steps):
        at_s += seconds
        seconds += model.kv_token_s * batch
        for at in range(batch):
            request = fleet.seats[slot, at].request
            place = requests[request].token_at + requests[request].generated + step
            fleet.token_times[place] = at_s + model.token_s * batch


@inner
def read_prompts(model: Model, fleet: Fleet, slot: int, now: float) -> None:
    """Add the tokens that were scheduled; a request that has been read gets its next token."""
    requests, replicas = fleet.requests, fleet.replicas
    shown_s = now + model.token_s * replicas[slot].batch
    for at in range(replicas[slot].batch):
        request, tokens = fleet.seats[slot, at].request, fleet.seats[slot, at].tokens
        requests[request].computed += tokens
        replicas[slot].kv += tokens
        known = requests[request].prompt + requests[request].generated
        if requests[request].computed < known:
            continue
        if requests[request].generated == 0:
            _note_first(fleet, slot, request, shown_s)
        if len(fleet.token_times) > 0:
            place = requests[request].token_at + requests[request].generated
            fleet.token_times[place] = shown_s
        requests[request].generated += 1


@inner
def _note_first(fleet: Fleet, slot: int, request: int, shown_s: float) -> None:
    requests, replicas = fleet.requests, fleet.replicas
    requests[request].first_s = shown_s
    room = fleet.firsts.shape[1]
    if room > 0:
        place = replicas[slot].firsts % room
        fleet.firsts[slot, place].at_s = shown_s
        fleet.firsts[slot, place].took_s = shown_s - requests[request].sent_s
        replicas[slot].firsts += 1
