"""Passes streams from vLLM's Rust front end on, without reading each event as JSON.

Every event has the tokens so far, so that an answer whose client disconnects can be charged. One
regular expression removes them from the bytes of a chunk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp

from serving.engine.rust_requests import estimated_prompt_tokens, is_supported, rust_fields
from serving.engine.stats import FirstTokens
from serving.gateway.asgi import App, Receive, Scope, Send, error_body, respond_json
from serving.gateway.context import SCOPE_KEY
from serving.gateway.error_events import error_event
from serving.gateway.http_routes import path_below_prefix, replay_body

ENDED = "The replica ended before the answer did. Send the request again."
KEEP_ALIVE_S = 60.0
CONNECT_TIMEOUT_S = 10.0

# Quotation marks are escaped inside a JSON string, so generated text cannot match. The last event,
# whose only content is the usage, has no choices.
_USAGE = re.compile(rb'(?<!"choices":\[\]),"usage":\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}(?=\}(?:\n\n|$))')
_COUNTS = re.compile(rb'"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)')
_END = b"\n\n"
_BODY = "http.response.body"


class UsageStripper:
    """Removes the usage from every event of one stream but the last.

    Args:
        prompt_tokens: The tokens of the prompt until an event reports them.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._rest = b""
        self._latest = b""

    def strip(self, data: bytes) -> bytes:
        """Return the whole events of the stream so far that were not returned before."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not data.endswith(_END):
            data, end, self._rest = data.rpartition(_END)
            data += end
        if not data:
            return data
        self._latest = data
        return _USAGE.sub(b"", data)

    def count(self) -> tuple[int, int]:
        """Return the tokens of the prompt and of the answer so far."""
        counts = _COUNTS.findall(self._latest)
        if not counts:
            return self._prompt_tokens, 0
        prompt, output = counts[-1]
        return int(prompt), int(output)


class RustRelay:
    """ASGI application: the Rust front end answers what it supports, and ``app`` the rest.

    A request that the Rust front end rejects goes to ``app`` too, whose errors name the field and
    repeat no value.

    Args:
        app: vLLM's own server, on the same engine core.
        socket: The Unix socket on which the Rust front end listens.
        model: The name of the model there.
        max_tokens: The most tokens of an answer; None for no limit.
        first_tokens: Receives the times to first token.

    Attributes:
        running: Requests in progress at the Rust front end.
    """

    def __init__(
        self,
        app: App,
        socket: str,
        model: str,
        max_tokens: int | None,
        first_tokens: FirstTokens,
    ) -> None:
        self._app, self._socket, self._model, self._max_tokens = app, socket, model, max_tokens
        self._first_tokens = first_tokens
        self._session: aiohttp.ClientSession | None = None
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI request."""
        path = path_below_prefix(scope) if scope["type"] == "http" else ""
        if path not in ("/v1/chat/completions", "/v1/completions") or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        body = await _read(receive)
        if body is None:
            return
        fields = _parsed(body)
        if fields is None or not is_supported(path, fields, self._model):
            return await self._app(scope, replay_body(body, receive), send)
        self.running += 1
        try:
            answered = await self._relay(path, fields, scope.get(SCOPE_KEY), send)
        finally:
            self.running -= 1
        if not answered:
            await self._app(scope, replay_body(body, receive), send)

    async def metrics(self) -> str:
        """Return the page of metrics of the Rust front end."""
        async with self._client().get("/metrics") as response:
            return await response.text()

    async def is_ready(self) -> bool:
        """Return whether the Rust front end answers."""
        try:
            async with self._client().get("/health") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    def _client(self) -> aiohttp.ClientSession:
        """Return the session, which needs the event loop that serves requests."""
        if self._session is None:
            connector = aiohttp.UnixConnector(self._socket, limit=0, keepalive_timeout=KEEP_ALIVE_S)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(
                "http://rust", connector=connector, timeout=timeout, auto_decompress=False
            )
        return self._session

    async def _relay(self, path: str, fields: dict[str, Any], context: Any, send: Send) -> bool:
        """Pass an answer on until it ends.

        Serve cancels this when the client disconnects. That closes the connection to the Rust front
        end, which then stops the engine.

        Returns:
            Whether there was an answer; False for a rejected request.
        """
        stripper = UsageStripper(estimated_prompt_tokens(fields))
        if context is not None:
            context.generated = stripper.count
        body = json.dumps(rust_fields(path, fields, self._max_tokens)).encode()
        request = self._first_tokens.begin()
        served = partial(self._first_tokens.served, request)
        try:
            return await self._answer(path, body, stripper, send, served)
        finally:
            self._first_tokens.dropped(request)

    async def _answer(
        self,
        path: str,
        body: bytes,
        stripper: UsageStripper,
        send: Send,
        served: Callable[[], None],
    ) -> bool:
        headers = {"content-type": "application/json"}
        started = False
        try:
            async with self._client().post(path, data=body, headers=headers) as response:
                if response.status != 200:
                    return False
                content_type = response.headers["content-type"].encode()
                start = {"type": "http.response.start", "status": 200}
                await send(start | {"headers": [(b"content-type", content_type)]})
                started = True
                async for data in response.content.iter_any():
                    if events := stripper.strip(data):
                        await send({"type": _BODY, "body": events, "more_body": True})
                        served()
                await send({"type": _BODY, "body": b""})
        except aiohttp.ClientError:
            await _report_end(started, send)
        return True


async def _report_end(started: bool, send: Send) -> None:
    """Report that the answer does not go on: as a status, or as the last event of a stream."""
    error = error_body(ENDED, "server_error", "replica_ended")
    if not started:
        return await respond_json(send, 500, error)
    event = error_event("completion", error["error"])
    await send({"type": _BODY, "body": event})


async def _read(receive: Receive) -> bytes | None:
    """Return the whole body, or None if the client disconnected."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _parsed(body: bytes) -> dict[str, Any] | None:
    """Return the fields of a JSON object; None for anything else."""
    try:
        fields = json.loads(body)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
