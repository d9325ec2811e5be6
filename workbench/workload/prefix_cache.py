"""The hit rate of an engine's prefix cache, computed from a trace.

The engine caches complete blocks of a prompt by their tokens and everything before them. It looks
up a prompt from its first block to the first that is missing, and always computes the last token.
Requests are taken one after another; those that run at the same time in an engine also hold blocks,
and may not find those of each other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from workbench.workload.trace_request import TraceRequest


@dataclass(frozen=True)
class PrefixHits:
    """Tokens of prompts that were looked up, and those that were found."""

    queries: int
    hits: int

    @property
    def rate(self) -> float:
        """The share that was found; 0 without requests."""
        return self.hits / self.queries if self.queries else 0.0


def prefix_hits(
    requests: Iterable[TraceRequest],
    *,
    trace_block: int,
    engine_block: int,
    capacity_blocks: int | None = None,
) -> PrefixHits:
    """Return the hits in a prefix cache that evicts the block that was not used for longest.

    Args:
        requests: Requests with `hash_ids`; those of the others are all different.
        trace_block: Tokens per hash id.
        engine_block: Tokens per block of the engine.
        capacity_blocks: Blocks of the engine's cache; None for no limit.
    """
    cache = _Cache(capacity_blocks)
    queries = hits = 0
    for request in requests:
        tokens = request.prompt_tokens or 0
        keys = list(cache.keys(request.hash_ids or (), tokens, trace_block, engine_block))
        found = next((i for i, key in enumerate(keys) if key not in cache.blocks), len(keys))
        queries += tokens
        hits += min(found, max(0, tokens - 1) // engine_block) * engine_block
        total = -(-(tokens + (request.output_tokens or 0)) // engine_block)
        cache.use(keys, total - len(keys))
    return PrefixHits(queries, hits)


class _Cache:
    """The blocks of a cache, the one that was not used for longest first."""

    def __init__(self, capacity: int | None) -> None:
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self._capacity = capacity
        self._numbers: dict[tuple[int, int, int], int] = {}

    def keys(
        self, hash_ids: tuple[int, ...], tokens: int, trace_block: int, engine_block: int
    ) -> Iterator[int]:
        """Yield a number for each complete block of a prompt: equal for equal beginnings."""
        known = min(tokens, len(hash_ids) * trace_block)
        chain, used = 0, 0
        for end in range(engine_block, tokens + 1, engine_block):
            if end > known:
                yield self._number((-1, len(self._numbers), end))  # Its tokens are its own.
                continue
            while used * trace_block < end:
                chain = self._number((chain, hash_ids[used], 0))
                used += 1
            yield self._number((chain, -1, end))

    def _number(self, key: tuple[int, int, int]) -> int:
        return self._numbers.setdefault(key, len(self._numbers) + 1)

    def use(self, keys: list[int], others: int) -> None:
        """Add the blocks of a request. The end of a prompt is evicted before its beginning."""
        own = [self._number((-1, len(self._numbers), -1 - i)) for i in range(others)]
        for key in reversed([*keys, *own]):
            self.blocks[key] = None
            self.blocks.move_to_end(key)
        while self._capacity is not None and len(self.blocks) > self._capacity:
            self.blocks.popitem(last=False)
