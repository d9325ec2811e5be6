"""The gate over real sockets. Ground truth: the log of the scripted application behind it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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

from serving.errors import SpecError
from serving.gateway.asgi import Receive, Scope, Send
from serving.gateway.concurrency import ConcurrencyLimiter, FullError
from serving.gateway.config import GateConfig
from serving.gateway.gate import Gate
from serving.spec.limits import Limits
from serving.spec.tenants import Tenant, key_hash, new_key


@pytest.fixture
def served(server: Server) -> Iterator[ServedGate]:
    with server.serving() as gate:
        yield gate


@pytest.fixture
def held(server: Server) -> Iterator[ServedGate]:
    """An application that holds each request until the test lets it answer."""
    with server.serving(held=True) as gate:
        yield gate


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
            {"x-api-key": KEY},
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
            assert client.get("/llm/v1/models", headers=AUTHORIZED).status_code == 200
            assert [request.path for request in served.app.log] == ["/llm/health", "/llm/v1/models"]

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
    def test_keys_that_can_be_guessed_or_not_be_sent_are_refused(self, key: str) -> None:
        with pytest.raises(SpecError, match=f"api_key has {len(key)} characters") as caught:
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


def replace_config(**fields: Any) -> GateConfig:
    return GateConfig(**{**CONFIG.model_dump(), **fields})


def tenants_of(hashes: Iterable[str]) -> tuple[Tenant, ...]:
    return tuple(Tenant(name=f"tenant-{n}", key_hash=hashed) for n, hashed in enumerate(hashes))


class TestLimits:
    def test_four_of_sixteen_are_answered_in_order_two_at_a_time(self, held: ServedGate) -> None:
        labels = "abcdefghijklmnop"
        with posting(held) as post:
            answers = {label: post(label) for label in labels}
            shed = {label: answers.pop(label).result() for label in labels[4:]}
            assert [request.label for request in held.app.log] == ["a", "b"]
            for _ in answers:
                held.answer_next()
            replies = {label: answer.result() for label, answer in answers.items()}
        assert Counter(reply.status_code for reply in replies.values()) == {200: 4}
        assert [request.label for request in held.app.log] == ["a", "b", "c", "d"]
        assert max(request.running for request in held.app.log) == 2
        assert {reply.status_code for reply in shed.values()} == {429}
        assert {reply.headers["retry-after"] for reply in shed.values()} == {"7"}
        error = next(iter(shed.values())).json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "2 requests in progress and 2 waiting" in error["message"]
        wait_until(
            lambda: not held.gate.slots.running
        )  # the slot is freed after the answer has arrived
        assert (held.gate.shed, held.gate.slots.running, held.gate.slots.queued) == (12, 0, 0)

    def test_a_simultaneous_burst_is_counted_exactly(self, held: ServedGate) -> None:
        barrier = threading.Barrier(16)

        def post(client: httpx.Client) -> int:
            barrier.wait()
            return client.post("/v1/completions", json={}).status_code

        with ThreadPoolExecutor(16) as pool, held.http(AUTHORIZED) as client:
            statuses = [pool.submit(post, client) for _ in range(16)]
            wait_until(lambda: sum(status.done() for status in statuses) == 12)
            for _ in range(4):
                held.answer_next()
            assert Counter(status.result() for status in statuses) == {200: 4, 429: 12}
        assert len(held.app.log) == 4
        assert max(request.running for request in held.app.log) == 2

    def test_the_openai_client_raises_its_own_error(self, held: ServedGate) -> None:
        with posting(held) as post:
            for label in "abcd":
                post(label)
            with pytest.raises(openai.RateLimitError) as caught:
                held.openai().completions.create(model="m", prompt="a")
            assert caught.value.response.headers["retry-after"] == "7"
            assert caught.value.code == "rate_limit_exceeded"

    def test_reads_need_no_slot(self, held: ServedGate) -> None:
        with posting(held) as post:
            for label in "abcd":
                post(label)
            assert held.openai().models.list() is not None

    def test_errors_of_the_application_free_their_slots(self) -> None:
        async def failing(scope: Scope, receive: Receive, send: Send) -> None:
            raise ZeroDivisionError

        gate = Gate(failing, lambda: CONFIG)
        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}

        async def call() -> None:
            for _ in range(10):
                with pytest.raises(ZeroDivisionError):
                    await gate(dict(scope), receive_empty_object, ignore)

        asyncio.run(call())
        assert (gate.slots.running, gate.slots.queued, gate.shed) == (0, 0, 0)

    def test_a_flood_of_wrong_keys_does_not_harm_valid_requests(self, held: ServedGate) -> None:
        stop, statuses = threading.Event(), list[int]()

        def flood() -> None:
            with held.http({"authorization": f"Bearer {WRONG_KEY}"}) as client:
                while not stop.is_set():
                    statuses.append(
                        client.post("/v1/completions", json={"prompt": "a"}).status_code
                    )

        with ThreadPoolExecutor(8) as pool, posting(held) as post:
            floods = [pool.submit(flood) for _ in range(8)]
            try:
                for _ in range(5):
                    answers, before = [post(label) for label in "abcd"], len(statuses)
                    wait_until(lambda least=before + 10: len(statuses) >= least)
                    for _ in answers:
                        held.answer_next()
                    assert [answer.result().status_code for answer in answers] == [200] * 4
                    # A slot is freed a moment after its answer has arrived.
                    wait_until(lambda: held.gate.slots.running == 0)
            finally:
                stop.set()
            for ended in floods:
                ended.result()
        assert set(statuses) == {401}
        assert [request.label for request in held.app.log] == list("abcd") * 5


async def ignore(*_: Any) -> Any:
    return None


async def receive_empty_object() -> Any:
    return {"type": "http.request", "body": b"{}", "more_body": False}


class TestChangedLimits:
    def test_a_longer_queue_applies_at_once(self, held: ServedGate) -> None:
        with posting(held) as post:
            for label in "abcd":
                post(label)
            assert post("shed").result().status_code == 429
            held.config = replace_config(max_queued_requests=3)
            fifth = post("e")
            assert post("shed").result().status_code == 429
            held.answer_all()
            assert fifth.result().status_code == 200

    def test_a_raised_limit_applies_to_waiting_requests(self, held: ServedGate) -> None:
        held.config = replace_config(max_queued_requests=10)
        with posting(held) as post:
            for label in "abcdef":
                post(label)
            assert held.gate.slots.running == 2
            held.config = replace_config(max_ongoing_requests=4, max_queued_requests=10)
            post("g")
            assert held.gate.slots.running == 4
            wait_until(lambda: sum(bool(request.label) for request in held.app.log) == 4)
            assert [request.label for request in held.app.log] == list("abcd")

    def test_a_lowered_limit_applies_while_requests_wait(self, held: ServedGate) -> None:
        held.config = replace_config(max_ongoing_requests=4, max_queued_requests=10)
        with posting(held) as post:
            for label in "abcdefg":
                post(label)
            held.config = replace_config(max_ongoing_requests=1, max_queued_requests=10)
            last = post("h")
            for done in range(1, 8):
                held.answer_next()
                wait_until(lambda n=done: sum(bool(request.end) for request in held.app.log) == n)
            held.answer_next()
            assert last.result().status_code == 200
        assert [request.label for request in held.app.log] == list("abcdefgh")
        assert [request.running for request in held.app.log][4:] == [1] * 4


class TestDisconnects:
    def test_a_waiting_client_frees_its_place_in_the_queue(self, held: ServedGate) -> None:
        with posting(held) as post:
            answers = [post(label) for label in "abc"]
            with disconnecting(held, "gone"):
                assert post("shed").result().status_code == 429
            wait_until(lambda: held.gate.slots.queued == 1)
            answers.append(post("d"))
            for _ in answers:
                held.answer_next()
            assert [answer.result().status_code for answer in answers] == [200] * 4
        assert [request.label for request in held.app.log] == list("abcd")

    def test_a_running_client_frees_its_slot(self, held: ServedGate) -> None:
        with posting(held) as post:
            with disconnecting(held, "gone"):
                post("a")
                waiting = post("b")
                wait_until(lambda: len(held.app.turns) == 2)
                assert [request.label for request in held.app.log] == ["gone", "a"]
            wait_until(lambda: len(held.app.log) == 3)
            assert held.app.log[0].end == "cancelled"
            assert held.gate.slots.running == 2
            held.answer_all()
            assert waiting.result().status_code == 200
        wait_until(lambda: held.gate.slots.running == 0)
        assert [request.label for request in held.app.log] == ["gone", "a", "b"]

    def test_many_disconnects_leak_no_slot(self, held: ServedGate) -> None:
        held.config = replace_config(max_queued_requests=50)
        with contextlib.ExitStack() as stack:
            for number in range(12):
                stack.enter_context(disconnecting(held, str(number)))
        wait_until(lambda: held.gate.slots.running + held.gate.slots.queued == 0)
        held.answer_all()
        with posting(held) as post:
            assert post("after").result().status_code == 200


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


class TestBodies:
    def test_a_declared_size_beyond_the_limit_is_413_unread(self, served: ServedGate) -> None:
        with served.http(AUTHORIZED) as client:
            reply = client.post("/v1/completions", content=sized(1001))
            assert reply.status_code == 413
            assert reply.json()["error"]["code"] == "body_too_large"
            assert "1000 bytes" in reply.json()["error"]["message"]
            assert served.app.log == []
            assert client.post("/v1/completions", content=sized(1000)).status_code == 200
        assert [len(request.body) for request in served.app.log] == [1000]

    def test_the_openai_client_raises_its_own_error(self, served: ServedGate) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            served.openai().completions.create(model="m", prompt="word " * 300)
        assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")

    def test_an_undeclared_size_beyond_the_limit_is_413(self, served: ServedGate) -> None:
        with served.http(AUTHORIZED) as client:
            reply = client.post("/v1/completions", content=iter([b"x" * 400] * 5))
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
        assert served.app.log == []
        assert served.gate.slots.running == 0

    def test_a_small_body_in_chunks_arrives_whole(self, served: ServedGate) -> None:
        whole = sized(1000)
        with served.http(AUTHORIZED) as client:
            parts = [whole[start : start + 250] for start in range(0, 1000, 250)]
            reply = client.post("/v1/completions", content=iter(parts))
        assert reply.status_code == 200
        assert served.app.log[0].body == whole

    def test_without_a_key_the_size_is_not_checked(self, served: ServedGate) -> None:
        with served.http() as client:
            assert client.post("/v1/completions", content=sized(9999)).status_code == 401

    def test_a_changed_limit_applies_to_the_next_request(self, served: ServedGate) -> None:
        with served.http(AUTHORIZED) as client:
            served.config = replace_config(limits=Limits(max_body_mib=19 / 2**20))
            assert client.post("/v1/completions", content=sized(20)).status_code == 413
            served.config = replace_config(limits=Limits(max_body_mib=5000 / 2**20))
            assert client.post("/v1/completions", content=sized(5000)).status_code == 200


def sized(size: int) -> bytes:
    """A body of this many bytes."""
    whole = json.dumps({"prompt": "x" * (size - 13)}, separators=(",", ":")).encode()
    assert len(whole) == size
    return whole


@dataclass(frozen=True)
class Model:
    """A model of `ConcurrencyLimiter`: who runs and who waits, in order of arrival."""

    running: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    limit: int = 1

    def arrive(self, who: int, queue: int) -> Model:
        if len(self.running) < self.limit and not self.waiting:
            return replace(self, running=self.running + (who,))
        if len(self.waiting) < queue:
            return replace(self, waiting=self.waiting + (who,))
        return replace(self, refused=self.refused + (who,))

    def leave(self, who: int) -> Model:
        left = replace(
            self,
            running=tuple(r for r in self.running if r != who),
            waiting=tuple(w for w in self.waiting if w != who),
        )
        return left.fill()

    def limited(self, limit: int) -> Model:
        return replace(self, limit=limit).fill()

    def fill(self) -> Model:
        free = max(0, self.limit - len(self.running))
        return replace(
            self, running=self.running + self.waiting[:free], waiting=self.waiting[free:]
        )


STEPS = st.lists(
    st.tuples(st.sampled_from(["arrive", "finish", "cancel", "limit"]), st.integers(0, 9)),
    max_size=40,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, limit=st.integers(1, 4), queue=st.integers(0, 4))
def test_the_limiter_agrees_with_the_model_in_any_order(
    steps: list[tuple[str, int]], limit: int, queue: int
) -> None:
    asyncio.run(_run_steps(steps, limit, queue))


async def _run_steps(steps: list[tuple[str, int]], limit: int, queue: int) -> None:
    """Execute the steps one by one, and compare with the model after each."""
    slots, model = ConcurrencyLimiter(), Model(limit=limit)
    running: set[int] = set()
    refused: list[int] = []
    done: dict[int, asyncio.Event] = {}
    tasks: dict[int, asyncio.Task[None]] = {}

    async def request(who: int) -> None:
        try:
            async with slots.hold(limit, queue):
                running.add(who)
                try:
                    await done[who].wait()
                finally:
                    running.remove(who)
        except FullError:
            refused.append(who)

    def arrive(who: int) -> None:
        done[who] = asyncio.Event()
        tasks[who] = asyncio.create_task(request(who))

    for number, (step, pick) in enumerate(steps):
        present = model.running + model.waiting
        if step == "limit":
            # A changed limit reaches the limiter with the next request.
            limit = 1 + pick % 4
            model = model.limited(limit)
        if step in ("arrive", "limit"):
            arrive(number)
            model = model.arrive(number, queue)
        elif step == "finish" and model.running:
            who = model.running[pick % len(model.running)]
            done[who].set()
            model = model.leave(who)
        elif step == "cancel" and present:
            who = present[pick % len(present)]
            tasks[who].cancel()
            model = model.leave(who)
        await settle()
        assert running == set(model.running), "not first come, first served"
        assert refused == list(model.refused)
        assert (slots.running, slots.queued) == (len(running), len(model.waiting))
    await drain(slots, done, tasks)


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def drain(
    slots: ConcurrencyLimiter, done: dict[int, asyncio.Event], tasks: dict[int, asyncio.Task[None]]
) -> None:
    """End all requests, and check that no slot is lost."""
    for event in done.values():
        event.set()
    for _ in tasks:
        await settle()
    assert all(task.done() for task in tasks.values()), "a request waits for a lost slot"
    ends = await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends), ends
    assert (slots.running, slots.queued) == (0, 0)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    turns=st.lists(
        st.lists(st.tuples(st.sampled_from(["finish", "cancel"]), st.integers(0, 11)), max_size=6),
        max_size=6,
    ),
    limit=st.integers(1, 4),
)
def test_events_in_the_same_loop_iteration_lose_no_slot(
    turns: list[list[tuple[str, int]]], limit: int
) -> None:
    """Several ends and cancellations before the event loop runs once, while slots are handed on."""

    async def scenario() -> None:
        slots, done = ConcurrencyLimiter(), {who: asyncio.Event() for who in range(12)}
        peak = 0

        async def request(who: int) -> None:
            nonlocal peak
            async with slots.hold(limit, 12):
                peak = max(peak, slots.running)
                assert slots.running <= limit
                await done[who].wait()

        tasks = {who: asyncio.create_task(request(who)) for who in done}
        await settle()
        for steps in turns:
            for step, who in steps:
                if step == "finish":
                    done[who].set()
                else:
                    tasks[who].cancel()
            await asyncio.sleep(0)
        await drain(slots, done, tasks)
        assert peak == limit

    asyncio.run(scenario())
