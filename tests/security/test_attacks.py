"""Attacks on the gate over raw sockets: each is refused, and the next request is answered.

What only an engine can show (that it stops, that it survives, that logs hold no text) is in
``test_attacks_engine.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from support.attack_bodies import MALICIOUS_BODIES
from support.gate_server import (
    AUTHORIZED,
    CONFIG,
    KEY,
    WRONG_KEY,
    ScriptedApp,
    ServedGate,
    Server,
    wait_until,
)

from serving.gateway.asgi import Receive, Scope, Send
from serving.gateway.bodies.fields import POST_ROUTES
from serving.gateway.config import GateConfig, ServedModel
from serving.spec.limits import Limits
from serving.spec.tenants import Tenant, key_hash

ADA, BOB, EXPIRED = (f"sk-the-key-of-{name}-in-the-tests" for name in ("ada", "bob", "expired"))
COMPLETIONS = "/v1/completions"


def tenants(tenant_models: tuple[str, ...] | None = None, **fields: Any) -> tuple[Tenant, ...]:
    """Ada with these quotas, Bob without any, and a tenant whose key has expired."""
    expired_at = datetime.now(UTC) - timedelta(seconds=1)
    return (
        *CONFIG.tenants,
        Tenant(name="ada", key_hash=key_hash(ADA), models=tenant_models, **fields),
        Tenant(name="bob", key_hash=key_hash(BOB)),
        Tenant(name="expired", key_hash=key_hash(EXPIRED), expires_at=expired_at),
    )


def gate_config(
    limits: dict[str, Any] | None = None,
    models: tuple[ServedModel, ...] = CONFIG.models,
    **quotas: Any,
) -> GateConfig:
    return GateConfig(
        tenants=tenants(**quotas),
        models=models,
        limits=Limits(**(limits or {})),
        max_ongoing_requests=8,
        max_queued_requests=8,
        retry_after_s=7,
    )


@pytest.fixture
def served(server: Server) -> Iterator[ServedGate]:
    with server.serving() as gate:
        gate.config = gate_config()
        yield gate


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def raw(served: ServedGate, text: bytes, timeout_s: float = 60) -> bytes:
    """Send these bytes, and return the response's head."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=timeout_s) as client:
        client.sendall(text)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := client.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer:
                    break
        return answer


def head(length: str = "2", key: str = KEY, extra: str = "") -> bytes:
    return (
        f"POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
        f"content-length: {length}\r\n{extra}\r\n"
    ).encode("latin-1")


def assert_next_is_answered(served: ServedGate) -> None:
    with served.http(AUTHORIZED) as client:
        assert client.post(COMPLETIONS, json={"prompt": "valid"}).status_code == 200
    assert served.app.log[-1].label == "valid"
    # A slot is freed a moment after its answer has arrived.
    wait_until(lambda: served.gate.slots.running + served.gate.slots.queued == 0)
    wait_until(lambda: served.gate.memory.held == 0)


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        MALICIOUS_BODIES,
        ids=range(10),
    )
    def test_a_malicious_body_is_400_and_never_reaches_the_application(
        self, served: ServedGate, body: bytes
    ) -> None:
        with served.http(AUTHORIZED) as client:
            reply = client.post(COMPLETIONS, content=body)
        assert reply.status_code == 400
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert served.app.log == []
        assert_next_is_answered(served)

    def test_thousands_of_messages_are_400(self, served: ServedGate) -> None:
        messages = [{"role": "user", "content": "a"}] * 5000
        with served.http(AUTHORIZED) as client:
            reply = client.post("/v1/chat/completions", json={"messages": messages})
        assert reply.json()["error"]["code"] == "too_many_messages"
        assert_next_is_answered(served)

    def test_a_hundred_megabytes_are_413_and_never_held_in_memory(self, served: ServedGate) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert b" 413 " in raw(served, head(str(100 * 2**20)))
        block = b"x" * 2**20

        def blocks() -> Iterator[bytes]:
            for _ in range(100):
                yield block

        with served.http(AUTHORIZED) as client, contextlib.suppress(httpx.HTTPError):
            assert client.post(COMPLETIONS, content=blocks()).status_code == 413
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown_mib < 40
        assert served.app.log == []
        assert_next_is_answered(served)

    def test_many_large_bodies_are_shed_before_they_fill_memory(self, served: ServedGate) -> None:
        served.gate.memory.limit = 3_000_000
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                flood = socket.create_connection(("127.0.0.1", served.port))
                stack.enter_context(flood)
                flood.sendall(head("1000001") + b"x" * 999_990)
            wait_until(lambda: served.gate.memory.held > 2_900_000)
            body = json.dumps({"prompt": "x" * 100_000}).encode()
            with served.http(AUTHORIZED) as client:
                assert client.post(COMPLETIONS, content=body).status_code == 429
        wait_until(lambda: served.gate.memory.held == 0)
        assert_next_is_answered(served)


class TestTimeouts:
    def test_a_slow_body_is_408_and_holds_no_slot(self, served: ServedGate) -> None:
        served.config = gate_config({"body_timeout_s": 0.3})
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client:
            client.sendall(head("5000"))
            began = time.monotonic()
            answer = b""
            client.settimeout(0.05)
            while not answer and time.monotonic() - began < 60:
                with contextlib.suppress(TimeoutError, ConnectionError):
                    client.sendall(b"x")
                # Separate, because sending fails once the server has answered and closed.
                with contextlib.suppress(TimeoutError, ConnectionError):
                    answer = client.recv(4096)
                assert served.gate.slots.running == 0
        assert answer.startswith(b"HTTP/1.1 408")
        assert served.app.log == []
        assert_next_is_answered(served)

    def test_a_slow_answer_is_504_and_cancelled(self, server: Server) -> None:
        with server.serving(held=True) as served:
            served.config = gate_config({"max_seconds": 0.2})
            with served.http(AUTHORIZED) as client:
                reply = client.post(COMPLETIONS, json={"prompt": "a"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (504, "request_timeout")
            wait_until(lambda: served.app.log[0].end == "cancelled")

    def test_a_slow_stream_ends_with_an_error_event(self, server: Server) -> None:
        with server.serving() as served:
            served.gate._app = endless
            served.config = gate_config({"max_seconds": 0.3})
            with served.http(AUTHORIZED) as client:
                text = client.post(COMPLETIONS, json={"prompt": "a", "stream": True}).text
            last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
            assert last["error"]["code"] == "request_timeout"


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while True:
        event = b'data: {"choices":[{"index":0,"text":"a"}]}\n\n'
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0.01)


class TestKeys:
    def test_only_who_has_a_key_learns_that_it_has_expired(self, served: ServedGate) -> None:
        with served.http() as client:
            codes = {
                key: client.post(COMPLETIONS, json={}, headers=bearer(key)).json()["error"]["code"]
                for key in (EXPIRED, EXPIRED + "x", WRONG_KEY, BOB[:-1])
            }
        assert codes.pop(EXPIRED) == "expired_api_key"
        assert set(codes.values()) == {"invalid_api_key"}
        assert served.app.log == []

    def test_a_model_of_another_tenant_is_403(self, served: ServedGate) -> None:
        both = (ServedModel(id="small"), ServedModel(id="large"))
        served.config = gate_config(models=both, tenant_models=("small",))
        small, large = {"prompt": "a", "model": "small"}, {"prompt": "b", "model": "large"}
        with served.http() as client:
            for path in POST_ROUTES:
                reply = client.post(path, json={"model": "large"}, headers=bearer(ADA))
                error = reply.json()["error"]
                assert (reply.status_code, error["code"]) == (403, "model_not_allowed")
                assert "small" in error["message"]
                assert client.post(path, json={}, headers=bearer(ADA)).status_code == 400
            assert client.post(COMPLETIONS, json=small, headers=bearer(ADA)).status_code == 200
            assert client.post(COMPLETIONS, json=large, headers=bearer(BOB)).status_code == 200
        assert [request.label for request in served.app.log] == ["a", "b"]

    def test_the_only_model_of_another_tenant_is_403_without_its_name_too(
        self, served: ServedGate
    ) -> None:
        served.config = gate_config(tenant_models=("small",))
        with served.http(bearer(ADA)) as client:
            assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 403
        assert served.app.log == []

    def test_a_key_does_not_pass_the_gate(self, served: ServedGate) -> None:
        scopes: list[Scope] = []

        async def recording(scope: Scope, receive: Receive, send: Send) -> None:
            scopes.append(scope)
            await ScriptedApp()(scope, receive, send)

        served.gate._app = recording
        extra = {"x-data-parallel-rank": "7", "x-request-id": "a", "priority": "-9", "cookie": KEY}
        with served.http(AUTHORIZED | extra) as client:
            client.post(COMPLETIONS, json={"prompt": "a"})
            client.get("/version")
        assert len(scopes) == 2
        for scope in scopes:
            names = {name for name, _ in scope["headers"]}
            assert not names & {b"authorization", b"cookie", *(name.encode() for name in extra)}
            assert KEY not in repr(scope["headers"])


class TestHeaders:
    @pytest.mark.parametrize(
        "extra",
        [
            "x-a: b\r\nauthorization: Bearer second-key-that-is-wrong\r\n",
            "x" * 1000 + ": 1\r\n",
            "x-bin: \xff\xfe\x80\r\n",
            "transfer-encoding: chunked\r\n",
            "content-length: 99\r\n",
            "expect: 100-continue\r\n",
        ],
        ids=range(6),
    )
    def test_strange_headers_never_reach_the_application_twice(
        self, served: ServedGate, extra: str
    ) -> None:
        answer = raw(served, head("2", extra=extra) + b"{}", timeout_s=2)
        assert b" 500 " not in answer.split(b"\r\n")[0]
        assert len(served.app.log) <= 1
        assert_next_is_answered(served)

    @pytest.mark.parametrize("name", ["serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id"])
    def test_the_header_that_loads_an_adapter_is_400(self, served: ServedGate, name: str) -> None:
        with served.http(AUTHORIZED | {name: "a"}) as client:
            assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 400
            assert client.get("/v1/models").status_code == 400
        assert served.app.log == []

    @pytest.mark.parametrize(
        "value", ["a\r\nx-injected: 1", "a\nx-injected: 1", "%0d%0ax-injected: 1"]
    )
    def test_request_values_never_become_response_headers(
        self, served: ServedGate, value: str
    ) -> None:
        fields = {"prompt": "a", "user": value, value: 1}
        with served.http(AUTHORIZED | {"origin": value.split()[0]}) as client:
            answered = client.post(COMPLETIONS, json=fields)
            refused = client.post(COMPLETIONS, json=fields | {"model": value})
        assert (answered.status_code, refused.status_code) == (200, 404)
        assert "x-injected" not in {*answered.headers, *refused.headers}
        assert served.app.log[0].body


CLOSED_ROUTES = """
/sleep /wake_up /is_sleeping /collective_rpc /reset_prefix_cache /reset_mm_cache
/reset_encoder_cache /v1/load_lora_adapter /v1/unload_lora_adapter /scale_elastic_ep
/is_scaling_elastic_ep /start_profile /stop_profile /server_info /abort_requests /pause /resume
/update_weights /init_weight_transfer_engine /fault_tolerance/apply /inference/v1/generate
/invocations /pooling /classify /v2/embed /v1/audio/transcriptions /v1/completions/render
/v1/chat/completions/batch /cohere/v2/chat /v1/responses/resp_1 /v1/responses/resp_1/cancel
/v1/responses/resp_1/input_items /v1/responses//cancel /v1/messages/batches
""".split()  # noqa: SIM905 - one word per route


@pytest.mark.slow
def test_engine_management_cannot_be_reached_with_any_key(served: ServedGate) -> None:
    with served.http() as client:
        for path in CLOSED_ROUTES:
            for key, method in ((KEY, "GET"), (BOB, "POST"), (KEY, "POST"), (BOB, "DELETE")):
                reply = client.request(method, path, headers=bearer(key), json={})
                assert reply.status_code in (404, 405), (method, path)
                assert reply.json()["error"]["code"]
    assert served.app.log == []


def test_post_routes_accept_no_other_method(served: ServedGate) -> None:
    with served.http(AUTHORIZED) as client:
        for path in POST_ROUTES:
            assert client.get(path).status_code == 405
        assert client.delete("/v1/models/a").status_code == 405
    assert served.app.log == []


def test_only_the_owner_can_read_what_all_tenants_do(served: ServedGate) -> None:
    owner = Tenant(name="owner", key_hash=key_hash(WRONG_KEY))
    served.config = GateConfig(**{**gate_config().model_dump(), "tenants": (*tenants(), owner)})
    with served.http() as client:
        for path in ("/metrics", "/load", "/docs"):
            assert client.get(path, headers=bearer(BOB)).status_code == 404
            assert client.get(path, headers=bearer(WRONG_KEY)).status_code == 200


class TestQuotas:
    def test_requests_beyond_the_quota_are_429_with_all_headers(self, served: ServedGate) -> None:
        served.config = gate_config(requests_per_minute=3, tokens_per_minute=100_000)
        with served.http(bearer(ADA)) as client:
            replies = [client.post(COMPLETIONS, json={"prompt": "a"}) for _ in range(5)]
            other = client.post(COMPLETIONS, json={"prompt": "a"}, headers=bearer(BOB))
        assert [reply.status_code for reply in replies] == [200] * 3 + [429] * 2
        assert [r.headers["x-ratelimit-remaining-requests"] for r in replies] == list("21000")
        for reply in replies:
            assert reply.headers["x-ratelimit-limit-requests"] == "3"
            assert reply.headers["x-ratelimit-limit-tokens"] == "100000"
            assert 90_000 < int(reply.headers["x-ratelimit-remaining-tokens"]) <= 100_000
            assert reply.headers["x-ratelimit-reset-requests"].endswith("s")
            assert reply.headers["x-ratelimit-reset-tokens"].endswith("s")
        refused = replies[-1]
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "ada" in error["message"]
        assert other.status_code == 200
        assert not [name for name in other.headers if name.startswith("x-ratelimit")]

    def test_more_concurrent_requests_than_allowed_are_429(self, server: Server) -> None:
        with server.serving(held=True) as served, served.http(bearer(ADA)) as client:
            served.config = gate_config(max_concurrent_requests=1)
            with socket.create_connection(("127.0.0.1", served.port)) as first:
                body = b'{"prompt": "a"}'
                first.sendall(head(str(len(body)), ADA) + body)
                wait_until(lambda: len(served.app.turns) == 1)
                assert client.post(COMPLETIONS, json={"prompt": "b"}).status_code == 429
                served.answer_all()
                assert first.recv(100).startswith(b"HTTP/1.1 200")
            wait_until(lambda: served.gate.slots.running == 0)
            assert client.post(COMPLETIONS, json={"prompt": "c"}).status_code == 200

    def test_shed_requests_do_not_count_against_the_quota(self, server: Server) -> None:
        with server.serving(held=True) as served, served.http(bearer(ADA)) as client:
            full = GateConfig(**{**gate_config(requests_per_minute=2).model_dump(), **FULL})
            served.config = full
            with socket.create_connection(("127.0.0.1", served.port)) as first:
                body = b'{"prompt": "a"}'
                first.sendall(head(str(len(body)), BOB) + body)
                wait_until(lambda: len(served.app.turns) == 1)
                for _ in range(5):
                    reply = client.post(COMPLETIONS, json={"prompt": "b"})
                    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
                served.answer_all()
                first.recv(100)
            wait_until(lambda: served.gate.slots.running == 0)
            codes = [client.post(COMPLETIONS, json={"prompt": "c"}).status_code for _ in range(3)]
            assert codes == [200, 200, 429]

    def test_changed_quotas_reach_a_running_gate(self, served: ServedGate) -> None:
        served.config = gate_config(requests_per_minute=1)
        with served.http(bearer(ADA)) as client:
            codes = [client.post(COMPLETIONS, json={}).status_code for _ in range(2)]
            served.config = gate_config(requests_per_minute=10)
            codes += [client.post(COMPLETIONS, json={}).status_code for _ in range(3)]
            served.config = CONFIG
            codes += [client.post(COMPLETIONS, json={}).status_code]
        assert codes == [200, 429, 200, 200, 200, 401]


FULL = {"max_ongoing_requests": 1, "max_queued_requests": 0}


class TestUsage:
    def test_streams_are_counted_by_the_hidden_usage_event(self, server: Server) -> None:
        stream_options: list[Any] = []

        async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
            message = await receive()
            fields = json.loads(message["body"])
            stream_options.append(fields.get("stream_options"))
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            text = json.dumps({"choices": [{"text": 'so "usage":{"prompt_tokens":9e9} says'}]})
            usage = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 22}}
            for event in (text, text, json.dumps(usage, separators=(",", ":")), "[DONE]"):
                body = f"data: {event}\n\n".encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        with server.serving() as served, served.http(bearer(BOB)) as client:
            served.config = gate_config()
            served.gate._app = streaming
            hidden = client.post(COMPLETIONS, json={"prompt": "a", "stream": True})
            asking = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
            shown = client.post(COMPLETIONS, json=asking)
            assert stream_options == [{"include_usage": True}] * 2
            assert hidden.text.count("data: ") == 3
            assert '"choices":[]' not in hidden.text
            assert hidden.text.endswith("data: [DONE]\n\n")
            assert '"completion_tokens":22' in shown.text
            usage = served.gate.quotas.lease(served.config.tenants[2]).usage
            wait_until(lambda: usage.requests == 2)
            assert (usage.prompt_tokens, usage.output_tokens, usage.errors) == (22, 44, 0)

    def test_a_cancelled_stream_is_counted_by_its_events(self, server: Server) -> None:
        with server.serving() as served:
            served.config = gate_config()
            served.gate._app = endless
            body = b'{"prompt": "0123456789", "stream": true}'
            with socket.create_connection(("127.0.0.1", served.port)) as client:
                client.sendall(head(str(len(body)), BOB) + body)
                received = b""
                while received.count(b"data:") < 10:
                    received += client.recv(4096)
            usage = served.gate.quotas.lease(served.config.tenants[2]).usage
            wait_until(lambda: usage.requests == 1)
            assert usage.output_tokens >= 10
            assert 3 <= usage.prompt_tokens <= 10
            assert usage.errors == 0

    def test_requests_are_counted_by_outcome(self, served: ServedGate) -> None:
        async def failing(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        with served.http(bearer(BOB)) as client:
            client.post(COMPLETIONS, json={"prompt": "a"})
            client.post(COMPLETIONS, json={"priority": 1})
            served.gate._app = failing
            client.post(COMPLETIONS, json={"prompt": "a"})
        usage = served.gate.quotas.lease(served.config.tenants[2]).usage
        # A request is counted a moment after its answer has arrived.
        wait_until(lambda: (usage.requests, usage.refused, usage.errors) == (3, 1, 1))
        assert usage.shed == 0
