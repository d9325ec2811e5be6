"""ASGI's types, and an error in OpenAI's shape, so that its client raises its own exception."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REPLICA_HEADER = "x-serving-replica"
"""Names, in an answer, the replica that gave it, by Ray Serve's replica id."""

BUDGET_HEADER = "x-budget-usd"
"""Holds, in a request to a pipeline, what its answer may cost in $."""

MODEL_HEADER = "x-routed-model"
"""Names, in a pipeline's answer, the model that gave it."""


def signed(app: App, name: str) -> App:
    """The same application, with its name in every answer's :data:`REPLICA_HEADER`."""
    header = (REPLICA_HEADER.encode(), name.encode())

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        async def sign(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await app(scope, receive, sign)

    return named


class ApiError(Exception):
    """An error for the client, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.kind = status, message, code, kind
        self.headers = headers or {}

    async def send(self, send: Send) -> None:
        """Answer with it."""
        await respond(send, self.status, self.message, self.kind, self.code, self.headers)


class OverloadedError(ApiError):
    """A refusal because the service is full, not for what was asked."""


async def respond(
    send: Send,
    status: int,
    message: str,
    kind: str,
    code: str,
    headers: dict[str, str] | None = None,
) -> None:
    """Send an error in OpenAI's shape."""
    body = json.dumps(error_body(message, kind, code)).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body))}
    raw = [(name.encode(), value.encode()) for name, value in (fields | (headers or {})).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def error_body(message: str, kind: str, code: str | None) -> dict[str, Any]:
    """An error as OpenAI's API words it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
