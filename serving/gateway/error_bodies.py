"""Bodies of errors: rewriting them, and the shape that Anthropic's clients expect."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from serving.gateway.asgi import Message, Send, send_nothing

MESSAGES = "/v1/messages"
"""Anthropic's routes begin with this."""


class ErrorRewriter:
    """Rewrites the body of one response if it is an error.

    Args:
        send: Sends the response.
        rewrite: Returns the new body.
    """

    def __init__(self, send: Send, rewrite: Callable[[bytes], bytes]) -> None:
        self._send, self._rewrite = send, rewrite
        self._start: Message | None = None
        self._body = b""

    def send(self, message: Message) -> Awaitable[None]:
        """Pass on a message of the response, or keep it until the body is complete."""
        if self._start is not None:
            return self._keep(self._start, message)
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
            return send_nothing()
        return self._send(message)

    async def _keep(self, start: Message, message: Message) -> None:
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = self._rewrite(self._body)
        headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def anthropic_error(body: bytes) -> bytes:
    """Return the body of an error in OpenAI's shape with Anthropic's ``{"type": "error"}``.

    A body that is no error in JSON is not changed.
    """
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return body
    return json.dumps({"type": "error", "error": error}).encode()
