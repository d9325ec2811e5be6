"""Which replica a request goes to: Ray Serve's own request routers, made whole on the direct path.

There HAProxy asks Serve's router for a replica and sends the request itself. Ray 2.60 then takes
the first of the candidates without asking how busy each is (power of two choices becomes one
choice by lot), and tells no router what became of a request (a prefix tree stays empty). Both are
done here, at the price of one short question to each candidate.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

# From where it is made: the public name beside it imports vLLM, ten seconds and 0.5 GB.
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import (
    PrefixCacheAffinityRouter,
)
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

if TYPE_CHECKING:
    from ray.serve._private.request_router import PendingRequest, RunningReplica

_SURROGATES = 0xD800


async def least_busy_first(router: Any, ranks: list[list[RunningReplica]]) -> list[Any]:
    """The same ranks, each in the order of how many requests its replicas hold now.

    A replica that does not answer in time comes last.
    """
    ordered = []
    for rank in ranks:
        lengths = await router._probe_queue_lens(rank, 0)
        known = {r.replica_id: float("inf") if n is None else n for r, n in lengths}
        ordered.append(sorted(rank, key=lambda replica: known[replica.replica_id]))
    return ordered


class DirectPowerOfTwo(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]
    """Of two replicas drawn by lot, the one with fewer requests."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        return await least_busy_first(self, ranks)


class PrefixAware(PrefixCacheAffinityRouter):  # type: ignore[misc]
    """The replica that has seen most of the prompt's beginning, unless it is too busy."""

    def _normalize_prompt_to_string(self, prompt: Any) -> str:
        """Token ids too, one character each; Ray's own would divide by the length of no text."""
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            return "".join(chr(i if i < _SURROGATES else i + 0x800) for i in prompt)
        return super()._normalize_prompt_to_string(prompt) or " "


class DirectPrefixAware(PrefixAware):
    """The same on the direct path, where the request has to be remembered when it is placed."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        # Refreshes what the base class knows of the load, which decides over the prefix.
        await self._probe_queue_lens(candidate_replicas, 0)
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        ranks = await least_busy_first(self, ranks)
        if pending_request is not None and pending_request.args and ranks and ranks[0]:
            text = self._extract_text_from_request(pending_request)
            chosen = ranks[0][0].replica_id.to_full_id_str()
            self._tree_actor.insert.remote(text, chosen, time.time())
        return ranks
