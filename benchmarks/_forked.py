"""A replica with two ways in: through its gate, and past it. For benchmarks alone.

The application names it by import path; only replicas import it.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from serving.engine.replica import GatedReplica
from serving.gateway.asgi import App, Receive, Scope, Send

PAST = b"x-past-the-gate"


@serve.ingress()
class ForkedReplica(GatedReplica):
    """The direct path's replica, whose gate a request with the header :data:`PAST` goes round."""

    async def __serve_build_asgi_app__(self) -> App:
        gated: Any = await super().__serve_build_asgi_app__()
        assert self._gate is not None
        bare = self._gate._app

        async def fork(scope: Scope, receive: Receive, send: Send) -> None:
            past = any(name == PAST for name, _ in scope.get("headers", ()))
            await (bare if past else gated)(scope, receive, send)

        return fork
