"""Reuse of prompts in the prefix cache of a replica.

A prompt shares its first `prefix` tokens with the other prompts of its `group`. They are found
again if the replica has read a prompt of the group, and has since then read and generated fewer
tokens than the part of its KV cache that no request holds. (vLLM reuses the blocks that were freed
longest ago first.) Blocks that requests share count for each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.whatif._compiled import inner

if TYPE_CHECKING:
    from workbench.whatif.state import Fleet, Model


@inner
def cached_tokens(model: Model, fleet: Fleet, slot: int, request: int) -> int:
    """Return how many tokens of a request's prompt are in the cache: whole blocks, never all."""
    requests, replicas = fleet.requests, fleet.replicas
    group = requests[request].group
    if group < 0 or fleet.prefixes[slot, group].at < 0:
        return 0
    since = replicas[slot].written - fleet.prefixes[slot, group].at
    if since > replicas[slot].free * model.block_size:
        return 0
    shared = min(requests[request].prefix, fleet.prefixes[slot, group].tokens)
    tokens = min(shared, requests[request].prompt - 1)
    return int(tokens // model.block_size * model.block_size)


@inner
def remember_prefix(fleet: Fleet, slot: int, request: int) -> None:
    """Note that the prompt of a request, and its answer, are in the cache."""
    requests, replicas = fleet.requests, fleet.replicas
    group = requests[request].group
    replicas[slot].written += requests[request].prompt + requests[request].generated
    if group >= 0:
        fleet.prefixes[slot, group].at = replicas[slot].written
        tokens = max(fleet.prefixes[slot, group].tokens, requests[request].prompt)
        fleet.prefixes[slot, group].tokens = tokens


@inner
def forget_prefixes(fleet: Fleet, slot: int) -> None:
    """Empty the cache of a slot, for the next replica that takes it."""
    fleet.replicas[slot].written = 0
    for group in range(fleet.prefixes.shape[1]):
        fleet.prefixes[slot, group].at = -1
        fleet.prefixes[slot, group].tokens = 0
