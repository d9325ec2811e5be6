"""A replica's Rust front end with a scripted program in its place."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import prometheus_client as prom
import pytest
from support.rust_program import SERVE, write_program

from serving.engine import rust_frontend
from serving.engine.rust_frontend import RustFrontend
from serving.engine.stats import FirstTokens
from serving.spec.model import ModelSpec

ANSWERS_ONCE = SERVE.replace("while True:", "for status in (b'200 OK', b'503 Failed'):").replace(
    'b"HTTP/1.1 200 OK', 'b"HTTP/1.1 " + status + b"'
)


class Opened:
    """A front end that answers, the metrics in Python, and a client of both front ends."""

    def __init__(self, folder: Path, run: str) -> None:
        program = write_program(folder, run=run)
        self.registry = prom.CollectorRegistry()
        model = ModelSpec(env={"VLLM_RUST_FRONTEND_PATH": str(program)})
        self.front = RustFrontend(model, self.registry, FirstTokens())

    async def open(self) -> httpx.AsyncClient:
        app: Any = await self.front.open(in_python)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica")


async def in_python(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def opened(folder: Path, run: str = SERVE) -> AsyncIterator[tuple[Opened, httpx.AsyncClient]]:
    started = Opened(folder, run)
    try:
        async with await started.open() as client:
            yield started, client
    finally:
        started.front.end()
        if started.front._relay is not None:
            await started.front._relay._client().close()


def test_a_front_end_that_is_stopped_fails_the_health_check(tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(tmp_path) as (started, _):
            await started.front.check()
            os.kill(started.front._process._process.pid, signal.SIGSTOP)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(started.front.check(), 0.3)

    asyncio.run(check())


def test_a_front_end_that_has_lost_the_engine_fails_the_health_check(tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(tmp_path, ANSWERS_ONCE) as (started, _):
            with pytest.raises(RuntimeError, match="has lost the engine"):
                await started.front.check()

    asyncio.run(check())


def test_a_front_end_that_has_ended_fails_the_health_check(tmp_path: Path) -> None:
    async def check() -> None:
        async with opened(tmp_path) as (started, _):
            started.front.end()
            with pytest.raises(RuntimeError, match="ended with status -9"):
                await started.front.check()

    asyncio.run(check())


@pytest.mark.parametrize("query", ["", "?name[]=vllm:generation_tokens_total"])
def test_the_page_of_metrics_can_be_limited_to_names(tmp_path: Path, query: str) -> None:
    async def read() -> None:
        started = Opened(tmp_path, SERVE)
        prom.Counter("vllm:generation_tokens", "Tokens.", registry=started.registry).inc(3)
        prom.Gauge("vllm:num_requests_running", "Running.", registry=started.registry)
        started.front.metrics.read("vllm:generation_tokens_total 5\n")
        try:
            async with await started.open() as client:
                page = await client.get(f"/metrics{query}")
                assert page.status_code == 200
                assert "vllm:generation_tokens_total 8.0" in page.text
                assert ("vllm:num_requests_running" in page.text) == (not query)
                assert (await client.get("/other")).status_code == 418
        finally:
            started.front.end()
            await started.front._relay._client().close()

    asyncio.run(read())


def test_metrics_that_cannot_be_read_leave_the_last_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rust_frontend, "PUBLISH_S", 0.01)
    pages: list[Any] = ["vllm:generation_tokens_total 5\n", "a page of errors", TimeoutError()]
    read = asyncio.Event()

    async def next_page() -> str:
        if not pages:
            read.set()
            return "vllm:generation_tokens_total 6\n"
        page = pages.pop(0)
        if isinstance(page, Exception):
            raise page
        return str(page)

    async def run() -> None:
        async with opened(tmp_path) as (started, _):
            prom.Counter("vllm:generation_tokens", "Tokens.", registry=started.registry)
            monkeypatch.setattr(started.front._relay, "metrics", next_page)
            reading = asyncio.create_task(started.front.read_metrics())
            await asyncio.wait_for(read.wait(), 60)
            reading.cancel()
            (tokens,) = started.front.metrics.collect()
            assert tokens.samples[0].value == 6

    asyncio.run(run())
    assert caplog.text.count("could not be read") == 2
