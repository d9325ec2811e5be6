"""Comments in a stream that waits. Ground truth: a scripted application and a raw client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from support.gate_clients import posting, replace_config
from support.gate_server import AUTHORIZED, CONFIG, KEY, ServedGate, Server, wait_until

from serving.gateway.asgi import Receive, Scope, Send
from serving.gateway.keep_alive import COMMENT
from serving.quotas.accounts import Usage
from serving.spec.limits import Limits
from serving.spec.tenants import Tenant

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
INTERVAL_S = 0.05
STREAM = (200, b"text/event-stream; charset=utf-8")
CHUNK = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
DELTA = CHUNK | {"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": None}]}
USAGE = CHUNK | {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
EVENTS = [
    f"data: {json.dumps(event, separators=(',', ':'))}\n\n" for event in (DELTA, DELTA, USAGE)
]
ERROR = {"message": "the prompt is too long", "type": "BadRequestError", "param": "messages"}


@dataclass
class SlowApp:
    """Answers after pauses, whose lengths the test sets.

    Attributes:
        before_start_s: Seconds before the response starts.
        before_body_s: Seconds between its start and its first bytes.
        between_s: Seconds between two parts of the body.
    """

    before_start_s: float = 0.0
    before_body_s: float = 0.0
    between_s: float = 0.0
    start: tuple[int, bytes] = STREAM
    parts: list[str] = field(default_factory=lambda: [*EVENTS, "data: [DONE]\n\n"])
    ends: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await asyncio.sleep(self.before_start_s)
            status, content_type = self.start
            headers = [(b"content-type", content_type)]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await asyncio.sleep(self.before_body_s)
            for part in self.parts:
                message = {"type": "http.response.body", "body": part.encode(), "more_body": True}
                await send(message)
                await asyncio.sleep(self.between_s)
            await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        self.ends.append("answered")


@pytest.fixture
def slow(server: Server) -> Iterator[Callable[..., ServedGate]]:
    """Return a function that serves a slow application, with the given limits."""
    with contextlib.ExitStack() as stack:

        def serve(app: SlowApp, **limits: Any) -> ServedGate:
            served = stack.enter_context(server.serving())
            served.gate._app = app
            served.config = replace_config(limits=Limits(**{"keep_alive_s": INTERVAL_S} | limits))
            return served

        yield serve


def post(served: ServedGate, path: str = CHAT, **fields: Any) -> Any:
    with served.http(AUTHORIZED) as client:
        return client.post(path, json={"stream": True, "messages": []} | fields)


def usage_of(served: ServedGate) -> Usage:
    return served.gate.quotas.lease(served.config.tenants[0]).usage


@pytest.mark.parametrize("pause", ["before_start_s", "before_body_s"])
def test_comments_fill_the_wait_for_the_first_event(
    slow: Callable[..., ServedGate], pause: str
) -> None:
    served = slow(SlowApp(**{pause: 0.5, "between_s": 0.2}))  # type: ignore[arg-type]
    reply = post(served, unknown=1)
    comments = reply.content.count(COMMENT)
    assert 1 <= comments <= 10
    hidden = "".join([*EVENTS[:2], "data: [DONE]\n\n"]).encode()
    assert reply.content == COMMENT * comments + hidden
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["x-ignored-fields"] == "unknown"
    assert "authentication;dur=" in reply.headers["server-timing"]
    # The client has the last byte before the gate has charged the request.
    wait_until(lambda: usage_of(served).output_tokens > 0)
    usage = usage_of(served)
    assert (usage.prompt_tokens, usage.output_tokens, usage.errors) == (3, 2, 0)


def test_the_response_starts_within_the_interval(slow: Callable[..., ServedGate]) -> None:
    served = slow(SlowApp(before_start_s=30), keep_alive_s=0.3)
    body = b'{"stream": true, "messages": []}'
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client:
        began, received, times = time.monotonic(), b"", []
        client.sendall(head.encode() + body)
        while received.count(COMMENT) < 3:
            received += client.recv(4096)
            times.append(time.monotonic() - began)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert 0.3 <= times[0] < 25  # and not after the 30 s of the application
    assert times[-1] >= 0.9
    app = served.gate._app
    assert isinstance(app, SlowApp)
    wait_until(lambda: app.ends == ["cancelled"])
    wait_until(lambda: served.gate.slots.running == 0)
    wait_until(lambda: usage_of(served).requests == 1)
    usage = usage_of(served)
    assert (usage.prompt_tokens, usage.output_tokens, usage.errors) == (0, 0, 0)


@pytest.mark.parametrize("fields", [{"stream": False}, {"stream": None}])
def test_other_requests_get_no_comments(
    slow: Callable[..., ServedGate], fields: dict[str, Any]
) -> None:
    app = SlowApp(0.3, start=(200, b"application/json"), parts=["{}"])
    assert post(slow(app), **fields).content == b"{}"


def test_zero_turns_it_off(slow: Callable[..., ServedGate]) -> None:
    served = slow(SlowApp(before_start_s=0.3), keep_alive_s=0)
    assert COMMENT not in post(served).content
    assert Limits().keep_alive_s == 15


def test_a_quick_error_keeps_its_status(slow: Callable[..., ServedGate]) -> None:
    body = json.dumps({"error": ERROR})
    app = SlowApp(before_body_s=1.2, start=(400, b"application/json"), parts=[body[:9], body[9:]])
    reply = post(slow(app, keep_alive_s=0.5))
    assert (reply.status_code, reply.json()) == (400, {"error": ERROR})


def test_comments_come_while_a_request_waits_in_the_gates_queue(held: ServedGate) -> None:
    held.config = replace_config(limits=Limits(keep_alive_s=INTERVAL_S))
    with posting(held) as posted, held.http(AUTHORIZED) as client:
        answers = [posted(label) for label in "ab"]
        with client.stream("POST", CHAT, json={"stream": True, "messages": []}) as reply:
            waiting = reply.iter_raw()
            assert next(waiting).startswith(COMMENT)
            assert [request.label for request in held.app.log] == ["a", "b"]
            held.answer_all()
            rest = b"".join(waiting)
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert rest.endswith(b"}")


def event_of(reply: Any) -> tuple[str | None, dict[str, Any]]:
    """The name and the data of a stream's only event, after comments."""
    assert reply.status_code == 200
    text = reply.text.replace(COMMENT.decode(), "")
    assert reply.text.startswith(COMMENT.decode())
    lines = text.removesuffix("\n\n").split("\n")
    name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else None
    (data,) = lines
    event: dict[str, Any] = json.loads(data.removeprefix("data: "))
    return name, event


class TestLateErrors:
    @pytest.mark.parametrize("status", [400, 429, 503])
    def test_of_the_application(self, slow: Callable[..., ServedGate], status: int) -> None:
        text = json.dumps({"error": ERROR})
        parts = [text[:10], text[10:]]
        served = slow(SlowApp(0.2, start=(status, b"application/json"), parts=parts))
        assert event_of(post(served)) == (None, {"error": ERROR})
        assert event_of(post(served, MESSAGES)) == ("error", {"type": "error", "error": ERROR})
        name, event = event_of(post(served, RESPONSES, input="a"))
        assert (name, event["type"], event["message"]) == ("error", "error", ERROR["message"])
        assert (event["param"], event["code"]) == ("messages", None)
        wait_until(lambda: usage_of(served).errors == (3 if status == 503 else 0))
        usage = usage_of(served)
        assert (usage.prompt_tokens, usage.output_tokens) == (0, 0)

    def test_with_a_body_that_is_no_json(self, slow: Callable[..., ServedGate]) -> None:
        for body in ("Internal Server Error", '{"error": 7}', "[]", "x" * 200_000, ""):
            served = slow(SlowApp(0.15, start=(500, b"text/plain"), parts=[body]))
            _, event = event_of(post(served))
            assert "status 500" in event["error"]["message"]

    @pytest.mark.parametrize(
        "app", [SlowApp(before_start_s=30), SlowApp(before_body_s=30)], ids=["start", "body"]
    )
    def test_of_a_timeout(self, slow: Callable[..., ServedGate], app: SlowApp) -> None:
        served = slow(app, max_seconds=0.3)
        assert event_of(post(served))[1]["error"]["code"] == "request_timeout"
        name, event = event_of(post(served, MESSAGES))
        assert (name, event["error"]["code"]) == ("error", "request_timeout")

    def test_the_openai_client_raises_its_own_error(self, slow: Callable[..., ServedGate]) -> None:
        app = SlowApp(0.2, start=(503, b"application/json"), parts=[json.dumps({"error": ERROR})])
        client = slow(app).openai()
        ask: dict[str, Any] = {"model": "m", "stream": True}
        for create in (
            lambda: client.chat.completions.create(messages=[], **ask),
            lambda: client.completions.create(prompt="a", **ask),
            lambda: client.responses.create(input="a", **ask),
        ):
            with pytest.raises(openai.APIError, match="the prompt is too long"):
                list(create())

    def test_the_openai_client_skips_comments(self, slow: Callable[..., ServedGate]) -> None:
        client = slow(SlowApp(0.2)).openai()
        stream = client.chat.completions.create(model="m", messages=[], stream=True)
        texts = [chunk.choices[0].delta.content for chunk in stream]
        assert texts == ["yes", "yes"]


def test_the_quota_headers_are_in_the_early_start(slow: Callable[..., ServedGate]) -> None:
    served = slow(SlowApp(0.2))
    tenant = Tenant(**CONFIG.tenants[0].model_dump() | {"requests_per_minute": 5})
    served.config = replace_config(tenants=(tenant,), limits=Limits(keep_alive_s=INTERVAL_S))
    assert post(served).headers["x-ratelimit-remaining-requests"] == "4"
