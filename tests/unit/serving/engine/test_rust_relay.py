"""The relay to a scripted front end on a Unix socket, behind a gate on a real socket."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from support.gate_server import AUTHORIZED, KEY, ServedGate, Server, wait_until
from support.scripted_server import Choose, Script, ScriptedServer, Step, threaded

from serving.engine.rust_relay import RustRelay
from serving.engine.stats import FirstTokens
from serving.gateway.context import SCOPE_KEY

CHAT = "/v1/chat/completions"
PROMPT_TOKENS = 7
TEXTS = [' "quoted"', ',"usage":{"prompt_tokens":99}}', "line\n\n", "é", ""]
BODY = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Why?"}]}


def event(choices: list[Any], output_tokens: int | None) -> bytes:
    """An event as the Rust front end writes it; without usage for None."""
    fields: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk"}
    fields |= {"created": 1, "model": "m", "choices": choices}
    if output_tokens is not None:
        fields["usage"] = {
            "prompt_tokens": PROMPT_TOKENS,
            "total_tokens": PROMPT_TOKENS + output_tokens,
            "completion_tokens": output_tokens,
            "prompt_tokens_details": {"cached_tokens": 3} if output_tokens == 2 else None,
        }
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def delta(text: str) -> list[Any]:
    return [{"index": 0, "delta": {"content": text}}]


FINAL = event([], len(TEXTS))
DONE = b"data: [DONE]\n\n"
STREAM = [event([{"index": 0, "delta": {"role": "assistant"}}], 0)]
STREAM += [event(delta(text), number) for number, text in enumerate(TEXTS, 1)]
PLAIN = [event([{"index": 0, "delta": {"role": "assistant"}}], None)]
PLAIN += [event(delta(text), None) for text in TEXTS]


def without_metrics(content: bytes) -> bytes:
    return re.sub(rb',"metrics":\{[^}]*\}', b"", content)


def script(*parts: bytes, **end: Any) -> Script:
    return Script(tuple(Step(part, delay_s=0.001) for part in parts), **end)


def close(relay: RustRelay, served: ServedGate) -> None:
    async def closing() -> None:
        await relay._client().close()

    asyncio.run_coroutine_threadsafe(closing(), served.loop).result()


class Front:
    """A gate, the relay behind it, and the two front ends behind that."""

    def __init__(self, served: ServedGate, relay: RustRelay, rust: ScriptedServer) -> None:
        self.served, self.relay, self.rust = served, relay, rust
        self.first_tokens = relay._first_tokens

    def post(self, path: str = CHAT, **fields: Any) -> Any:
        with self.served.http(AUTHORIZED) as client:
            return client.post(path, json=BODY | fields)

    def charged(self) -> tuple[int, int, int]:
        wait_until(lambda: self.served.gate.slots.running == 0)
        usage = self.served.gate.quotas.lease(self.served.config.tenants[0]).usage
        return usage.prompt_tokens, usage.output_tokens, usage.errors


@pytest.fixture
def open_front(server: Server, tmp_path: Path) -> Callable[[Choose | Script], Any]:
    path = str(tmp_path / "http")

    @contextmanager
    def opened(choose: Choose | Script) -> Iterator[Front]:
        with server.serving() as served, threaded(choose, unix=path) as rust:
            relay = RustRelay(served.app, path, "m", 50, FirstTokens())
            served.gate._app = relay
            yield Front(served, relay, rust)
            wait_until(lambda: relay.running == 0)
            close(relay, served)

    return opened


@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
def test_a_stream_passes_without_the_usage_that_the_client_did_not_ask_for(
    open_front: Any, size: int
) -> None:
    whole = b"".join([*STREAM, FINAL, DONE])
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    with open_front(script(*parts)) as front:
        reply = front.post()
        assert reply.content == b"".join([*PLAIN, DONE])
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert front.charged() == (PROMPT_TOKENS, len(TEXTS), 0)
        assert front.first_tokens.percentiles()
        assert front.served.app.log == []


def test_the_client_gets_the_usage_that_it_asks_for(open_front: Any) -> None:
    with open_front(script(*STREAM, FINAL, DONE)) as front:
        reply = front.post(stream_options={"include_usage": True})
        assert without_metrics(reply.content) == b"".join([*PLAIN, FINAL, DONE])


def test_the_last_event_has_the_times_to_the_first_token_and_to_the_last(open_front: Any) -> None:
    steps = (Step(STREAM[0], 0.05), Step(STREAM[1], 0.1), Step(FINAL), Step(DONE))
    with open_front(Script(steps)) as front:
        began_s = time.perf_counter()
        reply = front.post(stream_options={"include_usage": True})
        whole_ms = (time.perf_counter() - began_s) * 1e3
        *_, last, _ = reply.content.split(b"\n\n")[:-1]
        metrics = json.loads(last.removeprefix(b"data: "))["metrics"]
        first_ms = metrics.pop("time_to_first_token_ms")
        decode_ms = metrics.pop("generation_time_ms")
        assert metrics == {}
        log = front.rust.log[0]
        first_s, _, last_s, _ = log.sends_s
        assert first_ms >= (first_s - log.received_s) * 1e3
        assert (last_s - log.received_s) * 1e3 <= first_ms + decode_ms <= whole_ms


def test_the_front_end_gets_the_limit_of_an_answer(open_front: Any) -> None:
    with open_front(script(*STREAM, FINAL, DONE)) as front:
        front.post(temperature=0.5)
        options = {"include_usage": True, "continuous_usage_stats": True}
        sent = BODY | {"temperature": 0.5, "max_tokens": 50, "stream_options": options}
        assert front.rust.log[0].body == sent
        assert front.rust.log[0].path == CHAT


def test_a_client_that_disconnects_stops_the_answer_and_pays_for_it(open_front: Any) -> None:
    events = [event(delta("a"), number) for number in range(1, 5000)]
    steps = tuple(Step(part, delay_s=0.01, token=True) for part in events)
    with open_front(Script(steps)) as front:
        body = json.dumps(BODY).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        received = b""
        with socket.create_connection(("127.0.0.1", front.served.port), timeout=60) as client:
            client.sendall(head.encode() + body)
            while received.count(b"data:") < 3:
                received += client.recv(65536)
        prompt, output, errors = front.charged()
        wait_until(lambda: front.rust.open_now == 0)
        sent = len(front.rust.log[0].token_sends_s)
        assert received.count(b"data:") <= output <= sent < 5000
        assert (prompt, errors) == (PROMPT_TOKENS, 0)


def test_a_disconnect_before_the_first_event_costs_the_prompt(open_front: Any) -> None:
    with open_front(Script((Step(DONE, delay_s=60),))) as front:
        body = json.dumps(BODY | {"messages": [{"role": "user", "content": "x" * 40}]}).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", front.served.port), timeout=60) as client:
            client.sendall(head.encode() + body)
            wait_until(lambda: bool(front.rust.log))
        assert front.charged() == (10, 0, 0)


def test_a_request_that_it_rejects_gets_the_error_of_the_other(open_front: Any) -> None:
    rejected = Script(status=400, body=b'{"error":{"message":"temperature: \\"secret\\""}}')
    with open_front(rejected) as front:
        reply = front.post(temperature="secret")
        assert reply.json()["choices"][0]["message"]["content"] == "yes"
        (received,) = front.served.app.log
        assert json.loads(received.body) == BODY | {
            "temperature": "secret",
            "stream_options": {"include_usage": True},
        }
        assert front.first_tokens.percentiles() == {}


@pytest.mark.parametrize(
    "fields", [{"stream": False}, {"tools": [{"type": "function"}]}, {"logprobs": True}]
)
def test_a_request_that_it_does_not_support_goes_to_the_other(
    open_front: Any, fields: dict[str, Any]
) -> None:
    with open_front(script(*STREAM, FINAL, DONE)) as front:
        front.post(**fields)
        assert front.rust.log == []
        assert len(front.served.app.log) == 1


@pytest.mark.parametrize(("size", "in_python"), [(2**20 - 200, False), (2**20, True)])
def test_a_large_body_goes_to_the_other(tmp_path: Path, size: int, in_python: bool) -> None:
    """There is no front end in Rust here, so its answer would be an error."""
    messages = [{"role": "user", "content": "é" * (size // 2)}]
    body = json.dumps(BODY | {"messages": messages}, ensure_ascii=False).encode()
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    async def other(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert message["body"] == body
        await send({"type": "http.response.start", "status": 418, "headers": []})

    async def request() -> None:
        relay = RustRelay(other, str(tmp_path / "http"), "m", 50, FirstTokens())
        await relay({"type": "http", "method": "POST", "path": CHAT}, receive, send)
        await relay._client().close()

    asyncio.run(request())
    assert statuses[0] == (418 if in_python else 500)


def test_text_is_passed_on_as_it_is(open_front: Any) -> None:
    messages = [{"role": "user", "content": "é\u4e2d\U0001f600"}]
    with open_front(script(*STREAM, FINAL, DONE)) as front:
        front.post(messages=messages)
        assert front.rust.log[0].body["messages"] == messages


def test_a_front_end_that_ends_in_a_stream_is_an_error_event(open_front: Any) -> None:
    with open_front(script(*STREAM[:3], b"data: {", die=True)) as front:
        *events, last = front.post().content.split(b"\n\n")[:-1]
        assert [part + b"\n\n" for part in events] == PLAIN[:3]
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert (error["type"], error["code"]) == ("server_error", "replica_ended")
        assert front.charged() == (PROMPT_TOKENS, 2, 0)


def test_an_error_in_a_stream_leaves_the_tokens_before_it_charged(open_front: Any) -> None:
    error = b'data: {"error":{"message":"It failed.","type":"server_error"}}\n\n'
    with open_front(script(*STREAM[:3], error, DONE)) as front:
        assert front.post().content == b"".join([*PLAIN[:3], error, DONE])
        assert front.charged() == (PROMPT_TOKENS, 2, 0)


def test_a_client_that_does_not_read_pays_for_what_arrived(tmp_path: Path) -> None:
    """The relay waits in `send`, while the events after the first arrive."""
    events = [event(delta("a"), number) for number in range(1, 40)]
    context = SimpleNamespace(generated=lambda: (0, 0))
    path = str(tmp_path / "http")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}

    async def stalled(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def disconnect(rust: ScriptedServer) -> None:
        relay = RustRelay(stalled, path, "m", 50, FirstTokens())  # type: ignore[arg-type]
        scope = {"type": "http", "method": "POST", "path": CHAT, SCOPE_KEY: context}
        answer = asyncio.create_task(relay(scope, receive, stalled))
        while not (rust.log and rust.log[0].ended_s):
            await asyncio.sleep(0.01)
        for _ in range(10):  # until this event loop has read what was sent
            await asyncio.sleep(0.01)
        answer.cancel()
        await asyncio.wait({answer})
        await relay._client().close()

    with threaded(Script((Step(events[0]), Step(b"".join(events[1:]), 0.05))), unix=path) as rust:
        asyncio.run(disconnect(rust))
    assert context.generated() == (PROMPT_TOKENS, 39)


@pytest.mark.parametrize(("status", "warned"), [(400, False), (503, True)])
def test_a_failure_of_the_front_end_is_logged(
    open_front: Any, status: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with open_front(Script(status=status, body=b"{}")) as front:
        assert front.post().json()["choices"][0]["message"]["content"] == "yes"
    assert (f"status {status}" in caplog.text) == warned


def test_a_page_of_metrics_with_an_error_is_not_taken_for_metrics(tmp_path: Path) -> None:
    path = str(tmp_path / "http")
    pages = []

    async def read(rust: ScriptedServer) -> None:
        relay = RustRelay(ScriptedServer, path, "m", 50, FirstTokens())  # type: ignore[arg-type]
        rust.metrics = b"vllm:num_preemptions_total 1\n"
        pages.append(await relay.metrics())
        rust.metrics = None  # answered with 404
        with pytest.raises(aiohttp.ClientResponseError):
            await relay.metrics()
        await relay._client().close()

    with threaded(Script(), unix=path) as rust:
        asyncio.run(read(rust))
    assert pages == ["vllm:num_preemptions_total 1\n"]


def test_a_front_end_that_has_ended_is_a_status(server: Server, tmp_path: Path) -> None:
    with server.serving() as served:
        relay = RustRelay(served.app, str(tmp_path / "http"), "m", 50, FirstTokens())
        served.gate._app = relay
        with served.http(AUTHORIZED) as client:
            reply = client.post(CHAT, json=BODY)
        close(relay, served)
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "replica_ended"
        assert served.app.log == []
