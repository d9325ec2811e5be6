"""CPU time that the gate adds to a chunk and to a request of a scripted application."""

from __future__ import annotations

import asyncio
import json
import time
from statistics import median
from typing import Any

from serving.engine.stats import FirstTokens, with_ttft
from serving.gateway.asgi import App, Message, Receive, Scope, Send, with_replica_header
from serving.gateway.config import GateConfig, ServedModel
from serving.gateway.gate import Gate
from serving.spec.tenants import Tenant, key_hash, new_key

KEY = new_key()
CONFIG = GateConfig(
    tenants=(
        Tenant(
            name="bench",
            key_hash=key_hash(KEY),
            requests_per_minute=1_000_000,
            tokens_per_minute=1_000_000_000,
        ),
    ),
    models=(ServedModel(id="m"),),
    max_ongoing_requests=10_000,
    max_queued_requests=0,
    retry_after_s=1,
)
BODY = json.dumps(
    {
        "model": "m",
        "messages": [{"role": "user", "content": "What is continuous batching? " * 9}],
        "max_tokens": 64,
        "stream": True,
    }
).encode()
CHUNK = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "object": "chat.completion.chunk",
    "created": 1_790_000_000,
    "model": "m",
    "choices": [
        {"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}
    ],
}
USAGE = CHUNK | {
    "choices": [],
    "usage": {"prompt_tokens": 64, "total_tokens": 128, "completion_tokens": 64},
}


def event(fields: dict[str, Any]) -> bytes:
    """Return an event of a stream as vLLM writes it."""
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n".encode()


class ScriptedStream:
    """Streams the same chunks for every request, one in each turn of the event loop.

    Args:
        chunks: The number of chunks, besides usage and end.
    """

    def __init__(self, chunks: int) -> None:
        self._events = [event(CHUNK)] * chunks + [event(USAGE), b"data: [DONE]\n\n"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await receive()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for data in self._events:
            await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def gate_figures(streams: int, chunks: int, repeats: int) -> dict[str, float]:
    """Return medians in microseconds of CPU time, with and without the gate in turn.

    The cost of a request is that of streams with one chunk; the cost of a chunk is what each
    further one adds.
    """
    rounds = [asyncio.run(_round(streams, chunks, bool(n % 2))) for n in range(repeats + 1)][1:]
    figures = {name: median(each[name] for each in rounds) for name in rounds[0]}
    figures["gate_chunk_ratio"] = median(
        each["gate_us_per_chunk"] / each["bare_us_per_chunk"] for each in rounds
    )
    return {name: round(value, 3) for name, value in figures.items()}


async def _round(streams: int, chunks: int, gate_first: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    for side in sorted(("bare", "gate"), reverse=gate_first):
        costs = [await _cpu_us(side, streams, count) for count in (1, 1 + chunks)]
        figures[f"{side}_us_per_request"] = costs[0] / streams
        figures[f"{side}_us_per_chunk"] = (costs[1] - costs[0]) / (streams * chunks)
    return figures


async def _cpu_us(side: str, streams: int, chunks: int) -> float:
    app: App = ScriptedStream(chunks)
    gate: Gate | None = None
    if side == "gate":
        gate = Gate(app, lambda: CONFIG)
        app = with_replica_header(with_ttft(gate, FirstTokens()), "replica")
    await _request(app)  # joins the ledger
    began = time.process_time()
    await asyncio.gather(*(_request(app) for _ in range(streams)))
    elapsed_us = (time.process_time() - began) * 1e6
    if gate is not None:
        gate.quotas.close()
    return elapsed_us


async def _request(app: App) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200

    headers = {
        "host": "127.0.0.1:8000",
        "accept": "*/*",
        "accept-encoding": "gzip, deflate",
        "connection": "keep-alive",
        "user-agent": "benchmark",
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "content-length": str(len(BODY)),
    }
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await app(scope, receive, send)
