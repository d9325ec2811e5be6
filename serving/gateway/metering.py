"""The tokens of a response by the server's own count, read from the bytes that pass.

A whole answer has ``usage``. A stream ends with it, or was asked to (``Body.request_usage``). If
that end never comes, because the client disconnected, the engine's count so far is used. Without
one, each event counts as one token and the prompt by its characters: less exact, but never zero.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from serving.gateway.asgi import Message, Send, send_nothing
from serving.gateway.bodies.body import Body
from serving.gateway.bodies.fields import Kind

# Quotation marks and line ends are escaped inside a JSON string, so no generated text can match
# these. A client's own object may have the key "usage" (a tool's schema, repeated in the response),
# but the server's comes after it, or in /rerank before it.
_USAGE_KEY = b'"usage":'
_USAGE = re.compile(_USAGE_KEY + rb"\s*\{")
_FINAL_EVENT: dict[Kind, re.Pattern[bytes]] = {
    "responses": re.compile(rb"event: response\.(completed|incomplete|failed)\r?\n"),
    "messages": re.compile(rb"event: message_delta\r?\n"),
}
"""Events with the final usage; an earlier one is an intermediate count."""
_TOKEN_EVENT: dict[Kind, bytes] = {
    "responses": b".delta\n",
    "messages": b"event: content_block_delta\n",
}
"""Text in each event with a token, unless it is ``data:``."""
_EDGE_BYTES = 4096
_DECODER = json.JSONDecoder()


class Meter:
    """Passes a response on, adds headers to it, and records what it cost.

    Attributes:
        status: HTTP status; None before the response has started.
        streams: Whether the response is a stream of server-sent events.
        ended: Whether the response is complete.
    """

    def __init__(self, send: Send, body: Body, headers: Callable[[], Iterable[tuple[str, str]]]):
        self._send, self._body, self._headers = send, body, headers
        self._final_event = _FINAL_EVENT.get(body.kind)
        self._token_event = _TOKEN_EVENT.get(body.kind, b"data:")
        self.status: int | None = None
        self.streams = False
        self.ended = False
        self._events = 0
        self._head = self._tail = b""

    def send(self, message: Message) -> Awaitable[None]:
        """Pass on an ASGI message."""
        if message["type"] == "http.response.body":
            message = self._read(message)
            if not message.get("body") and message.get("more_body"):
                return send_nothing()
        elif message["type"] == "http.response.start":
            self._start(message)
        return self._send(message)

    def _start(self, message: Message) -> None:
        self.status = message["status"]
        headers = list(message.get("headers", ()))
        self.streams = any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in headers
        )
        headers += [(name.encode(), value.encode()) for name, value in self._headers()]
        message["headers"] = headers

    def _read(self, message: Message) -> Message:
        data = message.get("body", b"")
        self.ended = not message.get("more_body", False)
        if not self.streams:
            self._head = (self._head + data[:_EDGE_BYTES])[:_EDGE_BYTES]
            self._tail = (self._tail + data)[-_EDGE_BYTES:]
            return message
        self._events += data.count(self._token_event)
        if _USAGE_KEY not in data:  # much faster than the pattern, and true of almost every chunk
            return message
        if _USAGE.search(data) and (self._final_event is None or self._final_event.search(data)):
            self._tail = data
            if self._body.hide_usage:
                message = {**message, "body": _without_usage(data)}
        return message

    def tokens(self, generated: Callable[[], tuple[int, int]]) -> tuple[int, int]:
        """Return the tokens of the prompt and of the answer.

        Args:
            generated: Returns the engine's count so far, for an answer that was not completed; zero
                if the engine did not get the request.
        """
        if self.status is not None and self.status >= 400:
            return 0, 0
        usage = self._usage() or generated()
        if self.status is None or any(usage):
            return usage
        return -(-self._body.prompt_chars // 4), self._events

    def _usage(self) -> tuple[int, int] | None:
        if self._body.kind == "count_tokens":
            return _counts(self._head, 0)
        data, index = (self._head, 0) if self._body.kind == "rerank" else (self._tail, -1)
        starts = [match.end() - 1 for match in _USAGE.finditer(data)]
        return _counts(data, starts[index]) if starts else None


def _counts(data: bytes, start: int) -> tuple[int, int] | None:
    """Return the tokens in the JSON object at ``start``, in OpenAI's or Anthropic's names."""
    try:
        usage, _ = _DECODER.raw_decode(data[start:].decode("utf-8", "replace"))
        if "prompt_tokens" in usage:
            return int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
        return _input_tokens(usage), int(usage.get("output_tokens") or 0)
    except (ValueError, KeyError, TypeError):
        return None


def _input_tokens(usage: dict[str, Any]) -> int:
    """Return the prompt's tokens; Anthropic's format counts cached ones separately."""
    cached = ("cache_read_input_tokens", "cache_creation_input_tokens")
    return int(usage["input_tokens"]) + sum(int(usage.get(name) or 0) for name in cached)


def _without_usage(data: bytes) -> bytes:
    """Remove the event that only reports usage, which the client did not ask for."""
    events = data.split(b"\n\n")
    kept = [event for event in events if not (_USAGE.search(event) and b'"choices":[]' in event)]
    return b"\n\n".join(kept)
