"""Clients that disconnect before a whole answer, and HEAD requests, at a gate on a real socket."""

from __future__ import annotations

from typing import Any

import httpx
from support.gate_clients import disconnecting
from support.gate_server import AUTHORIZED, KEY, ServedGate, wait_until

from serving.gateway.asgi import Receive, Scope, Send, respond_json
from serving.gateway.context import RequestContext


def usage(served: ServedGate) -> tuple[int, int, int]:
    lease = served.gate.quotas.lease(served.config.tenants[0])
    return lease.usage.prompt_tokens, lease.usage.output_tokens, lease.usage.errors


def test_a_client_that_disconnects_pays_for_what_the_engine_generated(held: ServedGate) -> None:
    app = held.gate._app
    tokens = iter(range(100, 200))

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        RequestContext.from_scope(scope).generated = lambda: (40, next(tokens))
        await app(scope, receive, send)

    held.gate._app = counting
    with disconnecting(held, "a"):
        assert usage(held) == (0, 0, 0)
    wait_until(lambda: held.app.running == 0)
    wait_until(lambda: held.gate.slots.running == 0)
    assert held.app.log[0].end in ("cancelled", "disconnected")
    assert usage(held) == (40, 100, 0)


def test_a_client_that_disconnects_in_the_queue_pays_nothing(held: ServedGate) -> None:
    with disconnecting(held, "a"), disconnecting(held, "b"), disconnecting(held, "c"):
        assert held.gate.slots.queued == 1
    wait_until(lambda: held.gate.slots.running + held.gate.slots.queued == 0)
    assert usage(held) == (0, 0, 0)


def test_head_has_the_headers_of_get_and_no_body(served: ServedGate) -> None:
    async def only_get(scope: Scope, receive: Receive, send: Send) -> None:
        status = 200 if scope["method"] == "GET" else 405  # as vLLM's own /health
        await respond_json(send, status, {"status": "ok"})

    served.gate._app = only_get
    with served.http() as client:
        replies: list[tuple[httpx.Response, httpx.Response]] = [
            (client.request("HEAD", path, headers=headers), client.get(path, headers=headers))
            for path, headers in (
                ("/health", {}),
                ("/v1/models", AUTHORIZED),
                ("/v1/models/m", {"x-api-key": KEY}),
            )
        ]
        assert client.head("/v1/models").status_code == 401
        unknown: Any = client.head("/v1/models/none", headers=AUTHORIZED)
    for head, get in replies:
        assert (head.status_code, get.status_code) == (200, 200)
        assert head.content == b""
        assert head.headers["content-length"] == get.headers["content-length"] != "0"
    assert unknown.status_code == 404
