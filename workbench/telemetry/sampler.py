"""Sample the cluster over time, on the run's own clock, for `telemetry.jsonl`.

Once a second it reads Serve's details of the application and the metrics of all nodes, and makes
samples of `workbench.records` from them. It runs in a thread with its own event loop, so that a
busy kernel does not delay it, and takes a few milliseconds of the kernel per second
(`benchmarks/dashboard.py`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from serving.errors import WorkbenchError
from workbench.endpoints.deployed import Endpoint
from workbench.records import Sink
from workbench.telemetry.builder import SampleBuilder
from workbench.telemetry.remote import RemoteMetrics
from workbench.telemetry.scrape import Node, Scraper, live_nodes

if TYPE_CHECKING:
    from workbench.clock import Clock
    from workbench.endpoints.remote import Remote

NODES_EVERY_S = 5.0
DETAILS_TIMEOUT_S = 5.0
BLIND_AFTER = 3
"""Samples in a row without any node's metrics after which a warning is shown."""


class Telemetry:
    """A context manager that samples the cluster behind `endpoint` into `sink`.

    If the service no longer exists, sampling ends and `ended_reason` says why. If metrics cannot
    be reached, replicas and targets are still sampled. Of an endpoint that this process did not
    deploy, the engine's own `/metrics` is sampled if it can be read (vLLM, SGLang and TGI). An
    error of the sink is raised when the block ends.
    """

    def __init__(
        self,
        endpoint: Remote,
        clock: Clock,
        sink: Sink,
        interval_s: float = 1.0,
        *,
        notify: Callable[[str], None] = print,
    ) -> None:
        """Prepare to sample; entering the context starts it.

        Args:
            endpoint: The endpoint.
            clock: The run's clock, in seconds.
            sink: Called with each sample, from a thread; usually `run.append_telemetry`.
            interval_s: Seconds between samples.
            notify: Called with a line when there is nothing to sample, when metrics cannot be
                reached, and when sampling ends.
        """
        self._endpoint, self._clock, self._sink, self._notify = endpoint, clock, sink, notify
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._failure: BaseException | None = None
        self._blind_samples = 0
        self.ended_reason: str | None = None

    def __enter__(self) -> Telemetry:
        self._thread.start()
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
        """Sample until the block ends, and once more after that."""
        if not isinstance(self._endpoint, Endpoint):
            async with RemoteMetrics(self._endpoint) as metrics:
                await self._repeat(lambda: self._sample_remote(metrics))
            return
        source = TelemetrySource(self._endpoint)
        async with Scraper() as scraper:
            await self._repeat(lambda: self._sample(source, scraper))
        for sample in source.builder.flush():
            self._sink(sample)

    async def _repeat(self, sample: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        last = False
        while self.ended_reason is None and not last:
            last = self._stop.is_set()
            due_s = loop.time() + self._interval_s
            await sample()
            wait_s = max(0.0, due_s - loop.time())
            await asyncio.to_thread(self._stop.wait, 0 if last else wait_s)

    async def _sample_remote(self, metrics: RemoteMetrics) -> None:
        samples = await metrics.samples(self._clock)
        for sample in samples:
            self._sink(sample)
        if not samples and not metrics.seen:
            self.ended_reason = (
                f"{self._endpoint.base_url} is not a deployment of this process, and "
                f"{metrics.url} has no metrics of an engine ({metrics.failure})"
            )
            self._notify(f"no telemetry: {self.ended_reason}")

    async def _sample(self, source: TelemetrySource, scraper: Scraper) -> None:
        try:
            details, nodes = await asyncio.to_thread(source.snapshot)
            pages = await scraper.scrape(nodes)
        except WorkbenchError as problem:
            self.ended_reason = str(problem)
            self._notify(f"telemetry ends: {problem}")
            return
        if details is None:
            return
        self._warn_if_blind(bool(pages) or not nodes, scraper)
        for sample in source.builder.samples(self._clock(), details, pages):
            self._sink(sample)

    def _warn_if_blind(self, sees: bool, scraper: Scraper) -> None:
        self._blind_samples = 0 if sees else self._blind_samples + 1
        if self._blind_samples == BLIND_AFTER:
            reason = next(iter(scraper.failures.values()), "no node")
            self._notify(
                f"telemetry: no node's metrics can be reached ({reason}). Replicas and targets are "
                "still sampled; queues, engines and GPUs are missing. Open the nodes' metrics "
                "ports to this machine."
            )


class TelemetrySource:
    """Serve's details and the cluster's nodes, by calls that wait at most `DETAILS_TIMEOUT_S`."""

    def __init__(self, endpoint: Endpoint) -> None:
        from serving.spec.model import PrefillModel, deployment_name

        self._endpoint = endpoint
        spec = endpoint.spec
        models = [*spec.models, *(each for each in spec.engines if isinstance(each, PrefillModel))]
        engines = frozenset(deployment_name(model) for model in models)
        self.builder = SampleBuilder(endpoint.spec.name, engines)
        self._nodes: list[Node] = []
        self._nodes_at_s = float("-inf")

    def snapshot(self) -> tuple[dict[str, Any] | None, list[Node]]:
        """Return Serve's details (None if its controller did not answer in time) and live nodes.

        Raises:
            EndpointGoneError: The service or its cluster no longer exists.
        """
        import ray

        details = self._endpoint.details(DETAILS_TIMEOUT_S)
        if time.monotonic() - self._nodes_at_s > NODES_EVERY_S:
            self._nodes = live_nodes(ray.nodes())
            self._nodes_at_s = time.monotonic()
        return details, self._nodes
