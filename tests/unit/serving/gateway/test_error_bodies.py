"""Errors of Anthropic's routes, read by the clients of Anthropic and of OpenAI."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import httpx
import openai
import pytest
from support.gate_server import AUTHORIZED, CONFIG

from serving.gateway.asgi import Receive, Scope, Send, respond
from serving.gateway.error_bodies import anthropic_error
from serving.gateway.gate import Gate


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, 404, "Not here.", "not_found_error", "nothing")


def post(path: str, headers: dict[str, str], body: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(Gate(application, lambda: CONFIG))
        async with httpx.AsyncClient(transport=transport, base_url="http://gate") as client:
            return await client.post(path, json=body, headers=headers)

    return asyncio.run(send())


BODY = {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("headers", "body", "status", "kind"),
    [
        ({}, BODY, 401, "invalid_request_error"),
        (AUTHORIZED, [], 400, "invalid_request_error"),
        (AUTHORIZED, BODY, 404, "not_found_error"),
    ],
)
def test_an_error_is_read_by_both_clients(
    path: str, headers: dict[str, str], body: Any, status: int, kind: str
) -> None:
    reply = post(path, headers, body)
    assert (reply.status_code, reply.json()["type"]) == (status, "error")
    assert int(reply.headers["content-length"]) == len(reply.content)
    fields = reply.json()["error"]
    assert fields["type"] == kind
    for library in (anthropic, openai):
        with pytest.raises(library.APIStatusError) as caught:
            raise_as(library, reply)
        assert fields["message"] in str(caught.value)
        assert kind in str(caught.value.body)


def test_an_error_of_another_route_has_openais_shape() -> None:
    reply = post("/v1/chat/completions", {}, BODY)
    assert (reply.status_code, set(reply.json())) == (401, {"error"})


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'{"detail": 1}'])
def test_what_is_no_error_in_json_is_not_changed(body: bytes) -> None:
    assert anthropic_error(body) == body


def raise_as(library: Any, reply: httpx.Response) -> None:
    """Let a client's own code turn a response into an exception."""
    client = library.AsyncOpenAI if library is openai else library.AsyncAnthropic
    reply = httpx.Response(reply.status_code, content=reply.content, request=reply.request)
    raise client(api_key="k")._make_status_error_from_response(reply)
