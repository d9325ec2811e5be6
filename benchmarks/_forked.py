"""A replica that can be reached through its gate and without it, for benchmarks only.

The application refers to it by import path, and only replicas import it.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from serving.engine.replica import GatedReplica
from serving.gateway.asgi import App, Receive, Scope, Send

BYPASS = b"x-past-the-gate"


@serve.ingress()
class ForkedReplica(GatedReplica):
    """The direct path's replica. Requests with the header :data:`BYPASS` skip its gate."""

    async def __serve_build_asgi_app__(self) -> App:
        gated: Any = await super().__serve_build_asgi_app__()
        assert self._gate is not None
        bare = self._gate._app

        async def fork(scope: Scope, receive: Receive, send: Send) -> None:
            bypass = any(name == BYPASS for name, _ in scope.get("headers", ()))
            await (bare if bypass else gated)(scope, receive, send)

        return fork
