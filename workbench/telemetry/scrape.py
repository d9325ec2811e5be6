"""Every node's `/metrics` at once: who answers in time gives figures, who does not leaves a gap."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from serving.compat.ray import GPU_METRICS as GPU_METRICS
from serving.compat.ray import HANDLE_QUEUE as HANDLE_QUEUE
from serving.compat.ray import HTTP_REQUESTS as HTTP_REQUESTS
from serving.compat.ray import IN_FLIGHT as IN_FLIGHT
from serving.compat.ray import TARGET_ONGOING as TARGET_ONGOING
from serving.compat.ray import TOTAL_REQUESTS as TOTAL_REQUESTS
from serving.compat.vllm import ENGINE_METRICS as ENGINE_METRICS
from serving.compat.vllm import OLDER_METRICS

if TYPE_CHECKING:
    import aiohttp

WAIT_S, TIMEOUT_S = 0.8, 5.0
"""How long a sample waits for the nodes, and how long a node has to answer at all."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster: Ray's id of it, and where it shows its metrics."""

    node_id: str
    url: str


def live_nodes(nodes: Sequence[dict[str, Any]]) -> list[Node]:
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
    _asked: dict[Node, asyncio.Task[MetricsPage | None]] = field(default_factory=dict)

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

    async def scrape(self, nodes: Sequence[Node]) -> dict[str, MetricsPage]:
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

    async def _one(self, node: Node) -> MetricsPage | None:
        import aiohttp

        assert self._session is not None
        try:
            async with self._session.get(node.url) as answer:
                answer.raise_for_status()
                return parse(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            self.failures[node.node_id] = f"{node.url}: {type(problem).__name__}"
            return None


POLICY_DESIRED, POLICY_SAW = "workbench_policy_desired", "workbench_policy_saw"


POLICY_LED = "workbench_policy_led"


GATE_QUEUED, GATE_SHED = "workbench_gate_queued", "workbench_gate_shed"


SERVE_METRICS = (TOTAL_REQUESTS, TARGET_ONGOING, HANDLE_QUEUE, IN_FLIGHT, HTTP_REQUESTS)


OUR_METRICS = (POLICY_DESIRED, POLICY_SAW, POLICY_LED, GATE_QUEUED, GATE_SHED)


WANTED = (*ENGINE_METRICS, *OLDER_METRICS, *SERVE_METRICS, *OUR_METRICS, *GPU_METRICS)


_FAMILIES = (b"ray_vllm", b"ray_serve_", b"ray_workbench_", b"ray_node_g")


_NAMES = {
    f"ray_{name}{end}".replace("vllm_", f"vllm{mark}", 1).encode()
    for name in WANTED
    for mark in "_:"
    for end in ("", "_total")
}


# Ray puts them on every line, and the parser takes its time a character.
_SAME_EVERYWHERE = re.compile(
    rb'(?<=[{,])(?:Component|NodeAddress|SessionName|Version|WorkerId|otel_scope_\w+)="[^"\\]*",?'
)


@dataclass
class MetricsPage:
    """The wanted samples of one node, by normalized name: each its labels and its value."""

    samples: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)

    def rows(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """The samples of a name that have these labels."""
        for own, value in self.samples.get(name, ()):
            if all(own.get(key) == wanted for key, wanted in labels.items()):
                yield own, value

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum; None where there is none."""
        return add(value for _, value in self.rows(name, **labels))


def parse(text: bytes) -> MetricsPage:
    """The wanted samples in a `/metrics` answer. Raises ValueError for what is none."""
    from prometheus_client.parser import text_string_to_metric_families

    near = [line for line in text.split(b"\n") if line.startswith(_FAMILIES)]
    picked = [line for line in near if line[: line.find(b"{")] in _NAMES]
    found = MetricsPage()
    short = _SAME_EVERYWHERE.sub(b"", b"\n".join([*picked, b""]))
    for family in text_string_to_metric_families(short.decode()):
        for sample in family.samples:
            rows = found.samples.setdefault(_plain(sample.name), [])
            if not math.isnan(sample.value):
                rows.append((sample.labels, sample.value))
    return found


def merged(nodes: Iterable[MetricsPage]) -> MetricsPage:
    """All nodes' samples as one."""
    found = MetricsPage()
    for node in nodes:
        for name, rows in node.samples.items():
            found.samples.setdefault(name, []).extend(rows)
    return found


def add(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _plain(name: str) -> str:
    short = name.removeprefix("ray_").replace(":", "_").removesuffix("_total")
    return OLDER_METRICS.get(short, short)
