"""Private API of Ray Serve LLM's server, checked against Ray 2.60.0.

Importing this module imports vLLM; only replicas do so.
"""

from __future__ import annotations

from typing import Any

from serving.compat.kv_connectors import register_kv_connectors
from serving.compat.vllm_rust import become_python_client, shared_core

# The imports below fail if two replicas start together and register the connectors themselves.
register_kv_connectors()

from ray.llm._internal.common.callbacks.base import CallbackBase  # noqa: E402
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine  # noqa: E402
from ray.llm._internal.serve.serving_patterns.data_parallel.dp_server import (  # noqa: E402
    DPServer as DPServer,
)
from ray.serve.llm.deployment import LLMServer  # noqa: E402
from ray.serve.llm.deployment import PDDecodeServer as PDDecodeServer  # noqa: E402
from ray.serve.llm.deployment import PDPrefillServer as PDPrefillServer  # noqa: E402

DECODE_PORTS = {"NIXL_SIDE_CHANNEL_PORT_BASE": 22_000}
"""``experimental_configs`` of a decode server, whose ports must not be those of a prefill server on
the same host (``ray.llm._internal.serve.serving_patterns.prefill_decode.builder``)."""


def report_kv_blocks(config: Any) -> None:
    """Let the engine of an ``LLMConfig`` report its KV blocks, for KV-aware routing.

    Calls ``ray.llm._internal.serve.routing_policies.kv_aware.vllm.kv_events``'s
    ``configure_kv_events_for_kv_routing(llm_config)``.
    """
    from ray.llm._internal.serve.routing_policies.kv_aware.vllm import kv_events

    kv_events.configure_kv_events_for_kv_routing(config)


class SkipNodeInit(CallbackBase):  # type: ignore[misc]
    """Skip Ray's download task; vLLM loads a model from a path or from the hub by itself.

    The task takes a process that imports vLLM (ten seconds of a core), and Ray records its
    environment, including a hub token. ``ray.llm._internal.common.callbacks.base.CallbackBase``
    calls ``on_before_node_init()`` and then reads ``ctx.run_init_node``.
    """

    async def on_before_node_init(self) -> None:
        """Turn the initialization of the node off."""
        self.ctx.run_init_node = False


def shared_engine(input_address: str, output_address: str) -> type[Any]:
    """Return an engine class for ``LLMServer(engine_cls=)`` whose core serves another client too.

    ``VLLMEngine._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)``
    creates vLLM's ``AsyncLLM``, which starts the core.

    Args:
        input_address: Where the core connects to, for the other client's requests.
        output_address: Where it connects to, for the other client's outputs.
    """

    class SharedEngine(VLLMEngine):  # type: ignore[misc]
        def _start_async_llm_engine(self, *args: Any) -> Any:
            with shared_core(input_address, output_address):
                client = super()._start_async_llm_engine(*args)
            become_python_client(client)
            return client

    return SharedEngine


class EngineServer(LLMServer):  # type: ignore[misc]
    """Ray Serve LLM's server, with the hooks that a subclass needs under public names.

    ``ray.llm._internal.serve.core.server.llm_server.LLMServer`` calls ``_start_engine()`` once, and
    its ``__serve_build_asgi_app__()`` returns vLLM's own server. Its ``engine``
    (``ray.llm._internal.serve.engines.vllm.vllm_engine.VLLMEngine``) has vLLM's ``AsyncLLM`` as
    ``_engine_client``.
    """

    @property
    def engine_client(self) -> Any:
        """The ``AsyncLLM`` of vLLM."""
        return self.engine._engine_client

    async def engine_app(self) -> Any:
        """Return vLLM's own server for this engine, a FastAPI application."""
        return await super().__serve_build_asgi_app__()

    async def _start_engine(self) -> None:
        # Ray's own version also starts an actor that reports usage.
        await self.engine.start()
        await self.on_engine_started()

    async def on_engine_started(self) -> None:
        """Run once, after the engine has loaded and before the first request."""
