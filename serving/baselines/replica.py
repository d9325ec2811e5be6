"""The replica of a baseline: the engine's process, and the OpenAI API behind our gate."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve

from serving.baselines.api import Api
from serving.baselines.engine_client import EngineClient
from serving.cpu import lower_engine_priority
from serving.engine.stats import FirstTokens, report_gate, with_ttft
from serving.gateway.asgi import App, with_replica_header
from serving.gateway.config import GateConfig
from serving.gateway.gate import Gate, open_gate
from serving.spec.baseline import BaselineSpec


@serve.ingress()
class BaselineReplica:
    """The counterpart of `serving.engine.replica.DirectReplica`, with transformers for vLLM."""

    async def __init__(self, spec: dict[str, Any]) -> None:  # type: ignore[misc]
        self._access: GateConfig | None = None
        self._gate: Gate | None = None
        self._spec = BaselineSpec(**spec)
        lower_engine_priority(self._spec.model.accelerator)
        self._engine = EngineClient(spec)
        await self._engine.start()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Adopt new keys and limits without a restart."""
        self._access = GateConfig(**user_config["access"])

    def check_health(self) -> None:
        """Fail once the engine has ended, so that Serve starts another replica."""
        self._engine.check()

    async def __serve_build_asgi_app__(self) -> App:
        api = Api(self._spec, self._engine)
        self._gate = open_gate(api.app(), lambda: self._access, api.context_length)
        self._reporting = asyncio.create_task(report_gate(self._gate))
        gate = with_ttft(self._gate, FirstTokens())
        return with_replica_header(gate, serve.get_replica_context().replica_id.unique_id)

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.stop()
