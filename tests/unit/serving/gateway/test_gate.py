"""The gate over real sockets. Ground truth: the log of the scripted application behind it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import socket
from typing import Any

import openai
import pytest
from support.gate_clients import posting, replace_config, tenants_of
from support.gate_server import AUTHORIZED, CONFIG, KEY, WRONG_KEY, ScriptedApp, ServedGate, Server

from serving.errors import SpecError
from serving.gateway.asgi import Message, Receive, Scope, Send
from serving.gateway.context import RequestContext
from serving.gateway.gate import Gate
from serving.spec.tenants import key_hash, new_key


class TestAuthentication:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": f"Bearer {WRONG_KEY}"},
            {"authorization": "Bearer"},
            {"authorization": ""},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
            {"authorization": f"Token {KEY}"},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": f"Bearer {KEY[:-1]}"},
            {"authorization": f"Bearer {KEY.upper()}"},
            {"authorization": f"Bearer {hashlib.sha256(KEY.encode()).hexdigest()}"},
            {"authorization": f"Bearer {WRONG_KEY} {KEY}"},
            {"x-api-key": WRONG_KEY},
            {"x-api-key": f"Bearer {KEY}"},
            {"x-api-key": KEY, "authorization": f"Bearer {WRONG_KEY}"},
            {"x-api-key": WRONG_KEY, "authorization": f"Bearer {KEY}"},
            {"x-api-key": KEY, "authorization": f"Basic {KEY}"},
            {"cookie": f"authorization=Bearer {KEY}"},
        ],
    )
    def test_other_credentials_get_401_in_openais_shape(
        self, served: ServedGate, headers: dict[str, str]
    ) -> None:
        with served.http(headers) as client:
            replies = [client.post("/v1/chat/completions", json={}), client.get("/v1/models")]
        for reply in replies:
            error = reply.json()["error"]
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == "invalid_api_key"
            assert KEY not in reply.text
            assert WRONG_KEY not in reply.text
        assert served.app.log == []

    @pytest.mark.parametrize("name", ["api_key", "api-key", "key", "token", "access_token"])
    def test_a_key_in_the_url_does_not_count(self, served: ServedGate, name: str) -> None:
        with served.http() as client:
            assert client.get("/v1/models", params={name: KEY}).status_code == 401
            assert client.get("/health", params={name: KEY}).status_code == 200
        assert [request.path for request in served.app.log] == ["/health"]

    def test_the_openai_client_raises_its_own_error(self, served: ServedGate) -> None:
        ask: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
        with pytest.raises(openai.AuthenticationError) as caught:
            served.openai(WRONG_KEY).chat.completions.create(**ask)
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            served.openai(WRONG_KEY).models.list()
        assert served.app.log == []
        answer = served.openai().chat.completions.create(**ask)
        assert answer.choices[0].message.content == "yes"
        assert json.loads(served.app.log[0].body)["messages"] == ask["messages"]

    @pytest.mark.parametrize("headers", [{"x-api-key": KEY}, AUTHORIZED | {"x-api-key": KEY}])
    def test_the_key_may_be_in_the_header_of_anthropics_clients(
        self, served: ServedGate, headers: dict[str, str]
    ) -> None:
        with served.http(headers) as client:
            assert client.get("/v1/models").status_code == 200
            assert client.post("/v1/completions", json={}).status_code == 200

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_the_scheme_is_case_insensitive(self, served: ServedGate, scheme: str) -> None:
        with served.http({"authorization": f"{scheme} {KEY}"}) as client:
            assert client.get("/v1/models").status_code == 200

    @pytest.mark.parametrize("key", [b"\xff\xfe", b"caf\xc3\xa9" * 4, b"\xed\xa0\x80"])
    def test_keys_that_are_not_ascii_are_refused(self, served: ServedGate, key: bytes) -> None:
        with socket.create_connection(("127.0.0.1", served.port)) as raw:
            raw.sendall(b"GET /x HTTP/1.1\r\nhost: a\r\nauthorization: Bearer " + key + b"\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 401")

    def test_all_keys_are_accepted_and_can_be_replaced(self, served: ServedGate) -> None:
        keys = [new_key() for _ in range(3)]
        served.config = replace_config(tenants=tenants_of(key_hash(key) for key in keys))
        for key in keys:
            assert served.openai(key).models.list() is not None
        with pytest.raises(openai.AuthenticationError):
            served.openai().models.list()
        served.config = CONFIG
        assert served.openai().models.list() is not None
        with pytest.raises(openai.AuthenticationError):
            served.openai(keys[0]).models.list()


OTHER_PATHS = [
    "/",
    "/v1/models",
    "/v1/chat/completions",
    "/metrics",
    "/load",
    "/version",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/invocations",
    "/tokenize",
    "/ping",
    "/server_info",
    "/reset_prefix_cache",
    "/nothing",
    "/health/",
    "/health/x",
    "/healthz",
    "/Health",
    "//health",
    "/v1/health",
    "/x/../health",
    "/x%2f..%2fhealth",
    "/health%3fx",
    "/%2fhealth",
]


class TestRoutes:
    @pytest.mark.parametrize("path", OTHER_PATHS)
    def test_every_route_but_health_needs_a_key_for_every_method(
        self, served: ServedGate, path: str
    ) -> None:
        # A raw socket, because clients normalize paths before they send them.
        for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"):
            with socket.create_connection(("127.0.0.1", served.port)) as raw:
                line = f"{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
                raw.sendall(line.encode())
                assert raw.recv(100).startswith(b"HTTP/1.1 401"), method
        assert served.app.log == []

    def test_health_needs_no_key_and_no_slot(self, held: ServedGate) -> None:
        with posting(held) as post, held.http() as anonymous:
            for label in "abcd":
                post(label)
            assert anonymous.get("/health").status_code == 200
            assert post("e").result().status_code == 429

    def test_under_a_prefix_only_its_own_health_is_open(self, server: Server) -> None:
        with server.serving(root_path="/llm") as served, served.http() as client:
            assert client.get("/llm/health").status_code == 200
            closed = ["/llm/v1/models", "/llm", "/llm/llm/health", "/llmx/health", "/llm//health"]
            # Other paths with prefixes of the same length.
            closed += ["/abc/health", "/v1x/health"]
            for path in closed:
                assert client.get(path).status_code == 401, path
            assert client.get("/llm/version", headers=AUTHORIZED).status_code == 200
            assert [request.path for request in served.app.log] == ["/llm/health", "/llm/version"]
            assert client.get("/llm/v1/models", headers=AUTHORIZED).status_code == 200

    def test_websockets_are_closed_at_once(self) -> None:
        app = ScriptedApp()
        gate = Gate(app, lambda: CONFIG)

        async def connect(headers: list[tuple[bytes, bytes]]) -> list[Any]:
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            async def receive() -> Any:
                return {"type": "websocket.connect"}

            scope = {"type": "websocket", "path": "/v1/realtime", "headers": headers}
            await gate(scope, receive, send)
            return sent

        assert asyncio.run(connect([])) == [{"type": "websocket.close", "code": 1008}]
        assert app.log == []
        # A key does not help: no route behind the gate is a websocket.
        asyncio.run(connect([(b"authorization", f"Bearer {KEY}".encode())]))
        assert app.log == []


class TestKeys:
    def test_the_hash_of_a_key_is_its_sha256(self) -> None:
        assert key_hash(KEY) == hashlib.sha256(KEY.encode()).hexdigest()

    def test_new_keys_are_unique_long_and_accepted(self) -> None:
        keys = {new_key() for _ in range(100)}
        assert len(keys) == 100
        assert min(map(len, keys)) >= 3 + 32 * 4 // 3
        assert len({key_hash(key) for key in keys}) == 100

    @pytest.mark.parametrize("key", ["", "short", "x" * 15, "é" * 20, "tab\t" * 8, "line\n" * 8])
    def test_a_key_that_can_be_guessed_or_cannot_be_sent_is_refused(self, key: str) -> None:
        with pytest.raises(SpecError, match=f"api_key must .*got {len(key)} characters") as caught:
            key_hash(key)
        if key:
            assert key not in str(caught.value)
        assert "16" in str(caught.value)

    def test_every_hash_is_compared_in_constant_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hashes = tuple(key_hash(key) for key in (new_key(), new_key(), KEY))
        compared: list[tuple[str, str]] = []
        compare_digest = hmac.compare_digest

        def spy(left: Any, right: Any) -> bool:
            compared.append((left, right))
            return compare_digest(left, right)

        monkeypatch.setattr(hmac, "compare_digest", spy)
        for order in (hashes, hashes[::-1]):
            for presented, known in ((KEY, True), (WRONG_KEY, False), ("", False)):
                compared.clear()
                config = replace_config(tenants=tenants_of(order))
                assert (config.authenticate(presented) is not None) is known
                digest = hashlib.sha256(presented.encode()).hexdigest()
                assert sorted(compared) == sorted((digest, stored) for stored in hashes)

    def test_a_gate_needs_tenants_with_keys(self) -> None:
        with pytest.raises(SpecError, match=r"GateConfig\.tenants"):
            replace_config(tenants=())
        with pytest.raises(SpecError, match="tenant 'a' has no key_hash"):
            replace_config(tenants=[{"name": "a"}])

    def test_the_configuration_does_not_contain_keys(self) -> None:
        assert KEY not in repr(CONFIG) + CONFIG.model_dump_json()


class TestContext:
    def test_the_application_reads_the_context_from_the_scope(self) -> None:
        contexts: list[RequestContext] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            contexts.append(RequestContext.from_scope(scope))

        async def call() -> None:
            gate = Gate(app, lambda: CONFIG)
            headers = [(b"authorization", f"Bearer {KEY}".encode())]
            for method, path in (("GET", "/version"), ("POST", "/v1/completions")):
                body = b'{"structured_outputs": {"regex": "a"}}' if method == "POST" else b""
                scope = {"type": "http", "method": method, "root_path": "/llm"}
                request = {"path": f"/llm{path}", "headers": headers}
                await gate({**scope, **request}, receiving(body), ignore)
            gate.quotas.close()

        asyncio.run(call())
        assert [context.path for context in contexts] == ["/version", "/v1/completions"]
        assert [context.constrained for context in contexts] == [False, True]
        bodies = [context.body and context.body.fields for context in contexts]
        assert bodies == [None, {"structured_outputs": {"regex": "a"}, "model": "m"}]
        for context in contexts:
            assert context.tenant == CONFIG.tenants[0]
            assert context.config is CONFIG
            assert context.timings.ms["authentication"] is not None

    def test_health_has_no_context(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            with pytest.raises(LookupError):
                RequestContext.from_scope(scope)

        scope = {"type": "http", "method": "GET", "path": "/health", "headers": []}
        asyncio.run(Gate(app, lambda: CONFIG)(scope, receiving(b""), ignore))


async def ignore(message: Message) -> None:
    """Drop a sent message."""


def receiving(body: bytes) -> Receive:
    """Return a `receive` with one whole body."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
