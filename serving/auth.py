"""Who may call, and how much at once: the same gate stands before both serving paths.

Only SHA-256 hashes of keys travel to the cluster and are compared, each in constant time
(``hmac.compare_digest``). Every refusal has OpenAI's error shape, so that the OpenAI client raises
its own exception for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from pydantic import Field

from serving.errors import SpecError
from serving.spec import Strict

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_ROUTES = frozenset({"/health"})
"""Answered without a key; every other route, known or not, needs one."""

MIN_KEY_LENGTH = 16
KEY_VARIABLE = "LLM_WORKBENCH_API_KEY"
"""Where a key may be given to ``deploy``; it goes no further than the process that reads it."""


def new_key() -> str:
    """A random API key with 256 bits of entropy."""
    return "sk-" + secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """The hexadecimal SHA-256 of a key: all that leaves this process.

    Raises:
        SpecError: the key is short enough to be guessed from its hash.
    """
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise SpecError(
            f"api_key has {len(key)} characters; it needs at least {MIN_KEY_LENGTH} printable "
            "ASCII characters, because its hash can be read on the cluster. Leave it out to have "
            "one generated."
        )
    return hashlib.sha256(key.encode()).hexdigest()


class Access(Strict):
    """What a gate enforces; travels as the deployment's ``user_config``."""

    key_hashes: tuple[str, ...] = Field(
        min_length=1, description="SHA-256 of each accepted key, hexadecimal."
    )
    max_ongoing_requests: int = Field(ge=1, description="Requests in progress at one gate.")
    max_queued_requests: int = Field(ge=0, description="Requests waiting at one gate.")
    retry_after_s: int = Field(ge=1, description="Seconds in the Retry-After header.")
    max_body_bytes: int = Field(ge=1, description="Largest request body.")

    def admits(self, presented: str) -> bool:
        """Whether a presented key is one of ours; takes the same time whichever it is."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest()
        matches = [hmac.compare_digest(digest, known) for known in self.key_hashes]
        return any(matches)


class FullError(Exception):
    """As many requests wait as may."""


class Slots:
    """First come, first served: ``limit`` at work, ``queue`` waiting, the next one refused.

    Each request brings the limits that hold when it comes, so a change reaches those who wait.
    """

    def __init__(self) -> None:
        self.running = 0
        self._limit = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return sum(not turn.done() for turn in self._waiting)

    @asynccontextmanager
    async def hold(self, limit: int, queue: int) -> AsyncIterator[None]:
        """Hold one slot; raises :class:`FullError` at once where none is to be waited for."""
        self._limit = limit
        self._admit()
        await self._acquire(queue)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, queue: int) -> None:
        if self.running < self._limit and not self.queued:
            self.running += 1
            return
        if self.queued >= queue:
            raise FullError
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()  # the slot was given while the client went away
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _release(self) -> None:
        self.running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.running < self._limit:
            turn = self._waiting.popleft()
            if not turn.done():  # done: its client went away
                self.running += 1
                turn.set_result(None)


class Gate:
    """ASGI middleware: authentication, body size and back-pressure on every route but health."""

    def __init__(self, app: App, access: Callable[[], Access]) -> None:
        self._app = app
        self._access = access
        self.slots = Slots()
        self.shed = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _route(scope) in OPEN_ROUTES:
            return await self._app(scope, receive, send)
        access = self._access()
        if not access.admits(_bearer(scope)):
            return await _refuse_unknown(scope, send)
        if _content_length(scope) > access.max_body_bytes:
            return await _refuse_large(send, access)
        if scope.get("method") != "POST":
            return await self._app(scope, receive, send)
        try:
            async with self.slots.hold(access.max_ongoing_requests, access.max_queued_requests):
                await self._app(scope, _bounded(receive, access.max_body_bytes), send)
        except FullError:
            self.shed += 1
            await _refuse_full(send, access)


def _route(scope: Scope) -> str:
    """The path below the route prefix, which ASGI gives as ``root_path`` and again in ``path``."""
    path, prefix = str(scope.get("path", "")), str(scope.get("root_path", "")).rstrip("/")
    return path[len(prefix) :] if path.startswith(f"{prefix}/") else path


def _bearer(scope: Scope) -> str:
    for name, value in scope.get("headers", ()):
        if name.lower() == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            return key.strip() if scheme.lower() == "bearer" else ""
    return ""


def _content_length(scope: Scope) -> int:
    for name, value in scope.get("headers", ()):
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _bounded(receive: Receive, limit: int) -> Receive:
    """End the request of a client that sends more than ``limit`` bytes without saying so."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > limit else message

    return bounded


async def _refuse_unknown(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    message = "Missing or unknown API key. Send it as 'Authorization: Bearer KEY'."
    headers = {"www-authenticate": "Bearer"}
    await respond(send, 401, message, "invalid_request_error", "invalid_api_key", headers)


async def _refuse_large(send: Send, access: Access) -> None:
    message = f"The request body exceeds {access.max_body_bytes} bytes."
    await respond(send, 413, message, "invalid_request_error", "body_too_large")


async def _refuse_full(send: Send, access: Access) -> None:
    message = (
        f"The service is at capacity: {access.max_ongoing_requests} requests in progress and "
        f"{access.max_queued_requests} waiting. Try again in {access.retry_after_s} s."
    )
    headers = {"retry-after": str(access.retry_after_s)}
    await respond(send, 429, message, "rate_limit_error", "rate_limit_exceeded", headers)


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
