"""What one replica feels: the figures its autoscaling policy goes by, and its gate's as metrics.

`EngineStats` stands beside vLLM's own stat loggers and keeps the last step's figures; `FirstTokens`
keeps the recent times to first token, those of requests still waiting included.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.gateway.asgi import App, Message, Receive, Scope, Send
    from serving.gateway.gate import Gate

WINDOW_S = 10.0
MOST = 4096
REPORT_S, IDLE_REPORT_S = 0.5, 1.0
PERCENTILES = (50, 90, 99)
CACHE_METRIC = "workbench_kv_cache_blocks"
GATE_METRICS = ("workbench_gate_running", "workbench_gate_queued", "workbench_gate_shed")
Clock = Callable[[], float]


class FirstTokens:
    """Recent times to first token in seconds.

    While nothing is answered there are no times to go by, so a request that waits already longer
    than most others took counts with its age.
    """

    def __init__(self, window_s: float = WINDOW_S, now: Clock = time.monotonic) -> None:
        self._window_s, self._now = window_s, now
        self._taken: deque[tuple[float, float]] = deque(maxlen=MOST)
        self._began: dict[object, float] = {}

    def begin(self) -> object:
        """A request has come; gives what `served` and `dropped` want."""
        request = object()
        self._began[request] = self._now()
        return request

    def served(self, request: object) -> None:
        """Its first token is on its way."""
        if (began := self._began.pop(request, None)) is not None:
            self.add(self._now() - began)

    def dropped(self, request: object) -> None:
        """It ended without one, or was not streamed."""
        self._began.pop(request, None)

    def add(self, seconds: float) -> None:
        """A time to first token that something else measured."""
        self._taken.append((self._now(), seconds))

    def percentiles(self) -> dict[int, float]:
        """Seconds by percentile over the window; empty where nothing came and nothing waits."""
        now = self._now()
        while self._taken and now - self._taken[0][0] > self._window_s:
            self._taken.popleft()
        taken = sorted(seconds for _, seconds in self._taken)
        usual = _quantile(taken, 0.5) if taken else 0.0
        late = [age for began in self._began.values() if (age := now - began) > usual]
        values = sorted([*taken, *late])
        return {p: _quantile(values, p / 100) for p in PERCENTILES} if values else {}


def _quantile(ordered: list[float], q: float) -> float:
    """The smallest value with a share of at least `q` at or below it."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


class EngineStats:
    """The last engine step's figures, as vLLM tells its stat loggers.

    After an abort vLLM makes no step and so tells nothing: `unfinished`, the number of requests
    that the server still knows, then says that nothing runs.
    """

    def __init__(self, unfinished: Callable[[], int], first_tokens: FirstTokens) -> None:
        self._unfinished, self._first_tokens = unfinished, first_tokens
        self._running = self._waiting = 0
        self._kv_cache_usage = 0.0

    def record(self, scheduler_stats: Any, iteration_stats: Any, *rest: Any, **more: Any) -> None:
        """Called by vLLM after each step."""
        if scheduler_stats is not None:
            self._running = scheduler_stats.num_running_reqs
            self._waiting = scheduler_stats.num_waiting_reqs
            self._waiting += scheduler_stats.num_skipped_waiting_reqs
            self._kv_cache_usage = scheduler_stats.kv_cache_usage
        for seconds in getattr(iteration_stats, "time_to_first_tokens_iter", ()):
            self._first_tokens.add(seconds)

    def log(self) -> None:
        """vLLM's moment to log; nothing is."""

    def log_engine_initialized(self) -> None:
        """vLLM's engine is up."""

    def record_sleep_state(self, *state: Any) -> None:
        """vLLM was put to sleep or woken."""

    async def stay_fresh(self, logger_manager: Any) -> None:
        """While nothing is in progress, say so to all stat loggers once a second.

        vLLM tells them nothing then: before the first request, after an abort, and for so long
        that Ray takes the gauges of an idle engine for gone.
        """
        from vllm.v1.metrics.stats import SchedulerStats

        while True:
            if not self._unfinished():
                logger_manager.record(scheduler_stats=SchedulerStats(), iteration_stats=None)
            await asyncio.sleep(IDLE_REPORT_S)

    def figures(self) -> dict[str, float]:
        """By name; `kv_cache_usage` from 0 to 1. Serve's own count is named `running_requests`."""
        if not self._unfinished():
            return dict.fromkeys(
                ("engine_running_requests", "waiting_requests", "kv_cache_usage"), 0.0
            )
        return {
            "engine_running_requests": float(self._running),
            "waiting_requests": float(self._waiting),
            "kv_cache_usage": float(self._kv_cache_usage),
        }


def reported(
    engine: dict[str, float], first_tokens: Iterable[FirstTokens], gate: Gate | None
) -> dict[str, float]:
    """What a replica tells Serve for its policy.

    The gate's queue waits before the engine's. Times to first token are those of the first of
    `first_tokens` that has any: before the gate, else the engine's own.
    """
    figures = dict(engine)
    figures["waiting_requests"] += gate.slots.queued if gate is not None else 0
    for source in first_tokens:
        if percentiles := source.percentiles():
            times = {f"ttft_p{p}_ms": seconds * 1e3 for p, seconds in percentiles.items()}
            return figures | times
    return figures


def timed(app: App, first_tokens: FirstTokens) -> App:
    """`app`, with the time to the first part of each streamed answer."""

    async def timed_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("method") != "POST":
            return await app(scope, receive, send)
        request = first_tokens.begin()

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and not _streams(message):
                first_tokens.dropped(request)
            elif message["type"] == "http.response.body" and message.get("body"):
                first_tokens.served(request)
            await send(message)

        try:
            await app(scope, receive, watch)
        finally:
            first_tokens.dropped(request)

    return timed_app


def _streams(start: Message) -> bool:
    headers = dict(start.get("headers", ()))
    kind = bytes(headers.get(b"content-type", b""))
    return start.get("status") == 200 and kind.startswith(b"text/event-stream")


async def report_gate(gate: Gate) -> None:
    """Keep the gate's figures in Serve's metrics, under which `/metrics` of the node shows them."""
    from ray.serve.metrics import Gauge

    told = ("Requests let through.", "Requests waiting at the gate.", "Requests refused so far.")
    running, queued, shed = (Gauge(n, d) for n, d in zip(GATE_METRICS, told, strict=True))
    while True:
        running.set(gate.slots.running)
        queued.set(gate.slots.queued)
        shed.set(gate.shed)
        await asyncio.sleep(REPORT_S)


async def report_cache(blocks: int, block_size: int) -> None:
    """Keep the size of the engine's KV cache in Serve's metrics: blocks of `block_size` tokens.

    vLLM tells it once, at its start, and Ray takes a gauge for gone after two seconds.
    """
    from ray.serve.metrics import Gauge

    told = Gauge(CACHE_METRIC, "Blocks of the engine's KV cache.", tag_keys=("block_size",))
    while True:
        told.set(blocks, tags={"block_size": str(block_size)})
        await asyncio.sleep(IDLE_REPORT_S)
