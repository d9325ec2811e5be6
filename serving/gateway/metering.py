"""What a response cost, by the server's own count, read from the bytes that pass.

A whole answer holds ``usage`` near its end. A stream was asked to end with it (``Body.
ask_for_usage``). Where that end never comes, because the client left, each event counts as one
token and the prompt by its characters: less exact, never nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

from serving.gateway.asgi import Message, Send
from serving.gateway.body import Body

# In a JSON string every quotation mark is escaped, so no text of a model can look like this.
_USAGE = re.compile(rb'"usage":\s*\{')
_TAIL = 4096
_DECODER = json.JSONDecoder()


class Meter:
    """Passes a response on, adds headers to it, and remembers what it cost."""

    def __init__(self, send: Send, body: Body, headers: Callable[[], Iterable[tuple[str, str]]]):
        self._send, self._body, self._headers = send, body, headers
        self.status: int | None = None
        self.streams = False
        self.ended = False
        self._events = 0
        self._last = b""

    async def send(self, message: Message) -> None:
        """ASGI's ``send``."""
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] == "http.response.body":
            message = self._pass(message)
            if not message.get("body") and message.get("more_body"):
                return
        await self._send(message)

    def _begin(self, message: Message) -> None:
        self.status = message["status"]
        headers = list(message.get("headers", ()))
        self.streams = any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in headers
        )
        headers += [(name.encode(), value.encode()) for name, value in self._headers()]
        message["headers"] = headers

    def _pass(self, message: Message) -> Message:
        data = message.get("body", b"")
        self.ended = not message.get("more_body", False)
        if not self.streams:
            self._last = (self._last + data)[-_TAIL:]
            return message
        self._events += data.count(b"data:")
        if _USAGE.search(data):
            self._last = data
            if self._body.hide_usage:
                message = {**message, "body": _without_usage(data)}
        return message

    def tokens(self) -> tuple[int, int]:
        """Tokens of the prompt and of the answer."""
        if self.status is None or self.status >= 400:
            return 0, 0
        usage = _usage(self._last)
        if usage is not None:
            return usage
        return -(-self._body.prompt_chars // 4), self._events


def _usage(data: bytes) -> tuple[int, int] | None:
    places = [found.end() - 1 for found in _USAGE.finditer(data)]
    if not places:
        return None
    try:
        # The last one: a stream may tell what it has cost so far.
        told, _ = _DECODER.raw_decode(data[places[-1] :].decode("utf-8", "replace"))
        return int(told["prompt_tokens"]), int(told.get("completion_tokens") or 0)
    except (ValueError, KeyError, TypeError):
        return None


def _without_usage(data: bytes) -> bytes:
    """The events but for the one that only tells the usage, which the client did not ask for."""
    events = data.split(b"\n\n")
    kept = [one for one in events if not (_USAGE.search(one) and b'"choices":[]' in one)]
    return b"\n\n".join(kept)
