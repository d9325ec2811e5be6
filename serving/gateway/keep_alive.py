"""Comments that keep a stream open while it waits for its first token.

A proxy cuts a connection on which nothing is sent for a minute. A request may wait longer: in the
gate's queue, while a model wakes from zero replicas, or in a long prefill.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self

from serving.gateway.asgi import Message, Send
from serving.gateway.bodies.fields import Kind
from serving.gateway.error_events import error_event, error_fields

COMMENT = b": keep-alive\n\n"
MAX_ERROR_BYTES = 65_536
"""Bytes of an error's body that are read; a longer one is replaced by its status."""


class KeepAlive:
    """Wraps ``send`` of a stream so that comments fill the wait for its first event.

    With the first comment the response has started with status 200. An error that comes later
    becomes the last event of the stream.

    Args:
        send: ASGI's ``send``.
        interval_s: Seconds between two comments; 0 sends none.
        kind: The format of the stream.
        headers: Returns the headers of a response that starts with a comment.

    Attributes:
        started: Whether the response has started with a comment.
    """

    def __init__(
        self,
        send: Send,
        interval_s: float,
        kind: Kind,
        headers: Callable[[], Iterable[tuple[str, str]]],
    ) -> None:
        self._send, self._interval_s, self._kind, self._headers = send, interval_s, kind, headers
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._comments: asyncio.Task[None] | None = None
        self._begun = self.started = False
        self._error_status: int | None = None
        self._error = b""

    async def __aenter__(self) -> Self:
        if self._interval_s:
            # Most streams begin before it is due, and so need no task.
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._interval_s, self._start_comments)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _start_comments(self) -> None:
        self._comments = asyncio.create_task(self._send_comments())

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._comments is not None:
            self._comments.cancel()
            self._comments = None

    async def _send_comments(self) -> None:
        with contextlib.suppress(OSError):  # The client has left; the gate learns it elsewhere.
            while True:
                async with self._lock:
                    if not self._begun:
                        await self._start()
                    message = {"type": "http.response.body", "body": COMMENT, "more_body": True}
                    await self._send(message)
                await asyncio.sleep(self._interval_s)

    async def _start(self) -> None:
        self._begun = self.started = True
        fields = [("content-type", "text/event-stream; charset=utf-8"), *self._headers()]
        headers = [(name.encode(), value.encode()) for name, value in fields]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    def send(self, message: Message) -> Awaitable[None]:
        """Pass on a message of the application."""
        if self._timer is None and not self.started:
            return self._send(message)
        return self._send_in_turn(message)

    async def _send_in_turn(self, message: Message) -> None:
        async with self._lock:  # A comment being sent is sent whole.
            if message["type"] == "http.response.start":
                await self._pass_start(message)
            else:
                await self._pass_body(message)

    async def _pass_start(self, message: Message) -> None:
        is_error = message["status"] >= 400
        if is_error or not _is_stream(message):
            self._stop()
        self._begun = True
        if not self.started:
            await self._send(message)
        elif is_error:
            self._error_status = message["status"]

    async def _pass_body(self, message: Message) -> None:
        ends = not message.get("more_body", False)
        if message.get("body") or ends:
            self._stop()
        if self._error_status is not None:
            self._error += message.get("body", b"")[: MAX_ERROR_BYTES + 1 - len(self._error)]
            if not ends:
                return
            event = error_event(self._kind, error_fields(self._error, self._error_status))
            message = {"type": "http.response.body", "body": event}
        await self._send(message)


def _is_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )
