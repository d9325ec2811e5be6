"""ASGI types, and errors in the shape of OpenAI's API, which its client raises as its own."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
"""A wrapper of ``send`` that has nothing to await is a plain function and returns the awaitable of
the next one: a coroutine per wrapper and chunk costs more than what the wrapper does."""
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REPLICA_HEADER = "x-serving-replica"
"""Response header with Ray Serve's id of the replica that answered."""

BUDGET_HEADER = "x-budget-usd"
"""Request header with the most an answer may cost, in $; read by pipelines."""

SESSION_HEADER = "x-session-id"
"""Request header whose value Ray Serve's session router hashes to a replica."""

MODEL_HEADER = "x-routed-model"
"""Response header with the model that answered; set by pipelines."""


async def send_nothing() -> None:
    """Take the place of a message that is not sent."""


def with_replica_header(app: App, replica_id: str) -> App:
    """Wrap an application so that every response has :data:`REPLICA_HEADER`."""
    header = (REPLICA_HEADER.encode(), replica_id.encode())

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        def send_with_header(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            return send(message)

        await app(scope, receive, send_with_header)

    return wrapped


class ApiError(Exception):
    """An error to send to the client.

    Args:
        status: HTTP status.
        message: What is wrong and how to fix it; shown to the client.
        code: OpenAI's ``code``, for programs.
        kind: OpenAI's ``type``.
        headers: Further response headers.
        param: OpenAI's ``param``: the field at fault.

    Attributes:
        sent: Whether the client has got it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.kind = status, message, code, kind
        self.headers, self.param = headers or {}, param
        self.sent = False

    async def send(self, send: Send) -> None:
        """Send this error as the response."""
        body = error_body(self.message, self.kind, self.code, self.param)
        self.sent = True
        await respond_json(send, self.status, body, self.headers)


class OverloadedError(ApiError):
    """The service is full; nothing is wrong with the request itself."""


def invalid_request(message: str, code: str, param: str | None = None) -> ApiError:
    """Return the error for a request whose field ``param`` is at fault."""
    return ApiError(400, message, code, param=param)


async def respond(
    send: Send,
    status: int,
    message: str,
    kind: str,
    code: str,
    headers: dict[str, str] | None = None,
) -> None:
    """Send an error response in OpenAI's shape."""
    await respond_json(send, status, error_body(message, kind, code), headers)


async def respond_json(
    send: Send, status: int, content: Any, headers: dict[str, str] | None = None
) -> None:
    """Send a response with a JSON body."""
    body = json.dumps(content).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body))}
    raw = [(name.encode(), value.encode()) for name, value in (fields | (headers or {})).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def error_body(
    message: str, kind: str, code: str | int | None, param: str | None = None
) -> dict[str, Any]:
    """Return an error as OpenAI's API formats it; ``param`` is the field at fault."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
