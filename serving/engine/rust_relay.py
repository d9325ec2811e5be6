"""Passes streams from vLLM's Rust front end on, without reading each event as JSON.

Every event has the tokens so far, so that an answer whose client disconnects can be charged. They
are removed from the bytes of a chunk (:mod:`serving.engine.rust_events`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from time import perf_counter
from typing import Any

import aiohttp

from serving.engine.rust_events import USAGE_EVENT, EventStream, with_metrics
from serving.engine.rust_requests import estimated_prompt_tokens, is_supported, rust_fields
from serving.engine.stats import FirstTokens
from serving.gateway.asgi import App, Receive, Scope, Send, error_body, respond_json
from serving.gateway.context import SCOPE_KEY
from serving.gateway.error_events import error_event
from serving.gateway.http_routes import path_below_prefix, replay_body

ENDED = "The replica ended before the answer did. Send the request again."
KEEP_ALIVE_S = 60.0
CONNECT_TIMEOUT_S = 10.0
METRICS_TIMEOUT_S = 10.0
MAX_BODY_BYTES = 2**20
"""Larger bodies go to the server in Python. The Rust front end has a limit of its own, and may
close the connection at such a body, as if it had ended."""

_BODY = "http.response.body"
logger = logging.getLogger(__name__)


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
        fields = _parsed(body) if len(body) <= MAX_BODY_BYTES else None
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
        """Return the page of metrics of the Rust front end.

        Raises:
            aiohttp.ClientError: It cannot be reached, or answers with an error.
            TimeoutError: It does not answer.
        """
        timeout = aiohttp.ClientTimeout(METRICS_TIMEOUT_S)
        async with self._client().get(
            "/metrics", timeout=timeout, raise_for_status=True
        ) as response:
            return await response.text()

    async def is_ready(self) -> bool:
        """Return whether the Rust front end answers and has a connection to the engine."""
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
            headers = {"accept-encoding": "identity"}  # The bytes are passed on as they are.
            self._session = aiohttp.ClientSession(
                "http://rust", connector=connector, timeout=timeout, headers=headers
            )
        return self._session

    async def _relay(self, path: str, fields: dict[str, Any], context: Any, send: Send) -> bool:
        """Pass an answer on until it ends.

        Serve cancels this when the client disconnects. That closes the connection to the Rust front
        end, which then stops the engine.

        Returns:
            Whether there was an answer; False for a rejected request.
        """
        events = EventStream(estimated_prompt_tokens(fields))
        if context is not None:
            context.generated = events.count
        text = json.dumps(rust_fields(path, fields, self._max_tokens), ensure_ascii=False)
        body = text.encode(errors="surrogatepass")  # It rejects half of a surrogate pair.
        headers = {"content-type": "application/json"}
        request = self._first_tokens.begin()
        sent_s = perf_counter()
        try:
            async with self._client().post(path, data=body, headers=headers) as response:
                if response.status == 200:
                    await self._pass_on(response, events, send, request, sent_s)
                    return True
                if response.status >= 500:
                    logger.warning("The Rust front end answered with status %d.", response.status)
                return False
        except aiohttp.ClientError:
            await respond_json(send, 500, _ended())
            return True
        finally:
            self._first_tokens.dropped(request)

    async def _pass_on(
        self,
        response: aiohttp.ClientResponse,
        events: EventStream,
        send: Send,
        request: object,
        sent_s: float,
    ) -> None:
        """Pass a stream on; if the process ends, report that as the last event."""
        headers = [(b"content-type", response.headers["content-type"].encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        first_s: float | None = None
        last = b""
        try:
            async for data in response.content.iter_any():
                whole = events.add(data)
                if not whole:
                    continue
                if first_s is None:
                    first_s = perf_counter()
                    self._first_tokens.served(request)
                if USAGE_EVENT in whole:
                    whole = with_metrics(whole, first_s - sent_s, perf_counter() - first_s)
                await send({"type": _BODY, "body": whole, "more_body": True})
        except aiohttp.ClientError:
            last = error_event("completion", _ended()["error"])
        except asyncio.CancelledError:
            # The client also pays for what it did not wait for.
            with suppress(aiohttp.ClientError):
                events.add(response.content.read_nowait())
            raise
        await send({"type": _BODY, "body": last})


def _ended() -> dict[str, Any]:
    return error_body(ENDED, "server_error", "replica_ended")


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
