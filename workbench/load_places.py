"""Where load workers run: not beside what they measure, while there is another place."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import cycle, islice
from typing import Any


async def start_away(actor: Any, number: int, begin: Callable[[Any], Awaitable[None]]) -> list[Any]:
    """`number` actors away from replicas, each after its `begin`.

    One whose node dies meanwhile starts where Ray sees fit.
    """
    from ray.exceptions import ActorUnschedulableError, RayActorError

    async def start(place: Any) -> Any:
        made = actor.options(scheduling_strategy=place).remote()
        try:
            await begin(made)
        except (ActorUnschedulableError, RayActorError):
            made = actor.remote()
            await begin(made)
        return made

    places = await asyncio.to_thread(away_from_replicas, number)
    return await asyncio.gather(*(start(place) for place in places))


def away_from_replicas(number: int) -> list[Any]:
    """Ray's scheduling strategy for each of `number` load workers.

    The nodes with fewest replicas share them, and of those the head, which has the proxy, comes
    last. The places are firm: a soft one Ray leaves for another when two actors start at once.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from serving.deploy import status

    alive = [node for node in ray.nodes() if node["Alive"]]
    held = status.replicas_by_node()
    places = calmest(
        {node["NodeID"]: "node:__internal_head__" in node["Resources"] for node in alive}, held
    )
    return [NodeAffinitySchedulingStrategy(p, soft=False) for p in islice(cycle(places), number)]


def calmest(heads: dict[str, bool], replicas: Counter[str]) -> list[str]:
    """The nodes that load workers take, of all nodes (and whether each is the head)."""
    rank = {node: (replicas[node], is_head) for node, is_head in heads.items()}
    return [node for node, of in rank.items() if of == min(rank.values())]
