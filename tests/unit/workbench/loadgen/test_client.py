"""Requests against the scripted server's own log, on the same clock (`time.perf_counter`)."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest
from support import scripted_server as scripted
from support.loop_clock import LoopClock
from support.scripted_server import DONE, Script, Step, chat_chunk, event, serving, tokens, usage

from workbench.errors import SettingError
from workbench.loadgen.client import stream_chat, stream_completion
from workbench.loadgen.closed_loop import closed_loop
from workbench.loadgen.outcome import redact_error
from workbench.metrics.health import LoopWatch
from workbench.records import RequestRecord

KEY = "sk-secret-of-the-tests"
PROMPT = "a prompt that must never be written down anywhere"


def connect(base_url: str, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=base_url, api_key=KEY, **options)


def run(
    script: scripted.Choose | Script,
    call: Callable[[openai.AsyncOpenAI], Awaitable[Any]] | None = None,
    **timing: Any,
) -> tuple[Any, list[scripted.Exchange]]:
    """Answer one chat (or `call`) with `script`; return the result and the server's log."""

    async def go() -> tuple[Any, list[scripted.Exchange]]:
        async with serving(script) as server, connect(server.base_url) as client:
            if call is not None:
                return await call(client), server.log
            record = await stream_chat(
                client,
                model="scripted",
                messages=PROMPT,
                max_tokens=8,
                clock=time.perf_counter,
                **timing,
            )
            return record, server.log

    return asyncio.run(go())


def ms(late: float) -> float:
    return late * 1e3


@pytest.mark.timing
class TestTimes:
    def test_token_times_match_the_server(self) -> None:
        record, log = run(tokens(20, ttft_s=0.05, gap_s=0.01))
        assert record.status == "ok"
        assert len(record.token_times_s) == len(log[0].token_sends_s) == 20
        late = [
            ms(observed - sent)
            for observed, sent in zip(record.token_times_s, log[0].token_sends_s, strict=True)
        ]
        assert min(late) >= 0
        assert statistics.median(late) < 5
        assert record.first_token_s == record.token_times_s[0]

    def test_request_ends_with_the_usage_event(self) -> None:
        steps = tokens(3, gap_s=0.01).steps
        record, log = run(Script((*steps[:-1], Step(DONE, 0.3))))
        assert record.sent_s <= log[0].received_s
        usage_sent, done_sent = log[0].sends_s[-2:]
        assert usage_sent <= record.end_s < done_sent
        assert record.end_s >= record.token_times_s[-1]

    def test_hundred_requests_match_at_the_median(self) -> None:
        async def load(client: openai.AsyncOpenAI) -> list[RequestRecord]:
            return await closed_loop(
                client,
                model="scripted",
                prompts=["hi"] * 100,
                max_tokens=8,
                concurrency=8,
                clock=time.perf_counter,
            )

        records, log = run(tokens(8, ttft_s=0.02, gap_s=0.005), load)
        truth = {exchange.request_id: exchange for exchange in log}
        first, between = [], []
        for record in records:
            sends = truth[record.request_id].token_sends_s
            first.append(ms(record.first_token_s - sends[0]))
            for i in range(1, 8):
                observed = record.token_times_s[i] - record.token_times_s[i - 1]
                between.append(abs(ms(observed - (sends[i] - sends[i - 1]))))
        assert statistics.median(first) < 5
        assert statistics.median(between) < 5

    def test_time_of_an_event_is_that_of_its_last_read(
        self,
    ) -> None:
        two = chat_chunk({"content": "a"}) + chat_chunk({"content": "b"})
        third = chat_chunk({"content": "c"})
        steps = (
            Step(two),
            Step(third[:30], 0.03),
            Step(third[30:], 0.03),
            Step(usage(5, 3) + DONE, 0.03),
        )
        record, log = run(Script(steps))
        first, second, last = record.token_times_s
        assert first == second
        assert last >= log[0].sends_s[2]
        assert record.end_s >= log[0].sends_s[3]

    def test_role_chunk_is_not_a_token_but_empty_text_is(self) -> None:
        steps = (
            Step(chat_chunk({"role": "assistant", "content": ""})),
            Step(chat_chunk({"content": ""}), 0.03),
            Step(chat_chunk({"role": "assistant", "content": "x"}), 0.01),
            Step(chat_chunk({"reasoning_content": "y"}), 0.01),
            Step(chat_chunk({}, finish="stop")),
            Step(usage(5, 3) + DONE),
        )
        record, log = run(Script(steps))
        assert len(record.token_times_s) == 3
        assert record.first_token_s >= log[0].sends_s[1]

    def test_completions_are_recorded_alike(self) -> None:
        async def complete(client: openai.AsyncOpenAI) -> RequestRecord:
            return await stream_completion(
                client, model="scripted", prompt=[1, 2, 3], max_tokens=4, clock=time.perf_counter
            )

        record, log = run(tokens(4, gap_s=0.005, chat=False), complete)
        assert (record.status, len(record.token_times_s), record.output_tokens) == ("ok", 4, 4)
        assert log[0].path == "/v1/completions"
        assert log[0].body["prompt"] == [1, 2, 3]


class TestRequestAndCounts:
    @pytest.mark.parametrize(
        ("details", "cached"),
        [({"cached_tokens": 32}, 32), ({"cached_tokens": 0}, 0), ({}, None), (None, None)],
    )
    def test_cached_tokens_are_those_of_the_usage(
        self, details: dict[str, int] | None, cached: int | None
    ) -> None:
        counts = {"prompt_tokens": 40, "completion_tokens": 1, "prompt_tokens_details": details}
        last = event({"id": "x", "object": "x", "choices": [], "usage": counts})
        record, _ = run(Script((Step(chat_chunk({"content": "a"})), Step(last + DONE))))
        assert (record.status, record.prompt_tokens, record.cached_tokens) == ("ok", 40, cached)

    def test_record_has_the_servers_counts_and_the_given_names(self) -> None:
        record, log = run(
            tokens(3, prompt_tokens=41),
            request_id="r-1",
            tenant="blue",
            scheduled_s=1.5,
            extra_body={"seed": 3},
            ignore_eos=True,
        )
        assert (record.prompt_tokens, record.output_tokens) == (41, 3)
        assert (record.request_id, record.tenant, record.model) == ("r-1", "blue", "scripted")
        assert record.scheduled_s == 1.5
        assert log[0].request_id == "r-1"
        sent = log[0].body
        assert sent["stream"] is True
        assert sent["stream_options"] == {"include_usage": True}
        assert (sent["ignore_eos"], sent["seed"], sent["max_tokens"]) == (True, 3, 8)
        assert sent["messages"] == [{"role": "user", "content": PROMPT}]

    def test_absent_values_are_none(self) -> None:
        record, _ = run(Script((Step(DONE),)))
        assert record.status == "ok"
        assert (record.first_token_s, record.prompt_tokens, record.output_tokens) == (None,) * 3
        assert (record.scheduled_s, record.tenant, record.error) == (None,) * 3
        assert record.token_times_s == ()

    def test_comments_and_crlf_line_ends(self) -> None:
        keep_alive = Step(b": keep-alive\n\n")
        chunk = chat_chunk({"content": "data: x"}).replace(b"\n\n", b"\r\n\r\n")
        record, _ = run(Script((keep_alive, Step(chunk), Step(usage(1, 1) + DONE))))
        assert (record.status, len(record.token_times_s), record.output_tokens) == ("ok", 1, 1)

    def test_on_event_is_called_at_each_event(self) -> None:
        observed: list[tuple[str, float]] = []
        record, _ = run(
            tokens(3, gap_s=0.02), on_event=lambda kind, at: observed.append((kind, at))
        )
        assert observed[0] == ("sent", record.sent_s)
        assert [kind for kind, _ in observed[1:]] == ["read"] * (len(observed) - 1)
        assert {at for _, at in observed[1:]} >= set(record.token_times_s)

    def test_compressed_answer(self) -> None:
        """The OpenAI client accepts gzip, so a proxy may compress."""
        whole = gzip.compress(chat_chunk({"content": "x"}) + usage(1, 1) + DONE)
        script = Script((Step(whole),), headers=(("content-encoding", "gzip"),))
        record, _ = run(script)
        assert (record.status, record.output_tokens) == ("ok", 1)


def overloaded(message: str = "busy") -> Script:
    return scripted.error(503, message)


class TestFailures:
    @pytest.mark.parametrize(
        ("script", "status", "message"),
        [
            (scripted.error(429, "slow down"), "shed", "HTTP 429: slow down"),
            (Script(status=429, body=b"plain words"), "shed", "429"),
            (overloaded(), "shed", "HTTP 503: busy"),
            (scripted.error(500, "broke"), "error", "HTTP 500: broke"),
            (scripted.error(404, "no model m"), "error", "HTTP 404: no model m"),
            (scripted.error(401, "no key"), "error", "AuthenticationError: HTTP 401"),
            (tokens(3, die=True), "ok", None),
            (Script((Step(chat_chunk({"content": "x"})),), die=True), "error", "Error"),
            (Script((Step(chat_chunk({"content": "x"})),)), "error", "without [DONE]"),
            (Script((Step(b"data: {not json}\n\n" + DONE),)), "error", "not a completion chunk"),
            (Script((Step(b"data: [1]\n\n" + DONE),)), "error", "not a completion chunk"),
            (Script(body=b"{}"), "error", "without [DONE]"),
        ],
    )
    def test_status_of_each_failure(self, script: Script, status: str, message: str | None) -> None:
        record, log = run(script)
        assert record.status == status, record
        assert (message in record.error) if message else record.error is None
        assert len(log) == 1, "a measured call is never retried"
        assert record.end_s >= record.sent_s

    @pytest.mark.parametrize(
        ("events", "note"),
        [
            ([chat_chunk({"content": "x"}), usage(1, 1)], "the stream ended without [DONE]"),
            ([chat_chunk({"content": "x"}, finish="stop")], "the stream ended without [DONE]"),
            (
                [b"data: \n\n", chat_chunk({"content": "x"}), b"data:\n\n", DONE],
                "the stream had empty events",
            ),
            (
                [b"data: {}\n\n", chat_chunk({"content": "x"}), usage(1, 1)],
                "the stream ended without [DONE]; the stream had empty events",
            ),
            ([chat_chunk({"content": "x"}), DONE], None),
        ],
    )
    def test_irregular_streams_are_complete_with_a_note(
        self, events: list[bytes], note: str | None
    ) -> None:
        record, _ = run(Script(tuple(Step(data) for data in events)))
        assert (record.status, record.error, record.note) == ("ok", None, note)
        assert len(record.token_times_s) == 1

    def test_stream_that_breaks_after_its_last_token_is_not_complete(self) -> None:
        steps = (Step(chat_chunk({"content": "x"}, finish="stop")),)
        record, _ = run(Script(steps, die=True))
        assert (record.status, record.note) == ("error", None)

    @pytest.mark.parametrize("die", [False, True])
    def test_error_event_in_the_stream(self, die: bool) -> None:
        problem = event({"error": {"message": "engine died", "type": "EngineDead", "code": 500}})
        steps = (Step(chat_chunk({"content": "x"})), Step(problem))
        record, _ = run(Script(steps if die else (*steps, Step(DONE)), die=die))
        assert (record.status, record.error) == ("error", "stream: EngineDead: engine died")
        assert len(record.token_times_s) == 1, "the tokens before it are kept"

    def test_connection_lost_within_an_event(self) -> None:
        cut = chat_chunk({"content": "y"})[:40]
        record, _ = run(Script((Step(chat_chunk({"content": "x"})), Step(cut, 0.02)), die=True))
        assert record.status == "error"
        assert "not a completion" not in record.error
        assert len(record.token_times_s) == 1

    def test_refused_connection(self) -> None:
        async def call() -> RequestRecord:
            async with connect("http://127.0.0.1:9/v1") as client:
                return await stream_chat(
                    client, model="m", messages="x", max_tokens=1, clock=time.perf_counter
                )

        record = asyncio.run(call())
        assert record.status == "error"
        assert record.error.startswith("connection failed")

    def test_timeout_before_the_first_token(self) -> None:
        record, _ = run(tokens(1, ttft_s=30), timeout_s=0.1)
        assert (record.status, record.first_token_s) == ("timeout", None)
        assert record.end_s - record.sent_s >= 0.1

    def test_timeout_after_the_first_token(self) -> None:
        async def call(client: openai.AsyncOpenAI) -> list[RequestRecord]:
            clock, events = LoopClock(), list[str]()
            settings: dict[str, Any] = {
                "model": "m",
                "messages": "x",
                "max_tokens": 1,
                "clock": time.perf_counter,
                "on_event": lambda kind, at: events.append(kind),
            }
            both = asyncio.gather(
                stream_chat(client, **settings, timeout_s=60),
                stream_chat(client.with_options(timeout=60), **settings),
            )
            while not both.done():
                await asyncio.sleep(0.01)
                if events.count("read") == 2:  # Both tokens are there, however long they took.
                    clock.ahead_s += 10
            return list(await both)

        records, _ = run(Script((Step(chat_chunk({"content": "x"})),), hang_s=3600), call)
        assert [record.status for record in records] == ["timeout"] * 2
        assert [len(record.token_times_s) for record in records] == [1, 1]

    def test_timeout_replaces_the_clients_connection_limit(self) -> None:
        """A listener that accepts no connection: Linux queues the first and lets others retry."""

        async def call(base_url: str) -> RequestRecord:
            short = httpx.Timeout(30, connect=0.2)
            async with connect(base_url, timeout=short) as client:
                settings: dict[str, Any] = {
                    "model": "m",
                    "messages": "x",
                    "max_tokens": 1,
                    "timeout_s": 1.0,
                }
                return await stream_chat(client, **settings, clock=time.perf_counter)

        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            address = full.getsockname()
            with socket.create_connection(address):
                record = asyncio.run(call(f"http://127.0.0.1:{address[1]}/v1"))
        assert record.status == "timeout"
        assert record.end_s - record.sent_s >= 1.0

    def test_cancellation_is_recorded_and_raised(self) -> None:
        kept: list[RequestRecord] = []

        async def cancel(client: openai.AsyncOpenAI) -> bool:
            reads: list[float] = []
            task = asyncio.create_task(
                stream_chat(
                    client,
                    model="m",
                    messages="x",
                    max_tokens=1,
                    clock=time.perf_counter,
                    on_record=kept.append,
                    on_event=lambda kind, at: reads.append(at),
                )
            )
            while len(reads) < 5:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            return task.cancelled()

        was_cancelled, _ = run(tokens(100, gap_s=0.05), cancel)
        assert was_cancelled
        assert [record.status for record in kept] == ["cancelled"]
        assert kept[0].token_times_s

    def test_mistake_in_the_call_is_raised(self) -> None:
        with pytest.raises(TypeError):
            run(tokens(1), extra_body={"logit": object()})


class TestPrivacy:
    @pytest.mark.parametrize(
        "message",
        [
            f"bad input: {PROMPT}",
            json.dumps({"input": {"messages": [{"role": "user", "content": PROMPT}]}}),
            f"cut off {PROMPT[5:30]}",
        ],
    )
    def test_error_that_quotes_the_prompt_is_withheld(self, message: str) -> None:
        record, _ = run(scripted.error(400, message))
        assert "withheld" in record.error
        assert not any(word in record.error for word in ("never", "anywhere"))

    def test_key_is_replaced_and_long_messages_are_cut(self) -> None:
        record, _ = run(scripted.error(401, f"wrong key {KEY}"))
        assert KEY not in record.error
        assert "[key]" in record.error
        record, _ = run(scripted.error(500, "z" * 5000))
        assert len(record.error) <= 200

    @pytest.mark.parametrize(
        ("key", "message", "expected"),
        [
            ("none", "none of the nonessential nodes", "none of the nonessential nodes"),
            ("", "no key", "no key"),
            ("test", "the latest test failed", "the latest [key] failed"),
            ("sk-a-long-key", "got key_sk-a-long-key2", "got key_[key]2"),
        ],
    )
    def test_only_the_key_itself_is_replaced(self, key: str, message: str, expected: str) -> None:
        assert redact_error(message, "a prompt", [key]) == expected


class TestClosedLoop:
    def load(self, count: int, concurrency: int, **more: Any) -> Any:
        settings: dict[str, Any] = {
            "model": "m",
            "max_tokens": 2,
            "clock": time.perf_counter,
        } | more

        async def call(client: openai.AsyncOpenAI) -> list[RequestRecord]:
            prompts = ["hi"] * count
            return await closed_loop(client, prompts=prompts, concurrency=concurrency, **settings)

        return call

    def most_open_of(self, count: int, concurrency: int, expected: int) -> int:
        """Return the most requests in progress, where no answer ever comes."""

        async def go() -> int:
            async with serving(tokens(2, ttft_s=60)) as server, connect(server.base_url) as client:
                loop = asyncio.create_task(self.load(count, concurrency)(client))
                while server.open_now < expected:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                loop.cancel()
                await asyncio.wait([loop])
                return server.most_open

        return asyncio.run(go())

    @pytest.mark.timeout(60)
    def test_concurrency_is_limited(self) -> None:
        assert self.most_open_of(4, 3, expected=3) == 3
        assert self.most_open_of(32, 40, expected=32) == 32

    def test_users_send_again_when_free(self) -> None:
        records, log = run(tokens(2, ttft_s=0.02), self.load(12, 4))
        assert len(records) == len(log) == 12
        assert {record.status for record in records} == {"ok"}
        assert all(record.scheduled_s <= record.sent_s for record in records)
        ends = sorted(record.end_s for record in records)
        starts = sorted(record.scheduled_s for record in records)
        assert len(set(starts[:4])) == 1, "the first users start at once"
        assert all(start >= end for start, end in zip(starts[4:], ends, strict=False))

    def test_max_tokens_per_prompt_and_invalid_concurrency(self) -> None:
        _, log = run(tokens(2), self.load(2, 1, max_tokens=[3, 4]))
        assert [exchange.body["max_tokens"] for exchange in log] == [3, 4]
        with pytest.raises(SettingError, match="concurrency must be at least 1, got 0"):
            run(tokens(2), self.load(2, 0))

    def test_failures_do_not_stop_the_loop(self) -> None:
        bad = scripted.error(500, "broke")
        records, _ = run(lambda body, n: bad if n % 2 else tokens(2), self.load(10, 2))
        assert sorted(record.status for record in records) == ["error"] * 5 + ["ok"] * 5

    def test_cancellation_keeps_all_records(self) -> None:
        kept: list[RequestRecord] = []

        async def cut() -> list[scripted.Exchange]:
            script = tokens(2, ttft_s=0.05)
            async with serving(script) as server, connect(server.base_url) as client:
                task = asyncio.create_task(self.load(50, 4, on_record=kept.append)(client))
                # With four requests at the server, none is on its way to it.
                while len(kept) < 5 or server.open_now < 4:
                    await asyncio.sleep(0.005)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                return server.log

        log = asyncio.run(cut())
        assert len(kept) == len(log)
        statuses = [record.status for record in kept]
        assert statuses.count("cancelled") == 4
        assert statuses.count("ok") == len(kept) - 4 >= 5

    def test_failing_callback_ends_the_loop_with_its_error(self) -> None:
        def full(record: RequestRecord) -> None:
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space left"):
            run(tokens(2), self.load(8, 4, on_record=full))


def test_loop_watch_detects_a_blocked_loop() -> None:
    async def go() -> LoopWatch:
        async with LoopWatch(interval_s=0.005) as watch:
            await asyncio.sleep(0.02)
            time.sleep(0.2)
            await asyncio.sleep(0.02)
        return watch

    watch = asyncio.run(go())
    assert watch.loop_lag_p99_ms is not None
    assert watch.cpu_share is not None
    assert 0 <= watch.cpu_share <= 1.1


class TestReplica:
    NAME = (("x-serving-replica", "k3x9"),)

    def test_replica_is_kept_for_failed_answers_too(self) -> None:
        broken = Script(tokens(2).steps[:2], headers=self.NAME)
        refused = Script(status=500, body=b"{}", headers=self.NAME)
        for script, status in ((tokens(2, headers=self.NAME), "ok"), (broken, "error")):
            record, _ = run(script)
            assert (record.status, record.replica) == (status, "k3x9")
        record, _ = run(refused)
        assert (record.status, record.replica) == ("error", "k3x9")

    def test_replica_is_none_where_not_reported(self) -> None:
        record, _ = run(tokens(2))
        assert record.replica is None
