"""A gate on a real socket, in front of a scripted application whose log is the ground truth."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import uvicorn

from serving.gateway.asgi import App, Receive, Scope, Send
from serving.gateway.config import GateConfig, ServedModel
from serving.gateway.gate import Gate
from serving.spec.limits import Limits
from serving.spec.tenants import Tenant

KEY = "sk-the-right-key-of-the-tests"
WRONG_KEY = "sk-the-wrong-key-of-the-tests"
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
CONFIG = GateConfig(
    tenants=(Tenant(name="one", key_hash=hashlib.sha256(KEY.encode()).hexdigest()),),
    models=(ServedModel(id="m"),),
    limits=Limits(max_body_mib=1000 / 2**20),
    max_ongoing_requests=2,
    max_queued_requests=2,
    retry_after_s=7,
)
TIMEOUT_S = 60


@dataclass
class ReceivedRequest:
    """One request that reached the application, and how it ended.

    Attributes:
        label: The body's prompt.
        running: Requests in the application when it arrived, itself included.
        end: "answered", "disconnected" or "cancelled".
    """

    path: str
    query: str
    label: str
    body: bytes = b""
    running: int = 0
    end: str = ""


@dataclass
class ScriptedApp:
    """Answers any request with a chat completion.

    Attributes:
        held: Whether each request waits for its event in `turns` before it is answered.
    """

    held: bool = False
    log: list[ReceivedRequest] = field(default_factory=list)
    running: int = 0
    turns: deque[asyncio.Event] = field(default_factory=deque)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            self.log.append(ReceivedRequest(scope["path"], "", "websocket"))
            await send({"type": "websocket.close"})
            return
        request = ReceivedRequest(scope["path"], scope["query_string"].decode(), "")
        self.log.append(request)
        self.running += 1
        request.running = self.running
        try:
            request.end = await self._answer(request, receive, send)
        except asyncio.CancelledError:
            request.end = "cancelled"
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: ReceivedRequest, receive: Receive, send: Send) -> str:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return "disconnected"
            request.body += message.get("body", b"")
            more = message.get("more_body", False)
        if request.body:
            request.label = str(json.loads(request.body).get("prompt", ""))
        if self.held and request.body:
            turn = asyncio.Event()
            self.turns.append(turn)
            await turn.wait()
        choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        body = json.dumps(reply | {"choices": [choice | {"finish_reason": "stop"}]}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return "answered"


def as_in_replica(app: App, root_path: str) -> App:
    """Add what Ray Serve's replica adds: a mount point, and cancellation on disconnect."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        scope["root_path"] = root_path
        messages: asyncio.Queue[Any] = asyncio.Queue()
        listening = asyncio.create_task(_listen(receive, messages))
        answering = asyncio.ensure_future(app(scope, messages.get, send))
        await asyncio.wait({listening, answering}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            answering.cancel()
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering

    return call


async def _listen(receive: Receive, messages: asyncio.Queue[Any]) -> None:
    while True:
        message = await receive()
        await messages.put(message)
        if message["type"] == "http.disconnect":
            return


@dataclass
class ServedGate:
    """The gate on a free port of the loopback address, with controls for the tests."""

    app: ScriptedApp
    gate: Gate
    loop: asyncio.AbstractEventLoop
    port: int
    config: GateConfig = CONFIG
    clients: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def http(self, headers: dict[str, str] | None = None) -> httpx.Client:
        # There is no TLS here, and loading certificates is slow.
        return httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S, verify=False)

    def openai(self, key: str = KEY) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(verify=False)
        self.clients.append(http)
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, http_client=http
        )

    def answer_next(self) -> None:
        """Answer the oldest held request."""
        wait_until(lambda: bool(self.app.turns))
        self.loop.call_soon_threadsafe(self.app.turns.popleft().set)

    def answer_all(self) -> None:
        """Answer every held request, and hold no further ones."""
        self.app.held = False
        for turn in list(self.app.turns):
            self.loop.call_soon_threadsafe(turn.set)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until the condition is true; fail after TIMEOUT_S."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


class Server:
    """One uvicorn server on a free port of the loopback address; each test installs its gate."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.inner: App | None = None
        config = uvicorn.Config(
            self._call, interface="asgi3", lifespan="off", ws="none", log_level="critical"
        )
        self._server = uvicorn.Server(config)
        self._listener = socket.create_server(("127.0.0.1", 0))
        serving = self._server.serve(sockets=[self._listener])
        self._thread = threading.Thread(target=self.loop.run_until_complete, args=(serving,))
        self._thread.start()
        wait_until(lambda: self._server.started)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.inner is not None
        await self.inner(scope, receive, send)

    @contextlib.contextmanager
    def serving(self, root_path: str = "", held: bool = False) -> Iterator[ServedGate]:
        """Serve a new gate for the time of the context."""
        app = ScriptedApp(held)
        served: ServedGate
        gate = Gate(app, lambda: served.config)
        served = ServedGate(app, gate, self.loop, self._listener.getsockname()[1])
        self.inner = as_in_replica(gate, root_path)
        try:
            yield served
        finally:
            for client in served.clients:
                client.close()
            served.answer_all()
            wait_until(lambda: app.running == 0)
            self.loop.call_soon_threadsafe(gate.quotas.close)

    def stop(self) -> None:
        """End the server and its thread."""
        self._server.should_exit = True
        self._thread.join()
        self.loop.close()
        self._listener.close()
