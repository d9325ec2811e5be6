"""The replicas: Ray Serve LLM's server, on the direct path behind our gate.

The application names these classes by import path (``serving.engine.entry``), so that only replicas
import vLLM.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from prometheus_client import REGISTRY
from ray import serve

from serving.compat.ray_server import (
    DECODE_PORTS,
    DPServer,
    EngineServer,
    PDDecodeServer,
    PDPrefillServer,
)
from serving.compat.vllm import (
    add_stat_logger,
    check_grammars_elsewhere,
    count_generated_tokens,
    kv_cache_blocks,
    tokenizer_info,
    unfinished_requests,
)
from serving.cpu import lower_engine_priority
from serving.engine.coalesce import StreamCoalescer
from serving.engine.engine_args import llm_config, prepare_front_end
from serving.engine.fork_server import is_wanted, use_fork_server
from serving.engine.frontend import choose_frontend
from serving.engine.grammars import GrammarChecker
from serving.engine.health import EngineHealth
from serving.engine.http_app import build_engine_app
from serving.engine.http_call import EngineRequest, Packet, call_app
from serving.engine.hub_token import hide_hub_token
from serving.engine.prefill import without_min_tokens
from serving.engine.ray_metrics import RayMetrics
from serving.engine.rust_frontend import RustFrontend
from serving.engine.start_errors import engine_errors
from serving.engine.stats import (
    EngineStats,
    FirstTokens,
    autoscaling_stats,
    report_cache,
    report_gate,
    with_ttft,
)
from serving.engine.warmup import choose_folder, warm_up
from serving.gateway.asgi import App, with_replica_header
from serving.gateway.config import GateConfig
from serving.gateway.gate import Gate, open_gate
from serving.spec.model import ModelSpec

POLL_S = 0.25
EXIT_DELAY_S = 0.5
"""Seconds that a replica runs after its engine died, to answer its requests in progress."""


class EngineReplica(EngineServer):
    """One vLLM engine, reached through a deployment handle (the composed path)."""

    PORTS: dict[str, int] = {}  # noqa: RUF012 (constant)
    """Ports of the engine that differ from Ray's defaults."""

    async def __init__(self, model: dict[str, Any], **handles: Any) -> None:  # type: ignore[misc]
        hide_hub_token()
        self._first_tokens = FirstTokens()
        spec = ModelSpec(**model)
        self._coalescer = StreamCoalescer(spec.stream_batching_interval_ms / 1e3)
        self._compiles_sampler = spec.accelerator == "cpu"
        if self._compiles_sampler:
            await asyncio.to_thread(choose_folder, spec.path)
        self._rust: RustFrontend | None = None
        try:
            if choose_frontend(spec).name == "rust":
                self._rust = RustFrontend(spec, REGISTRY, self._first_tokens)
                handles["engine_cls"] = self._rust.engine_class()
            lower_engine_priority(spec.accelerator)
            prepare_front_end(spec)
            # vLLM binds a process to a NUMA node through a program that runs the interpreter.
            if is_wanted() and not spec.engine_kwargs.get("numa_bind"):
                use_fork_server()
            config = llm_config(spec)
            config.experimental_configs.update(self.PORTS)
            await super().__init__(config, **handles)
        except Exception as error:
            if self._rust is not None:
                self._rust.end()
            raise RuntimeError(engine_errors(error)) from None

    async def on_engine_started(self) -> None:
        """Warm the engine up and start the tasks that report its state."""
        client = self.engine_client
        if self._compiles_sampler:
            await warm_up(client)
        count_generated_tokens(client)
        grammars = GrammarChecker(lambda: tokenizer_info(client))
        check_grammars_elsewhere(client, grammars.error, grammars.check)
        rust = self._rust
        app = build_engine_app(await self.engine_app(), await client.get_supported_tasks())
        self._app = app if rust is None else await rust.open(app)
        in_python = unfinished_requests(client)
        self._stats = EngineStats(
            lambda: in_python() + (rust.running if rust else 0), self._first_tokens
        )
        add_stat_logger(client, self._stats)
        self._health = EngineHealth(client)
        registry = REGISTRY if rust is None else rust.metrics
        metrics = RayMetrics(registry, serve.get_replica_context().replica_id.unique_id)
        self._tasks = [
            asyncio.create_task(self._stats.report(client, metrics.publish)),
            asyncio.create_task(report_cache(*kv_cache_blocks(client))),
            asyncio.create_task(self._end_with_the_engine()),
        ]
        if rust is not None:
            self._tasks.append(asyncio.create_task(rust.read_metrics()))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what Serve passes to an autoscaling policy (``serving.deploy.autoscaling``)."""
        return autoscaling_stats(self._stats.figures(), [self._first_tokens], None)

    async def handle_http(self, request: EngineRequest) -> AsyncIterator[Packet]:
        """Answer a request that came through a handle.

        Yields:
            Its progress and the start of the response, then the rest of its body, with the tokens
            of a stream joined (:class:`~serving.engine.coalesce.StreamCoalescer`).
        """
        async for packet in self._coalescer.coalesce(call_app(self._app, request)):
            yield packet

    async def _end_with_the_engine(self) -> None:
        """End this process soon after its engine or front end, so that it gets no more requests.

        Serve would wait for three more failed health checks, and every request sent here until
        then would fail. A process that has ended refuses connections, and HAProxy tries another.
        """
        while not (self.engine_client.errored or (self._rust and self._rust.ended)):
            await asyncio.sleep(POLL_S)
        if self._rust is not None:
            self._rust.end()  # It would not notice that the engine has ended.
        await asyncio.sleep(EXIT_DELAY_S)
        if not self.engine_client.errored:
            # The replica that replaces this one needs the engine's memory.
            await asyncio.to_thread(self.engine_client.shutdown, 0)
        os._exit(1)

    async def __del__(self) -> None:
        """End the front end in Rust; Serve awaits this after the replica's last request.

        Serve then kills the process, which would leave the sockets of the front end.
        """
        if rust := getattr(self, "_rust", None):
            for task in getattr(self, "_tasks", ()):
                task.cancel()  # One of them ends the process with the front end.
            rust.end()
        await super().__del__()

    async def check_health(self) -> None:
        """Raise if the engine or the front end has ended, and wait until both answer.

        vLLM's own check only notices an engine that has ended. An engine or a front end that is
        stopped or stuck would hold its requests forever. Serve bounds the wait
        (``health_check_timeout_s``) and replaces the replica after the third timeout in a row.
        """
        await super().check_health()
        if self._rust is not None:
            await self._rust.check()
        await self._health.check()


class GatedReplica(EngineReplica):
    """One vLLM engine with vLLM's own OpenAI server in front, behind our gate."""

    async def __init__(self, model: dict[str, Any], **handles: Any) -> None:  # type: ignore[misc]
        self._access: GateConfig | None = None
        self._gate: Gate | None = None
        self._gate_first_tokens = FirstTokens()
        await super().__init__(model, **handles)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new keys and limits without a restart."""
        self._access = GateConfig(**user_config["access"])

    async def __serve_build_asgi_app__(self) -> App:
        context_length = self.engine_client.model_config.max_model_len
        self._gate = open_gate(self._app, lambda: self._access, context_length)
        self._reporting = asyncio.create_task(report_gate(self._gate))
        gate = with_ttft(self._gate, self._gate_first_tokens)
        return with_replica_header(gate, serve.get_replica_context().replica_id.unique_id)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Add the gate's queue, and use times to first token that include it."""
        sources = [self._gate_first_tokens, self._first_tokens]
        return autoscaling_stats(self._stats.figures(), sources, self._gate)


@serve.ingress()
class DirectReplica(GatedReplica):
    """A replica that answers clients itself (the direct path)."""


class EngineGroupReplica(EngineReplica, DPServer):  # type: ignore[misc]
    """One rank of a data-parallel group, whose engine shares the experts with the other ranks.

    Ray Serve places and restarts the group as one; ``DPServer`` tells each rank where rank 0 is.
    """


# Not derived from DirectReplica: Serve rejects a class that already is one of its applications.
@serve.ingress()
class DirectGroupReplica(GatedReplica, DPServer):  # type: ignore[misc]
    """A rank that answers clients itself."""


class PrefillReplica(EngineReplica, PDPrefillServer):  # type: ignore[misc]
    """One engine that reads prompts and gives their KV cache to decode replicas."""

    async def chat(self, request: Any, raw_request_info: Any = None) -> Any:
        """Read the prompt of a chat."""
        return await super().chat(without_min_tokens(request), raw_request_info)

    async def completions(self, request: Any, raw_request_info: Any = None) -> Any:
        """Read the prompt of a completion."""
        return await super().completions(without_min_tokens(request), raw_request_info)


@serve.ingress()
class DecodeReplica(GatedReplica, PDDecodeServer):  # type: ignore[misc]
    """A replica that answers clients, and has the prompts of chats and completions read elsewhere.

    The other routes, such as ``/v1/responses``, read their prompts here.

    Its ``prefill_server`` is the handle of the prefill replicas.
    """

    PORTS = DECODE_PORTS
