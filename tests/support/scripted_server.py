"""A scripted OpenAI server on a real socket, with its own log of everything it sends.

Tests and benchmarks compare measurements with this log. The server supports as much HTTP/1.1 as the
OpenAI client needs: a POST is answered with a `Script`, GET `/log` with the log as JSON, GET
`/v1/models` with `models` if there are any, GET `/metrics` with `metrics`, and any other GET with
404. A POST whose request id starts with `probe-` is kept in `probes` instead of the log, and
answered with `answer_probe`. Nothing here imports the code under test. Times are
`time.perf_counter()`, which on Linux is one clock for all processes.

As a program (`python tests/support/scripted_server.py --tokens 200`) it prints its port and serves
until it is terminated; `spawn` starts it in another process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

DONE = b"data: [DONE]\n\n"


@dataclasses.dataclass(frozen=True)
class Step:
    """One write of `data` after `delay_s` seconds. `token`: the log counts it as a token."""

    data: bytes
    delay_s: float = 0.0
    token: bool = False


@dataclasses.dataclass(frozen=True)
class Script:
    """The answer to one request: an HTTP status and body, or a stream of steps.

    `die` closes the connection after the last step, within the chunked body. `hang_s` keeps it open
    and silent for so many seconds before it ends.
    """

    steps: tuple[Step, ...] = ()
    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    die: bool = False
    hang_s: float = 0.0


@dataclasses.dataclass
class Exchange:
    """The log of one request. `sends_s` has the time before the write of each step."""

    request_id: str | None
    path: str
    body: dict[str, Any]
    received_s: float
    session: str | None = None
    sends_s: list[float] = dataclasses.field(default_factory=list)
    token_sends_s: list[float] = dataclasses.field(default_factory=list)
    ended_s: float | None = None


def event(payload: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def chat_chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    """Return a chunk of a chat."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event(
        {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
        | {"choices": [choice]}
    )


def text_chunk(text: str, finish: str | None = None) -> bytes:
    """Return a chunk of a completion."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return event(
        {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "scripted"}
        | {"choices": [choice]}
    )


def usage(prompt_tokens: int, output_tokens: int) -> bytes:
    """Return the event with the token counts."""
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens}
    total = {"total_tokens": prompt_tokens + output_tokens}
    return event({"id": "x", "object": "x", "choices": [], "usage": counts | total})


def error(status: int, message: str, kind: str = "invalid_request_error", **headers: str) -> Script:
    """Return an HTTP error in OpenAI's format."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return Script(status=status, body=json.dumps(body).encode(), headers=tuple(headers.items()))


def tokens(
    count: int,
    *,
    ttft_s: float = 0.0,
    gap_s: float = 0.0,
    prompt_tokens: int = 7,
    chat: bool = True,
    **end: Any,
) -> Script:
    """Return the usual answer: a role chunk, `count` tokens `gap_s` apart, the usage, `[DONE]`."""
    make = (lambda text: chat_chunk({"content": text})) if chat else text_chunk
    role = [Step(chat_chunk({"role": "assistant", "content": ""}), ttft_s)] if chat else []
    first_delay = 0.0 if chat else ttft_s
    steps = [Step(make(f"t{i} "), gap_s if i else first_delay, token=True) for i in range(count)]
    tail = [Step(usage(prompt_tokens, count)), Step(DONE)]
    return Script(steps=tuple(role + steps + tail), **end)


Choose = Callable[[dict[str, Any], int], Script]


class ScriptedServer:
    """A server whose n-th request is answered with `choose(body, n)`, or with one script."""

    def __init__(
        self,
        choose: Choose | Script,
        *,
        logging: bool = True,
        tls: ssl.SSLContext | None = None,
        unix: str | None = None,
    ) -> None:
        self._unix = unix
        self._choose = choose if callable(choose) else lambda body, n: choose
        self._logging = logging
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self.log: list[Exchange] = []
        self.open_now = 0
        self.most_open = 0
        self.port = 0
        self.models: list[str] = []
        self.metrics: bytes | None = None
        self.probes: list[Exchange] = []
        self.answer_probe: Choose = lambda body, n: Script(steps=(Step(DONE),))

    @property
    def base_url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> ScriptedServer:
        if self._unix is not None:
            self._server = await asyncio.start_unix_server(self._connected, self._unix)
            return self
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, backlog=2048, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._serve_request(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        received = time.perf_counter()
        method, path, _ = head[0].split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:])
            if name
        }
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            if path == "/log":
                answer: Any = [dataclasses.asdict(e) for e in self.log]
            elif path == "/metrics" and self.metrics is not None:
                _plain(writer, 200, self.metrics)
                return True
            elif path.endswith("/models") and self.models:
                answer = {"object": "list", "data": [{"id": name} for name in self.models]}
            else:
                answer = None
            body = json.dumps({} if answer is None else answer).encode()
            _plain(writer, 404 if answer is None else 200, body)
            return True
        body = json.loads(raw)
        session = headers.get("x-session-id")
        exchange = Exchange(headers.get("x-request-id"), path, body, received, session)
        if (exchange.request_id or "").startswith("probe-"):
            self.probes.append(exchange)
            answer_probe = self.answer_probe(exchange.body, len(self.probes) - 1)
            return await self._play(answer_probe, exchange, writer)
        script = self._choose(exchange.body, len(self.log))
        self.log.append(exchange)
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            return await self._play(script, exchange, writer)
        finally:
            self.open_now -= 1
            exchange.ended_s = time.perf_counter()

    async def _play(self, script: Script, exchange: Exchange, writer: asyncio.StreamWriter) -> bool:
        if script.status != 200:
            _plain(writer, script.status, script.body, script.headers)
            return True
        extra = "".join(f"{name}: {value}\r\n" for name, value in script.headers)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n" + extra.encode() + b"\r\n"
        )
        for step in script.steps:
            if step.delay_s:
                await asyncio.sleep(step.delay_s)
            now = time.perf_counter()
            writer.write(b"%x\r\n%b\r\n" % (len(step.data), step.data))
            if self._logging:
                exchange.sends_s.append(now)
                if step.token:
                    exchange.token_sends_s.append(now)
            await writer.drain()
        if script.hang_s:
            await asyncio.sleep(script.hang_s)
        if script.die:
            writer.transport.abort()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def _plain(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    headers: tuple[tuple[str, str], ...] = (),
) -> None:
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers)
    writer.write(
        f"HTTP/1.1 {status} scripted\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n{extra}\r\n".encode()
        + body
    )


@contextlib.asynccontextmanager
async def serving(choose: Choose | Script) -> AsyncIterator[ScriptedServer]:
    """Run the server in the caller's event loop."""
    async with ScriptedServer(choose) as server:
        yield server


@contextlib.contextmanager
def threaded(
    choose: Choose | Script, *, tls: ssl.SSLContext | None = None, unix: str | None = None
) -> Iterator[ScriptedServer]:
    """Run the server in a thread with its own event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = ScriptedServer(choose, tls=tls, unix=unix)
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(60)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


@contextlib.contextmanager
def spawn(*options: str) -> Iterator[str]:
    """Run the server in another process with command-line `options`; yield its base URL."""
    process = subprocess.Popen(
        [sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait(60)


def read_log(base_url: str) -> list[Exchange]:
    """Return the log of a server in another process."""
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/log", timeout=60) as answer:
        return [Exchange(**entry) for entry in json.load(answer)]


async def _main(arguments: argparse.Namespace) -> None:
    chat = tokens(arguments.tokens, ttft_s=arguments.ttft, gap_s=arguments.gap)
    text = tokens(arguments.tokens, ttft_s=arguments.ttft, gap_s=arguments.gap, chat=False)
    async with ScriptedServer(
        lambda body, n: chat if "messages" in body else text, logging=arguments.log
    ) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16, help="tokens per answer")
    parser.add_argument("--ttft", type=float, default=0.0, help="seconds to the first token")
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between tokens")
    parser.add_argument("--log", action="store_true", help="keep the time of every send")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args()))
