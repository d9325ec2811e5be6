"""Clients of a gate under test, and its configuration."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
from support.gate_server import AUTHORIZED, CONFIG, KEY, ServedGate, wait_until

from serving.gateway.config import GateConfig
from serving.spec.tenants import Tenant


def replace_config(**fields: Any) -> GateConfig:
    return GateConfig(**{**CONFIG.model_dump(), **fields})


def tenants_of(hashes: Iterable[str]) -> tuple[Tenant, ...]:
    return tuple(Tenant(name=f"tenant-{n}", key_hash=hashed) for n, hashed in enumerate(hashes))


@contextlib.contextmanager
def posting(served: ServedGate) -> Iterator[Callable[[str], Future[httpx.Response]]]:
    """Post from threads, each request once the last one is in the gate: their order is known."""
    with served.http(AUTHORIZED) as client, ThreadPoolExecutor(32) as pool:

        def post(label: str) -> Future[httpx.Response]:
            slots = served.gate.slots
            before = slots.running + slots.queued
            answer = pool.submit(client.post, "/v1/completions", json={"prompt": label})
            wait_until(lambda: answer.done() or slots.running + slots.queued > before)
            return answer

        try:
            yield post
        finally:
            served.answer_all()


@contextlib.contextmanager
def disconnecting(served: ServedGate, label: str) -> Iterator[None]:
    """A client that sends a whole request, reads nothing, and disconnects at the end."""
    slots = served.gate.slots
    before = slots.running + slots.queued
    body = json.dumps({"prompt": label})
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        raw.sendall(
            f"POST /v1/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        wait_until(lambda: slots.running + slots.queued > before)
        wait_until(lambda: slots.queued > 0 or len(served.app.turns) == slots.running)
        yield
