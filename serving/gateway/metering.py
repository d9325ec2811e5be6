"""The tokens of a response by the server's own count, read from the bytes that pass.

A whole answer has ``usage`` near its end. A stream was asked to end with it
(``Body.request_usage``). If that end never comes, because the client disconnected, each event
counts as one token and the prompt by its characters: less exact, but never zero.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

from serving.gateway.asgi import Message, Send
from serving.gateway.body import Body

# Quotation marks are escaped inside a JSON string, so no generated text can match this.
_USAGE = re.compile(rb'"usage":\s*\{')
_TAIL_BYTES = 4096
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
        self.status: int | None = None
        self.streams = False
        self.ended = False
        self._events = 0
        self._tail = b""

    async def send(self, message: Message) -> None:
        """Pass on an ASGI message."""
        if message["type"] == "http.response.start":
            self._start(message)
        elif message["type"] == "http.response.body":
            message = self._read(message)
            if not message.get("body") and message.get("more_body"):
                return
        await self._send(message)

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
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            return message
        self._events += data.count(b"data:")
        if _USAGE.search(data):
            self._tail = data
            if self._body.hide_usage:
                message = {**message, "body": _without_usage(data)}
        return message

    def tokens(self) -> tuple[int, int]:
        """Return the tokens of the prompt and of the answer."""
        if self.status is None or self.status >= 400:
            return 0, 0
        usage = _last_usage(self._tail)
        if usage is not None:
            return usage
        return -(-self._body.prompt_chars // 4), self._events


def _last_usage(data: bytes) -> tuple[int, int] | None:
    """Return the last usage in ``data``; earlier ones of a stream are intermediate counts."""
    starts = [match.end() - 1 for match in _USAGE.finditer(data)]
    if not starts:
        return None
    try:
        usage, _ = _DECODER.raw_decode(data[starts[-1] :].decode("utf-8", "replace"))
        return int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
    except (ValueError, KeyError, TypeError):
        return None


def _without_usage(data: bytes) -> bytes:
    """Remove the event that only reports usage, which the client did not ask for."""
    events = data.split(b"\n\n")
    kept = [event for event in events if not (_USAGE.search(event) and b'"choices":[]' in event)]
    return b"\n\n".join(kept)
