"""The gate over real sockets: the truth is the log of the scripted application behind it."""

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
    ACCESS,
    GOOD,
    KEY,
    WRONG,
    ScriptedApp,
    Served,
    Server,
    wait_until,
)

from serving.errors import SpecError
from serving.gateway.asgi import Receive, Scope, Send
from serving.gateway.concurrency import ConcurrencyLimiter, FullError
from serving.gateway.gate import Gate, GateConfig
from serving.spec.limits import Limits
from serving.spec.tenants import Tenant, key_hash, new_key


@pytest.fixture
def served(server: Server) -> Iterator[Served]:
    with server.serving() as gate:
        yield gate


@pytest.fixture
def held(server: Server) -> Iterator[Served]:
    """An application that answers only when told to."""
    with server.serving(held=True) as gate:
        yield gate


@contextlib.contextmanager
def posting(served: Served) -> Iterator[Callable[[str], Future[httpx.Response]]]:
    """Post from threads, one request at a time into the gate, so that their order is known."""
    with served.http(GOOD) as client, ThreadPoolExecutor(32) as pool:

        def post(label: str) -> Future[httpx.Response]:
            slots = served.gate.slots
            before = slots.running + slots.queued
            answer = pool.submit(client.post, "/v1/completions", json={"prompt": label})
            wait_until(lambda: answer.done() or slots.running + slots.queued > before)
            return answer

        try:
            yield post
        finally:
            served.release()


class TestWhoMayCall:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": f"Bearer {WRONG}"},
            {"authorization": "Bearer"},
            {"authorization": ""},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
            {"authorization": f"Token {KEY}"},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": f"Bearer {KEY[:-1]}"},
            {"authorization": f"Bearer {KEY.upper()}"},
            {"authorization": f"Bearer {hashlib.sha256(KEY.encode()).hexdigest()}"},
            {"authorization": f"Bearer {WRONG} {KEY}"},
            {"x-api-key": KEY},
            {"cookie": f"authorization=Bearer {KEY}"},
        ],
    )
    def test_anyone_else_gets_401_in_openais_shape(
        self, served: Served, headers: dict[str, str]
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
            assert WRONG not in reply.text
        assert served.app.log == []

    @pytest.mark.parametrize("name", ["api_key", "api-key", "key", "token", "access_token"])
    def test_a_key_in_the_address_is_no_key(self, served: Served, name: str) -> None:
        with served.http() as client:
            assert client.get("/v1/models", params={name: KEY}).status_code == 401
            assert client.get("/health", params={name: KEY}).status_code == 200
        assert [seen.path for seen in served.app.log] == ["/health"]

    def test_the_openai_client_raises_its_own_error(self, served: Served) -> None:
        ask: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
        with pytest.raises(openai.AuthenticationError) as caught:
            served.openai(WRONG).chat.completions.create(**ask)
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            served.openai(WRONG).models.list()
        assert served.app.log == []
        answer = served.openai().chat.completions.create(**ask)
        assert answer.choices[0].message.content == "yes"
        assert json.loads(served.app.log[0].body)["messages"] == ask["messages"]

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_the_scheme_is_read_in_any_case(self, served: Served, scheme: str) -> None:
        with served.http({"authorization": f"{scheme} {KEY}"}) as client:
            assert client.get("/v1/models").status_code == 200

    @pytest.mark.parametrize("key", [b"\xff\xfe", b"caf\xc3\xa9" * 4, b"\xed\xa0\x80"])
    def test_a_key_that_is_no_text_is_refused(self, served: Served, key: bytes) -> None:
        with socket.create_connection(("127.0.0.1", served.port)) as raw:
            raw.sendall(b"GET /x HTTP/1.1\r\nhost: a\r\nauthorization: Bearer " + key + b"\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 401")

    def test_each_of_several_keys_opens_and_a_new_set_replaces_them(self, served: Served) -> None:
        keys = [new_key() for _ in range(3)]
        served.access = replace_access(tenants=holders(key_hash(key) for key in keys))
        for key in keys:
            assert served.openai(key).models.list() is not None
        with pytest.raises(openai.AuthenticationError):
            served.openai().models.list()
        served.access = ACCESS
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
    def test_every_route_but_health_is_closed_to_every_method(
        self, served: Served, path: str
    ) -> None:
        # A raw line, because clients tidy up paths before they send them.
        for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"):
            with socket.create_connection(("127.0.0.1", served.port)) as raw:
                line = f"{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
                raw.sendall(line.encode())
                assert raw.recv(100).startswith(b"HTTP/1.1 401"), method
        assert served.app.log == []

    def test_health_needs_no_key_even_when_every_slot_is_taken(self, held: Served) -> None:
        with posting(held) as post, held.http() as stranger:
            for label in "abcd":
                post(label)
            assert stranger.get("/health").status_code == 200
            assert post("e").result().status_code == 429

    def test_under_a_prefix_only_the_prefixs_own_health_is_open(self, server: Server) -> None:
        with server.serving(root_path="/llm") as served, served.http() as client:
            assert client.get("/llm/health").status_code == 200
            closed = ["/llm/v1/models", "/llm", "/llm/llm/health", "/llmx/health", "/llm//health"]
            # As long as the prefix, but another path.
            closed += ["/abc/health", "/v1x/health"]
            for path in closed:
                assert client.get(path).status_code == 401, path
            assert client.get("/llm/v1/models", headers=GOOD).status_code == 200
            assert [seen.path for seen in served.app.log] == ["/llm/health", "/llm/v1/models"]

    def test_a_websocket_is_closed_at_once(self) -> None:
        app = ScriptedApp()
        gate = Gate(app, lambda: ACCESS)

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
        # Nor does one help: no route behind the gate is a websocket.
        asyncio.run(connect([(b"authorization", f"Bearer {KEY}".encode())]))
        assert app.log == []


class TestKeys:
    def test_a_key_leaves_only_as_its_sha256(self) -> None:
        assert key_hash(KEY) == hashlib.sha256(KEY.encode()).hexdigest()

    def test_new_keys_differ_are_long_and_are_accepted(self) -> None:
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

    def test_every_stored_hash_is_compared_in_constant_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hashes = tuple(key_hash(key) for key in (new_key(), new_key(), KEY))
        compared: list[tuple[str, str]] = []
        real = hmac.compare_digest

        def spy(left: Any, right: Any) -> bool:
            compared.append((left, right))
            return real(left, right)

        monkeypatch.setattr(hmac, "compare_digest", spy)
        for order in (hashes, hashes[::-1]):
            for presented, known in ((KEY, True), (WRONG, False), ("", False)):
                compared.clear()
                access = replace_access(tenants=holders(order))
                assert (access.holder(presented) is not None) is known
                digest = hashlib.sha256(presented.encode()).hexdigest()
                assert sorted(compared) == sorted((digest, stored) for stored in hashes)

    def test_a_gate_without_a_key_cannot_be_made(self) -> None:
        with pytest.raises(SpecError, match=r"GateConfig\.tenants"):
            replace_access(tenants=())
        with pytest.raises(SpecError, match="tenant 'a' has no key_hash"):
            replace_access(tenants=[{"name": "a"}])

    def test_what_a_gate_enforces_shows_no_key(self) -> None:
        assert KEY not in repr(ACCESS) + ACCESS.model_dump_json()


def replace_access(**fields: Any) -> GateConfig:
    return GateConfig(**{**ACCESS.model_dump(), **fields})


def holders(hashes: Iterable[str]) -> tuple[Tenant, ...]:
    return tuple(Tenant(name=f"tenant-{n}", key_hash=one) for n, one in enumerate(hashes))


class TestLimits:
    def test_sixteen_at_once_four_are_answered_two_at_a_time_in_order(self, held: Served) -> None:
        labels = "abcdefghijklmnop"
        with posting(held) as post:
            answers = {label: post(label) for label in labels}
            shed = {label: answers.pop(label).result() for label in labels[4:]}
            assert [seen.label for seen in held.app.log] == ["a", "b"]
            for _ in answers:
                held.go_on()
            replies = {label: answer.result() for label, answer in answers.items()}
        assert Counter(reply.status_code for reply in replies.values()) == {200: 4}
        assert [seen.label for seen in held.app.log] == ["a", "b", "c", "d"]
        assert max(seen.running for seen in held.app.log) == 2
        assert {reply.status_code for reply in shed.values()} == {429}
        assert {reply.headers["retry-after"] for reply in shed.values()} == {"7"}
        error = next(iter(shed.values())).json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "2 requests in progress and 2 waiting" in error["message"]
        wait_until(lambda: not held.gate.slots.running)  # the last answer is out before its slot
        assert (held.gate.shed, held.gate.slots.running, held.gate.slots.queued) == (12, 0, 0)

    def test_a_burst_from_one_barrier_is_counted_just_as_exactly(self, held: Served) -> None:
        barrier = threading.Barrier(16)

        def post(client: httpx.Client) -> int:
            barrier.wait()
            return client.post("/v1/completions", json={}).status_code

        with ThreadPoolExecutor(16) as pool, held.http(GOOD) as client:
            statuses = [pool.submit(post, client) for _ in range(16)]
            wait_until(lambda: sum(status.done() for status in statuses) == 12)
            for _ in range(4):
                held.go_on()
            assert Counter(status.result() for status in statuses) == {200: 4, 429: 12}
        assert len(held.app.log) == 4
        assert max(seen.running for seen in held.app.log) == 2

    def test_the_openai_client_raises_its_own_error(self, held: Served) -> None:
        with posting(held) as post:
            for label in "abcd":
                post(label)
            with pytest.raises(openai.RateLimitError) as caught:
                held.openai().completions.create(model="m", prompt="a")
            assert caught.value.response.headers["retry-after"] == "7"
            assert caught.value.code == "rate_limit_exceeded"

    def test_what_generates_nothing_takes_no_slot(self, held: Served) -> None:
        with posting(held) as post:
            for label in "abcd":
                post(label)
            assert held.openai().models.list() is not None

    def test_slots_are_free_again_after_errors_of_the_application(self) -> None:
        async def failing(scope: Scope, receive: Receive, send: Send) -> None:
            raise ZeroDivisionError

        gate = Gate(failing, lambda: ACCESS)
        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}

        async def call() -> None:
            for _ in range(10):
                with pytest.raises(ZeroDivisionError):
                    await gate(dict(scope), an_empty_object, nothing)

        asyncio.run(call())
        assert (gate.slots.running, gate.slots.queued, gate.shed) == (0, 0, 0)

    def test_a_flood_of_wrong_keys_costs_no_valid_request(self, held: Served) -> None:
        stop, statuses = threading.Event(), list[int]()

        def flood() -> None:
            with held.http({"authorization": f"Bearer {WRONG}"}) as client:
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
                        held.go_on()
                    assert [answer.result().status_code for answer in answers] == [200] * 4
                    # A slot is free a moment after its answer has arrived.
                    wait_until(lambda: held.gate.slots.running == 0)
            finally:
                stop.set()
            for ended in floods:
                ended.result()
        assert set(statuses) == {401}
        assert [seen.label for seen in held.app.log] == list("abcd") * 5


async def nothing(*_: Any) -> Any:
    return None


async def an_empty_object() -> Any:
    return {"type": "http.request", "body": b"{}", "more_body": False}


class TestLimitsThatChange:
    def test_more_may_wait_at_once(self, held: Served) -> None:
        with posting(held) as post:
            for label in "abcd":
                post(label)
            assert post("shed").result().status_code == 429
            held.access = replace_access(max_queued_requests=3)
            fifth = post("e")
            assert post("shed").result().status_code == 429
            held.release()
            assert fifth.result().status_code == 200

    def test_a_raised_limit_holds_for_those_who_already_wait(self, held: Served) -> None:
        held.access = replace_access(max_queued_requests=10)
        with posting(held) as post:
            for label in "abcdef":
                post(label)
            assert held.gate.slots.running == 2
            held.access = replace_access(max_ongoing_requests=4, max_queued_requests=10)
            post("g")
            assert held.gate.slots.running == 4
            wait_until(lambda: sum(bool(seen.label) for seen in held.app.log) == 4)
            assert [seen.label for seen in held.app.log] == list("abcd")

    def test_a_lowered_limit_holds_while_a_queue_stands(self, held: Served) -> None:
        held.access = replace_access(max_ongoing_requests=4, max_queued_requests=10)
        with posting(held) as post:
            for label in "abcdefg":
                post(label)
            held.access = replace_access(max_ongoing_requests=1, max_queued_requests=10)
            last = post("h")
            for done in range(1, 8):
                held.go_on()
                wait_until(lambda n=done: sum(bool(seen.end) for seen in held.app.log) == n)
            held.go_on()
            assert last.result().status_code == 200
        assert [seen.label for seen in held.app.log] == list("abcdefgh")
        assert [seen.running for seen in held.app.log][4:] == [1] * 4


class TestClientsThatLeave:
    def test_one_that_waits_frees_its_place(self, held: Served) -> None:
        with posting(held) as post:
            answers = [post(label) for label in "abc"]
            with leaving(held, "gone"):
                assert post("shed").result().status_code == 429
            wait_until(lambda: held.gate.slots.queued == 1)
            answers.append(post("d"))
            for _ in answers:
                held.go_on()
            assert [answer.result().status_code for answer in answers] == [200] * 4
        assert [seen.label for seen in held.app.log] == list("abcd")

    def test_one_that_is_served_frees_its_slot(self, held: Served) -> None:
        with posting(held) as post:
            with leaving(held, "gone"):
                post("a")
                waiting = post("b")
                wait_until(lambda: len(held.app.turns) == 2)
                assert [seen.label for seen in held.app.log] == ["gone", "a"]
            wait_until(lambda: len(held.app.log) == 3)
            assert held.app.log[0].end == "cancelled"
            assert held.gate.slots.running == 2
            held.release()
            assert waiting.result().status_code == 200
        wait_until(lambda: held.gate.slots.running == 0)
        assert [seen.label for seen in held.app.log] == ["gone", "a", "b"]

    def test_many_that_leave_cost_no_slot(self, held: Served) -> None:
        held.access = replace_access(max_queued_requests=50)
        with contextlib.ExitStack() as stack:
            for number in range(12):
                stack.enter_context(leaving(held, str(number)))
        wait_until(lambda: held.gate.slots.running + held.gate.slots.queued == 0)
        held.release()
        with posting(held) as post:
            assert post("after").result().status_code == 200


@contextlib.contextmanager
def leaving(served: Served, label: str) -> Iterator[None]:
    """A client that sends a whole request, reads nothing, and hangs up at the end."""
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
    def test_one_that_says_it_is_too_large_is_413_unread(self, served: Served) -> None:
        with served.http(GOOD) as client:
            reply = client.post("/v1/completions", content=sized(1001))
            assert reply.status_code == 413
            assert reply.json()["error"]["code"] == "body_too_large"
            assert "1000 bytes" in reply.json()["error"]["message"]
            assert served.app.log == []
            assert client.post("/v1/completions", content=sized(1000)).status_code == 200
        assert [len(seen.body) for seen in served.app.log] == [1000]

    def test_the_openai_client_raises_its_own_error(self, served: Served) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            served.openai().completions.create(model="m", prompt="word " * 300)
        assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")

    def test_one_that_does_not_say_never_arrives(self, served: Served) -> None:
        with served.http(GOOD) as client:
            reply = client.post("/v1/completions", content=iter([b"x" * 400] * 5))
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
        assert served.app.log == []
        assert served.gate.slots.running == 0

    def test_one_that_does_not_say_and_is_small_arrives_whole(self, served: Served) -> None:
        whole = sized(1000)
        with served.http(GOOD) as client:
            parts = [whole[start : start + 250] for start in range(0, 1000, 250)]
            reply = client.post("/v1/completions", content=iter(parts))
        assert reply.status_code == 200
        assert served.app.log[0].body == whole

    def test_without_a_key_size_does_not_matter(self, served: Served) -> None:
        with served.http() as client:
            assert client.post("/v1/completions", content=sized(9999)).status_code == 401

    def test_a_changed_limit_holds_for_the_next_request(self, served: Served) -> None:
        with served.http(GOOD) as client:
            served.access = replace_access(limits=Limits(max_body_mib=19 / 2**20))
            assert client.post("/v1/completions", content=sized(20)).status_code == 413
            served.access = replace_access(limits=Limits(max_body_mib=5000 / 2**20))
            assert client.post("/v1/completions", content=sized(5000)).status_code == 200


def sized(size: int) -> bytes:
    """A body of this many bytes."""
    whole = json.dumps({"prompt": "x" * (size - 13)}, separators=(",", ":")).encode()
    assert len(whole) == size
    return whole


@dataclass(frozen=True)
class Model:
    """What `Slots` promises, as plain lists: who runs and who waits, in order of arrival."""

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
def test_whatever_order_things_happen_in_slots_keep_their_promise(
    steps: list[tuple[str, int]], limit: int, queue: int
) -> None:
    asyncio.run(_play(steps, limit, queue))


async def _play(steps: list[tuple[str, int]], limit: int, queue: int) -> None:
    """Play the steps one by one, and compare with the model after each."""
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
            # A changed limit is told to the slots by the next request that arrives.
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
    """Everyone ends, and no slot is lost: as many as ever can be held again."""
    for event in done.values():
        event.set()
    for _ in tasks:
        await settle()
    assert all(task.done() for task in tasks.values()), "someone waits for a slot that is lost"
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
def test_what_happens_in_one_turn_of_the_loop_loses_no_slot(
    turns: list[list[tuple[str, int]]], limit: int
) -> None:
    """Several ends and cancellations before the loop turns once: hand-overs cross with them."""

    async def play() -> None:
        slots, done = ConcurrencyLimiter(), {who: asyncio.Event() for who in range(12)}
        most = 0

        async def request(who: int) -> None:
            nonlocal most
            async with slots.hold(limit, 12):
                most = max(most, slots.running)
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
        assert most == limit

    asyncio.run(play())
