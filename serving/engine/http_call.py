"""An HTTP request to the engine's own server, sent through a deployment handle.

The composed path reaches a replica through a handle. There the request runs through the same
application that answers on the direct path, so both paths have the same routes and answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from serving.gateway.asgi import App, Message, Scope
from serving.gateway.bodies.body import is_constrained
from serving.gateway.context import SCOPE_KEY


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A POST request with a JSON body.

    Attributes:
        path: A route of the engine's server.
        fields: The body.
        headers: Further headers by name.
    """

    path: str
    fields: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def prompt(self) -> Any:
        """What prefix-aware routing compares: the messages, the prompt or the input."""
        return next(
            (self.fields[name] for name in ("messages", "prompt", "input") if name in self.fields),
            None,
        )

    @property
    def constrained(self) -> bool:
        """Whether a grammar set by the client restricts the answer's tokens."""
        return is_constrained(self.fields)

    def scope(self, body: bytes) -> Scope:
        """Return the ASGI scope; ``constrained`` is read from it as from a gate's context."""
        headers = {**self.headers, "content-type": "application/json"}
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [*raw, (b"content-length", str(len(body)).encode())],
            "client": None,
            "server": None,
            SCOPE_KEY: self,
        }


class ResponseStart(NamedTuple):
    """The start of a response.

    Attributes:
        status: HTTP status.
        content_type: Value of the header, or an empty string.
        text: The first part of the body.
        whole: Whether that is the whole body.
    """

    status: int
    content_type: str
    text: str
    whole: bool

    @property
    def streams(self) -> bool:
        """Whether the body is a stream of server-sent events."""
        return self.content_type.startswith("text/event-stream")


async def call_app(app: App, request: EngineRequest) -> AsyncIterator[ResponseStart | str]:
    """Run a request through an ASGI application in this process.

    Closing the generator disconnects the client.

    Yields:
        The start of the response together with the first part of its body, then the other parts.

    Raises:
        ConnectionResetError: The application ended without a response.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    body = json.dumps(request.fields, ensure_ascii=False, separators=(",", ":")).encode()
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    disconnected = asyncio.Event()

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.put_nowait(message)

    task = asyncio.ensure_future(app(request.scope(body), receive, send))
    task.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        start: Message | None = None
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body":
                text = message.get("body", b"").decode()
                more = message.get("more_body", False)
                if start is not None and (text or not more):
                    yield ResponseStart(start["status"], _content_type(start), text, not more)
                    start = None
                elif text:
                    yield text
                if not more:
                    return
        task.result()
        raise ConnectionResetError("the engine's server ended without a whole response")
    finally:
        disconnected.set()
        task.cancel()


def _content_type(start: Message) -> str:
    headers = {bytes(name).lower(): bytes(value) for name, value in start.get("headers", ())}
    return headers.get(b"content-type", b"").decode("latin-1")
