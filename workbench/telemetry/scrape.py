"""Every node's `/metrics` at once: who answers in time gives figures, who does not leaves a gap."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from workbench.exposition import Exposition, parse

if TYPE_CHECKING:
    import aiohttp

WAIT_S, TIMEOUT_S = 0.8, 5.0
"""How long a sample waits for the nodes, and how long a node has to answer at all."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster: Ray's id of it, and where it shows its metrics."""

    node_id: str
    url: str


def alive(nodes: Sequence[dict[str, Any]]) -> list[Node]:
    """The living nodes among what `ray.nodes()` gives."""
    return [
        Node(one["NodeID"], f"http://{_host(one['NodeManagerAddress'])}:{port}/metrics")
        for one in nodes
        if one["Alive"] and (port := one.get("MetricsExportPort"))
    ]


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@dataclass
class Scraper:
    """Asks nodes for their metrics; `failures` has the reason for each that did not answer.

    A node that is slow does not hold up the others: its answer counts when it comes, for the next
    sample, and it is not asked again before.
    """

    wait_s: float = WAIT_S
    timeout_s: float = TIMEOUT_S
    failures: dict[str, str] = field(default_factory=dict)
    _session: aiohttp.ClientSession | None = None
    _asked: dict[Node, asyncio.Task[Exposition | None]] = field(default_factory=dict)

    async def __aenter__(self) -> Scraper:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._session is not None
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)
        await self._session.close()

    async def scrape(self, nodes: Sequence[Node]) -> dict[str, Exposition]:
        """What each node that has answered shows, by node id."""
        for node in nodes:
            if node not in self._asked:
                self._asked[node] = asyncio.create_task(self._one(node))
        if self._asked:
            await asyncio.wait(self._asked.values(), timeout=self.wait_s)
        found = {}
        for node, task in list(self._asked.items()):
            if not task.done():
                self.failures[node.node_id] = f"{node.url}: no answer in {self.wait_s:g} s"
                continue
            del self._asked[node]
            if (told := task.result()) is not None:
                found[node.node_id] = told
                self.failures.pop(node.node_id, None)
        return found

    async def _one(self, node: Node) -> Exposition | None:
        import aiohttp

        assert self._session is not None
        try:
            async with self._session.get(node.url) as answer:
                answer.raise_for_status()
                return parse(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            self.failures[node.node_id] = f"{node.url}: {type(problem).__name__}"
            return None
