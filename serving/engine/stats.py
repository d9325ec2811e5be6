"""The reports of a replica: figures for its autoscaling policy, and metrics of its gate and cache.

``EngineStats`` is one of vLLM's stat loggers and keeps the figures of the last step.
``FirstTokens`` keeps recent times to first token, including those of requests that still wait.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from serving.compat.vllm import first_token_times, log_idle_step, scheduler_figures

if TYPE_CHECKING:
    from serving.gateway.asgi import App, Message, Receive, Scope, Send
    from serving.gateway.gate import Gate

WINDOW_S = 10.0
MAX_TIMES = 4096
REPORT_S, PUBLISH_S = 0.5, 1.0
PERCENTILES = (50, 90, 99)
CACHE_METRIC = "workbench_kv_cache_blocks"
GATE_METRICS = ("workbench_gate_running", "workbench_gate_queued", "workbench_gate_shed")


class FirstTokens:
    """Recent times to first token, in seconds.

    While nothing is answered there are no times. So a request that already waits longer than the
    median of the others counts with its age.

    Args:
        window_s: Seconds for which a time counts.
        now: A monotonic clock in seconds.
    """

    def __init__(
        self, window_s: float = WINDOW_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_s, self._now = window_s, now
        self._times: deque[tuple[float, float]] = deque(maxlen=MAX_TIMES)
        self._waiting: dict[object, float] = {}

    def begin(self) -> object:
        """Count a new request; return its token for :meth:`served` and :meth:`dropped`."""
        request = object()
        self._waiting[request] = self._now()
        return request

    def served(self, request: object) -> None:
        """Record that the first token of a request was sent; later calls have no effect."""
        if (began := self._waiting.pop(request, None)) is not None:
            self.add(self._now() - began)

    def dropped(self, request: object) -> None:
        """Forget a request that ended without a first token, or was not streamed."""
        self._waiting.pop(request, None)

    def add(self, seconds: float) -> None:
        """Add a time to first token that was measured elsewhere."""
        self._times.append((self._now(), seconds))

    def percentiles(self) -> dict[int, float]:
        """Return seconds by percentile over the window; empty if there are no requests."""
        now = self._now()
        while self._times and now - self._times[0][0] > self._window_s:
            self._times.popleft()
        times = sorted(seconds for _, seconds in self._times)
        median = _quantile(times, 0.5) if times else 0.0
        late = [age for began in self._waiting.values() if (age := now - began) > median]
        values = sorted([*times, *late])
        return {p: _quantile(values, p / 100) for p in PERCENTILES} if values else {}


def _quantile(ordered: list[float], q: float) -> float:
    """The smallest value with a share of at least ``q`` at or below it."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


class EngineStats:
    """Figures of the engine's last step, as vLLM reports them to a stat logger.

    Args:
        unfinished: Returns the requests in progress. After an abort vLLM makes no step and so
            reports nothing; this shows that nothing runs.
        first_tokens: Receives the engine's times to first token.
    """

    def __init__(self, unfinished: Callable[[], int], first_tokens: FirstTokens) -> None:
        self._unfinished, self._first_tokens = unfinished, first_tokens
        self._running = self._waiting = 0
        self._kv_cache_usage = 0.0

    def record(self, scheduler_stats: Any, iteration_stats: Any, *rest: Any, **more: Any) -> None:
        """Take the figures of a step; called by vLLM."""
        if scheduler_stats is not None:
            self._running, self._waiting, self._kv_cache_usage = scheduler_figures(scheduler_stats)
        for seconds in first_token_times(iteration_stats):
            self._first_tokens.add(seconds)

    def log(self) -> None:
        """Log nothing; called by vLLM."""

    def log_engine_initialized(self) -> None:
        """Do nothing; called by vLLM when its engine is up."""

    def record_sleep_state(self, *state: Any) -> None:
        """Do nothing; called by vLLM when its engine is put to sleep or woken."""

    async def report(self, client: Any, publish: Callable[[], None]) -> None:
        """Publish vLLM's metrics every second.

        While nothing is in progress, report an idle step to all stat loggers before. vLLM reports
        nothing then: before the first request, and after an abort.

        Args:
            client: The engine.
            publish: Publishes the metrics. Ray drops a gauge that is not set for two seconds.
        """
        while True:
            if not self._unfinished():
                log_idle_step(client)
            publish()
            await asyncio.sleep(PUBLISH_S)

    def figures(self) -> dict[str, float]:
        """Return the figures by name; ``kv_cache_usage`` is between 0 and 1.

        Serve's own count is named ``running_requests``, so the engine's has another name.
        """
        if not self._unfinished():
            return dict.fromkeys(
                ("engine_running_requests", "waiting_requests", "kv_cache_usage"), 0.0
            )
        return {
            "engine_running_requests": float(self._running),
            "waiting_requests": float(self._waiting),
            "kv_cache_usage": float(self._kv_cache_usage),
        }


def autoscaling_stats(
    engine: dict[str, float], first_tokens: Iterable[FirstTokens], gate: Gate | None
) -> dict[str, float]:
    """Return what a replica reports to Serve for its policy.

    Args:
        engine: The engine's figures.
        first_tokens: Times to first token, the best source first: measured before the gate, else
            by the engine. The first one that has any is used.
        gate: The replica's gate, whose queue counts as waiting requests.
    """
    figures = dict(engine)
    figures["waiting_requests"] += gate.slots.queued if gate is not None else 0
    for source in first_tokens:
        if percentiles := source.percentiles():
            times = {f"ttft_p{p}_ms": seconds * 1e3 for p, seconds in percentiles.items()}
            return figures | times
    return figures


def with_ttft(app: App, first_tokens: FirstTokens) -> App:
    """Return ``app``, with the time to the first part of each streamed answer recorded."""

    async def measured(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("method") != "POST":
            return await app(scope, receive, send)
        request = first_tokens.begin()
        waiting = True

        def watch(message: Message) -> Awaitable[None]:
            nonlocal waiting
            if waiting and message["type"] == "http.response.start" and not _streams(message):
                waiting = False
                first_tokens.dropped(request)
            elif waiting and message.get("body") and not message["body"].startswith(b":"):
                waiting = False  # the first part that is not a comment
                first_tokens.served(request)
            return send(message)

        try:
            await app(scope, receive, watch)
        finally:
            first_tokens.dropped(request)

    return measured


def _streams(start: Message) -> bool:
    headers = dict(start.get("headers", ()))
    content_type = bytes(headers.get(b"content-type", b""))
    return start.get("status") == 200 and content_type.startswith(b"text/event-stream")


async def report_gate(gate: Gate) -> None:
    """Export the gate's figures as metrics of Serve, which each node's ``/metrics`` shows."""
    from ray.serve.metrics import Gauge

    descriptions = ("Requests in progress.", "Requests waiting at the gate.", "Requests shed.")
    running, queued, shed = (Gauge(*pair) for pair in zip(GATE_METRICS, descriptions, strict=True))
    while True:
        running.set(gate.slots.running)
        queued.set(gate.slots.queued)
        shed.set(gate.shed)
        await asyncio.sleep(REPORT_S)


async def report_cache(blocks: int, block_size: int) -> None:
    """Export the size of the engine's KV cache: ``blocks`` of ``block_size`` tokens.

    vLLM reports it once, when it starts, and Ray drops a gauge after two seconds.
    """
    from ray.serve.metrics import Gauge

    gauge = Gauge(CACHE_METRIC, "Blocks of the engine's KV cache.", tag_keys=("block_size",))
    while True:
        gauge.set(blocks, tags={"block_size": str(block_size)})
        await asyncio.sleep(PUBLISH_S)
