"""Scrape the `/metrics` of all nodes at once. A node that does not answer in time leaves a gap."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from workbench.telemetry.metrics_page import MetricsPage, parse_metrics

if TYPE_CHECKING:
    import aiohttp

WAIT_S, TIMEOUT_S = 0.8, 5.0
"""Seconds that a sample waits for the nodes, and seconds that a node may take to answer."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster: Ray's id of it, and the URL of its metrics."""

    node_id: str
    url: str


def live_nodes(nodes: Sequence[dict[str, Any]]) -> list[Node]:
    """Return the live nodes with metrics, from `ray.nodes()`."""
    return [
        Node(node["NodeID"], f"http://{_host(node['NodeManagerAddress'])}:{port}/metrics")
        for node in nodes
        if node["Alive"] and (port := node.get("MetricsExportPort"))
    ]


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@dataclass
class Scraper:
    """Asks nodes for their metrics. `failures` has the reason for each that did not answer.

    A slow node does not delay the others: its answer counts for the next sample, and it is not
    asked again before it has answered.
    """

    wait_s: float = WAIT_S
    timeout_s: float = TIMEOUT_S
    failures: dict[str, str] = field(default_factory=dict)
    _session: aiohttp.ClientSession | None = None
    _pending: dict[Node, asyncio.Task[MetricsPage | None]] = field(default_factory=dict)

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
        for task in self._pending.values():
            task.cancel()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        await self._session.close()

    async def scrape(self, nodes: Sequence[Node]) -> dict[str, MetricsPage]:
        """Return the metrics of each node that has answered, by node id."""
        for node in nodes:
            if node not in self._pending:
                self._pending[node] = asyncio.create_task(self._get(node))
        if self._pending:
            await asyncio.wait(self._pending.values(), timeout=self.wait_s)
        pages = {}
        for node, task in list(self._pending.items()):
            if not task.done():
                self.failures[node.node_id] = f"{node.url}: no answer in {self.wait_s:g} s"
                continue
            del self._pending[node]
            if (page := task.result()) is not None:
                pages[node.node_id] = page
                self.failures.pop(node.node_id, None)
        return pages

    async def _get(self, node: Node) -> MetricsPage | None:
        import aiohttp

        assert self._session is not None
        try:
            async with self._session.get(node.url) as response:
                response.raise_for_status()
                return parse_metrics(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            self.failures[node.node_id] = f"{node.url}: {type(problem).__name__}"
            return None
