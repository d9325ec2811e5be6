"""vLLM's Rust front end in a replica: its process, the relay to it, and its metrics."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import ClientError
from prometheus_client import CollectorRegistry, make_asgi_app

from serving.engine.frontend import answer_limit
from serving.engine.rust_metrics import Registry, SharedMetrics
from serving.engine.rust_process import RustProcess
from serving.engine.rust_relay import RustRelay
from serving.engine.stats import PUBLISH_S, FirstTokens
from serving.gateway.asgi import App, Receive, Scope, Send
from serving.gateway.http_routes import path_below_prefix
from serving.spec.model import ModelSpec

METRICS_ROUTE = "/metrics"
logger = logging.getLogger(__name__)


class RustFrontend:
    """The Rust front end of one replica, as a second client of its engine core.

    Args:
        model: The model.
        registry: Where vLLM registers the metrics of the client in Python.
        first_tokens: Receives the times to first token of the streams it answers.

    Attributes:
        metrics: The metrics of both clients.
    """

    def __init__(self, model: ModelSpec, registry: Registry, first_tokens: FirstTokens) -> None:
        self._model, self._first_tokens = model, first_tokens
        self._process = RustProcess(model)
        self._relay: RustRelay | None = None
        self.metrics = SharedMetrics(registry)

    def engine_class(self) -> type[Any]:
        """Return the class of an engine whose core serves this front end too."""
        from serving.compat.ray_server import shared_engine

        return shared_engine(self._process.input_address, self._process.output_address)

    async def open(self, app: App) -> App:
        """Wait until the front end answers, and return the application of both front ends.

        Args:
            app: vLLM's own server on the same engine core.

        Raises:
            RuntimeError: It has ended, or does not answer.
        """
        relay = RustRelay(
            app,
            self._process.socket,
            self._model.model_id,
            answer_limit(self._model),
            self._first_tokens,
        )
        await self._process.wait_until_ready(relay.is_ready)
        self._relay = relay
        registry = CollectorRegistry(auto_describe=True)  # It can select metrics by name.
        registry.register(self.metrics)
        metrics_app: App = make_asgi_app(registry=registry)

        async def both(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and path_below_prefix(scope) == METRICS_ROUTE:
                return await metrics_app(scope, receive, send)
            await relay(scope, receive, send)

        return both

    @property
    def running(self) -> int:
        """Requests in progress at the front end."""
        return 0 if self._relay is None else self._relay.running

    @property
    def ended(self) -> bool:
        """Whether its process has ended."""
        return self._process.status is not None

    async def check(self) -> None:
        """Wait until it answers, which one that is stopped or stuck never does.

        Raises:
            RuntimeError: It has ended, or has lost the engine.
        """
        self._process.check()
        assert self._relay is not None
        if not await self._relay.is_ready():
            raise RuntimeError(
                "vLLM's Rust front end has lost the engine, or has just ended. The replica's log "
                "has its messages."
            )

    def end(self) -> None:
        """End its process, and with it the streams in progress."""
        self._process.end()

    async def read_metrics(self) -> None:
        """Read its metrics every second, without end. After an error the last ones remain."""
        assert self._relay is not None
        while True:
            try:
                self.metrics.read(await self._relay.metrics())
            except (ClientError, TimeoutError, ValueError) as error:
                logger.warning("The Rust front end's metrics could not be read: %r", error)
            await asyncio.sleep(PUBLISH_S)
