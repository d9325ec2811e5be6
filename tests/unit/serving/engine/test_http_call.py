"""Requests through an ASGI application in this process, against Starlette's own test client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from serving.engine.http_call import EngineRequest, Progress, ResponseStart, call_app, read_start
from serving.gateway.context import SCOPE_KEY

log: list[str] = []


async def echo(request: Request) -> Response:
    body = await request.json()
    return JSONResponse(body | {"type": request.headers["content-type"]}, body.get("status", 200))


async def stream(request: Request) -> Response:
    count = (await request.json())["events"]

    async def events() -> AsyncIterator[str]:
        try:
            for number in range(count):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.01)
        finally:
            log.append("ended")

    return StreamingResponse(events(), media_type="text/event-stream")


async def fail(scope: Any, receive: Any, send: Any) -> None:
    raise ZeroDivisionError


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    pass


APP = Starlette(
    routes=[
        Route(path, handler, methods=["POST"])
        for path, handler in (("/echo", echo), ("/stream", stream))
    ]
)


def call(path: str, fields: dict[str, Any], app: Any = APP) -> list[Any]:
    async def run() -> list[Any]:
        return [part async for part in call_app(app, EngineRequest(path, fields, {"x-a": "b"}))]

    return asyncio.run(run())


@pytest.mark.parametrize("fields", [{"a": "\u00e9 \u4f60"}, {"status": 404}])
def test_a_whole_answer_is_what_an_http_client_gets(fields: dict[str, Any]) -> None:
    (start,) = call("/echo", fields)
    truth = TestClient(APP).post("/echo", content=json.dumps(fields),
                                 headers={"content-type": "application/json"})  # fmt: skip
    assert (start.status, json.loads(start.text)) == (truth.status_code, truth.json())
    assert start.content_type == truth.headers["content-type"]
    assert start.whole
    assert not start.streams


def test_a_stream_comes_in_parts_with_its_start_in_the_first() -> None:
    first, *rest = call("/stream", {"events": 3})
    assert isinstance(first, ResponseStart)
    assert first.streams
    assert not first.whole
    assert [first.text, *rest] == [f"data: {number}\n\n" for number in range(3)]


def test_an_unknown_route_and_another_method_answer_as_over_http() -> None:
    (start,) = call("/none", {})
    assert start.status == TestClient(APP).post("/none").status_code == 404


def test_closing_ends_the_stream_at_the_application() -> None:
    async def run() -> None:
        log.clear()
        parts = call_app(APP, EngineRequest("/stream", {"events": 10_000}, {}))
        await anext(parts)
        assert log == []
        await parts.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(30):
            while not log:
                await asyncio.sleep(0.01)
        assert log == ["ended"]

    asyncio.run(run())


def test_an_application_that_fails_or_says_nothing_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        call("/fail", {}, fail)
    with pytest.raises(ConnectionResetError):
        call("/", {}, nothing)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"messages": [{"content": "x"}]}, [{"content": "x"}]),
        ({"prompt": [1, 2]}, [1, 2]),
        ({"input": "x"}, "x"),
        ({"query": "x"}, None),
    ],
)
def test_the_prompt_is_what_prefix_aware_routing_reads(fields: Any, prompt: Any) -> None:
    assert EngineRequest("/", fields, {}).prompt == prompt


def test_a_request_knows_whether_a_grammar_constrains_it() -> None:
    constrained = EngineRequest("/", {"response_format": {"type": "json_object"}}, {})
    assert constrained.scope(b"")[SCOPE_KEY].constrained
    assert not EngineRequest("/", {"tools": []}, {}).scope(b"")[SCOPE_KEY].constrained


def test_the_tokens_so_far_are_reported_until_the_response_starts() -> None:
    reported: list[Progress] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        tokens = iter(range(100))
        scope[SCOPE_KEY].generated = lambda: (7, next(tokens))
        while len(reported) < 3:
            await asyncio.sleep(0.01)
        await JSONResponse({})(scope, receive, send)
        await asyncio.sleep(0.1)

    async def run() -> tuple[float, ResponseStart, list[Any]]:
        began = time.monotonic()
        packets = call_app(slow, EngineRequest("/", {}, {}), progress_s=0.05)
        start = await read_start(packets, reported.append)
        return time.monotonic() - began, start, [packet async for packet in packets]

    seconds, start, rest = asyncio.run(run())
    assert reported == [(7, number) for number in range(len(reported))]
    assert 0.05 * len(reported) <= seconds + 0.01
    assert (start.status, start.text, rest) == (200, "{}", [])
