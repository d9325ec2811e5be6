"""The cluster over time, on the run's own clock: the samples of `telemetry.jsonl`.

Each second: Serve's account of the application, every node's metrics, and of both the samples of
`workbench.records`. It runs in a thread with an event loop of its own, so that a busy kernel does
not thin it out, and takes a few milliseconds a second of the kernel (`benchmarks/dashboard.py`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from serving.errors import WorkbenchError
from workbench.endpoints.deployed import Endpoint
from workbench.records import Sink
from workbench.telemetry.builder import SampleBuilder
from workbench.telemetry.scrape import Node, Scraper, live_nodes

if TYPE_CHECKING:
    from workbench.clock import Clock
    from workbench.endpoints.remote import Remote

NODES_EVERY_S = 5.0
ANSWER_S = 5.0
BLIND_AFTER = 3
"""So many samples without a node's metrics, one after the other, are worth a line."""


class Telemetry:
    """While open (``with``), samples the cluster behind ``endpoint`` into ``sink``.

    The sink gets the samples of `workbench.records`, from a thread of this class: pass
    ``run.append_telemetry``. A service that is gone ends it, and ``gone`` says so; what it has
    stays. Where metrics can't be reached, replicas and targets go on. An endpoint that is no
    deployment of ours has nothing to sample. ``say`` gets one line about each of these; by default
    it is printed. An error of the sink is raised when the block ends.
    """

    def __init__(
        self,
        endpoint: Remote,
        clock: Clock,
        sink: Sink,
        interval_s: float = 1.0,
        *,
        say: Callable[[str], None] = print,
    ) -> None:
        self._endpoint, self._clock, self._sink, self._say = endpoint, clock, sink, say
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._failure: BaseException | None = None
        self._blind = 0
        self.gone: str | None = None

    def __enter__(self) -> Telemetry:
        if isinstance(self._endpoint, Endpoint):
            self._thread.start()
        else:
            where = self._endpoint.base_url
            self._say(f"no telemetry: {where} is not a deployment of this process")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except BaseException as problem:
            self._failure = problem

    async def _watch(self) -> None:
        """Sample until the block ends, and once more then."""
        assert isinstance(self._endpoint, Endpoint)
        source = Source(self._endpoint)
        loop = asyncio.get_running_loop()
        async with Scraper() as scraper:
            last = False
            while self.gone is None and not last:
                last = self._stop.is_set()
                due = loop.time() + self._interval_s
                await self._sample(source, scraper)
                wait_s = max(0.0, due - loop.time())
                await asyncio.to_thread(self._stop.wait, 0 if last else wait_s)
        for sample in source.rows.rest():
            self._sink(sample)

    async def _sample(self, source: Source, scraper: Scraper) -> None:
        try:
            details, nodes = await asyncio.to_thread(source.account)
            shown = await scraper.scrape(nodes)
        except WorkbenchError as problem:
            self.gone = str(problem)
            self._say(f"telemetry ends: {problem}")
            return
        if details is None:
            return
        self._tell_blindness(bool(shown) or not nodes, scraper)
        for sample in source.rows.samples(self._clock(), details, shown):
            self._sink(sample)

    def _tell_blindness(self, sees: bool, scraper: Scraper) -> None:
        self._blind = 0 if sees else self._blind + 1
        if self._blind == BLIND_AFTER:
            reason = next(iter(scraper.failures.values()), "no node")
            self._say(
                f"telemetry: no node's metrics can be reached ({reason}). Replicas and targets go "
                "on; queues, engines and GPUs are missing. Open the nodes' metrics ports to this "
                "machine."
            )


class Source:
    """Serve's details and the cluster's nodes, by calls that wait no longer than ``ANSWER_S``."""

    def __init__(self, endpoint: Endpoint) -> None:
        from serving.spec.model import deployment_name

        self._endpoint = endpoint
        engines = frozenset(deployment_name(model) for model in endpoint.spec.models)
        self.rows = SampleBuilder(endpoint.spec.name, engines)
        self._nodes: list[Node] = []
        self._nodes_at = float("-inf")

    def account(self) -> tuple[dict[str, Any] | None, list[Node]]:
        """Serve's account, None if its controller did not answer in time, and the living nodes.

        Raises EndpointGoneError if the service or its cluster is gone.
        """
        import ray

        details = self._endpoint.details(ANSWER_S)
        if time.monotonic() - self._nodes_at > NODES_EVERY_S:
            self._nodes = live_nodes(ray.nodes())
            self._nodes_at = time.monotonic()
        return details, self._nodes
