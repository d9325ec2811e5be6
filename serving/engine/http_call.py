"""An HTTP request to the engine's own server, sent through a deployment handle.

The composed path reaches a replica through a handle. There the request runs through the same
application that answers on the direct path, so both paths have the same routes and answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from serving.gateway.asgi import App, Message, Scope
from serving.gateway.bodies.body import is_constrained
from serving.gateway.context import SCOPE_KEY

PROGRESS_S = 0.25
"""Seconds between two counts of the tokens of an answer that has not started."""


@dataclass(slots=True)
class CallContext:
    """What the engine's server reads and sets of a request, as in a gate's context.

    Attributes:
        constrained: Whether a grammar set by the client restricts the answer's tokens.
        generated: Returns the tokens of the prompt and of the answer so far.
    """

    constrained: bool
    generated: Callable[[], tuple[int, int]] = lambda: (0, 0)


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

    def scope(self, body: bytes) -> Scope:
        """Return the ASGI scope, with a :class:`CallContext` in the place of a gate's context."""
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
            SCOPE_KEY: CallContext(is_constrained(self.fields)),
        }


class Progress(NamedTuple):
    """The tokens of an answer that has not started; a whole one starts when it is complete.

    The caller charges them if the client disconnects.
    """

    prompt_tokens: int
    output_tokens: int


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


Packet = Progress | ResponseStart | str
"""A part of the answer to a request."""


async def read_start(
    packets: AsyncIterator[Packet], on_progress: Callable[[Progress], None]
) -> ResponseStart:
    """Return the start of a response; pass on what is reported before it."""
    while isinstance(packet := await anext(packets), Progress):
        on_progress(packet)
    assert isinstance(packet, ResponseStart)
    return packet


async def call_app(
    app: App, request: EngineRequest, progress_s: float = PROGRESS_S
) -> AsyncIterator[Packet]:
    """Run a request through an ASGI application in this process.

    Closing the generator disconnects the client.

    Yields:
        The tokens so far every ``progress_s`` seconds until the response starts; then its start
        together with the first part of its body, then the other parts.

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
        if message["type"] == "http.response.start":
            ticks.cancel()
        messages.put_nowait(message)

    async def tick() -> None:
        while True:
            await asyncio.sleep(progress_s)
            messages.put_nowait({"type": "progress"})

    scope = request.scope(body)
    context: CallContext = scope[SCOPE_KEY]
    task = asyncio.ensure_future(app(scope, receive, send))
    ticks = asyncio.ensure_future(tick())
    task.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        start: Message | None = None
        while (message := await messages.get()) is not None:
            if message["type"] == "progress":
                yield Progress(*context.generated())
            elif message["type"] == "http.response.start":
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
        ticks.cancel()


def _content_type(start: Message) -> str:
    headers = {bytes(name).lower(): bytes(value) for name, value in start.get("headers", ())}
    return headers.get(b"content-type", b"").decode("latin-1")
