"""Limits of the gate over real sockets. Ground truth: the log of the application behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from support.gate_clients import disconnecting, posting, replace_config
from support.gate_server import AUTHORIZED, CONFIG, KEY, WRONG_KEY, ServedGate, wait_until

from serving.gateway.asgi import Receive, Scope, Send
from serving.gateway.gate import Gate
from serving.spec.limits import Limits


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
                    wait_until(lambda least=before + 10: len(statuses) >= least)  # type: ignore[misc]
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
                wait_until(lambda n=done: sum(bool(r.end) for r in held.app.log) == n)  # type: ignore[misc]
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
            served.config = replace_config(limits=Limits(max_body_mib=29 / 2**20))
            assert client.post("/v1/completions", content=sized(30)).status_code == 413
            served.config = replace_config(limits=Limits(max_body_mib=5000 / 2**20))
            assert client.post("/v1/completions", content=sized(5000)).status_code == 200


def sized(size: int) -> bytes:
    """A body of this many bytes."""
    fields = {"model": "m", "prompt": "x" * (size - 25)}
    whole = json.dumps(fields, separators=(",", ":")).encode()
    assert len(whole) == size
    return whole
