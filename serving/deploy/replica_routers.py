"""Which replica a request goes to: Ray Serve's request routers, completed for the direct path.

On the direct path HAProxy asks Serve's router for a replica and sends the request itself. Ray
2.60.0 then takes the first of the candidates without asking how busy each is, so that power of two
choices becomes a random choice, and reports no routed request, so that the prefix tree stays empty.
The classes below do both, at the cost of one short question to each candidate.

Serve pickles this module by value, for processes that may be unable to import this project. So its
use of private API is here and not in ``serving.compat``:

- ``ray.serve._private.request_router``: ``PowerOfTwoChoicesRequestRouter``,
  ``choose_replicas(candidate_replicas, pending_request)`` and
  ``_probe_queue_lens(replicas, backoff_index)``.
- ``ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router``:
  ``PrefixCacheAffinityRouter``, ``_normalize_prompt_to_string(prompt)``,
  ``_extract_text_from_request(pending_request)`` and ``_tree_actor``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

# From where it is defined: importing its public name imports vLLM (10 s, 0.5 GB).
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import (
    PrefixCacheAffinityRouter,
)
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

if TYPE_CHECKING:
    from ray.serve._private.request_router import PendingRequest, RunningReplica

_SURROGATES = 0xD800


async def least_busy_first(router: Any, ranks: list[list[RunningReplica]]) -> list[Any]:
    """Return the ranks, each in ascending order of the requests that its replicas hold now.

    A replica that does not answer in time comes last.
    """
    ordered = []
    for rank in ranks:
        lengths = await router._probe_queue_lens(rank, 0)
        known = {r.replica_id: float("inf") if n is None else n for r, n in lengths}
        ordered.append(sorted(rank, key=lambda replica: known[replica.replica_id]))
    return ordered


class DirectPowerOfTwo(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]
    """Of two random replicas, take the one with fewer requests."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return ranks of replicas; Ray Serve takes the first of the first rank."""
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        return await least_busy_first(self, ranks)


class PrefixAware(PrefixCacheAffinityRouter):  # type: ignore[misc]
    """Take the replica that has seen most of the prompt's beginning, unless it is too busy."""

    def _normalize_prompt_to_string(self, prompt: Any) -> str:
        """Return token ids as one character each, and a space for an empty prompt.

        Ray's own version returns an empty text for both, by whose length it then divides.
        """
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            return "".join(chr(i if i < _SURROGATES else i + 0x800) for i in prompt)
        return super()._normalize_prompt_to_string(prompt) or " "


class DirectPrefixAware(PrefixAware):
    """Prefix-aware routing on the direct path, where a request is recorded when it is placed."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return ranks of replicas; Ray Serve takes the first of the first rank."""
        # Refreshes the base class's view of the load, which overrules the prefix.
        await self._probe_queue_lens(candidate_replicas, 0)
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        ranks = await least_busy_first(self, ranks)
        if pending_request is not None and pending_request.args and ranks and ranks[0]:
            text = self._extract_text_from_request(pending_request)
            chosen = ranks[0][0].replica_id.to_full_id_str()
            self._tree_actor.insert.remote(text, chosen, time.time())
        return ranks
