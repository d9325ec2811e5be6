"""Load workers in one event loop with the scripted server, against the server's log."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support import scripted_server as scripted
from support.scripted_server import Script, ScriptedServer, serving, tokens
from support.stalls import undisturbed

from workbench.endpoints.connection import make_connection
from workbench.loadgen.senders import WorkerConfig
from workbench.loadgen.worker import LoadWorker
from workbench.records import RequestRecord
from workbench.workload.prompt import Prompt, ToolPrompt
from workbench.workload.spec import Arrival


def prompt_of(tokens_in: int = 4, **fields: Any) -> Prompt:
    return Prompt(content=tuple(range(tokens_in)), prompt_tokens=tokens_in, max_tokens=8, **fields)


GC_PROGRAM = """
import asyncio, gc
from workbench.workload.spec import Arrival
from workbench.endpoints.connection import make_connection
from workbench.loadgen.senders import WorkerConfig
from workbench.loadgen.worker import LoadWorker
from workbench.workload.prompt import Prompt

async def go():
    worker = LoadWorker()
    await worker.connect(make_connection("http://127.0.0.1:9/v1", "sk-test"))
    before = len(gc.get_objects())
    turns = (Prompt(content=("a",), prompt_tokens=1, max_tokens=8),)
    plan = [(n, Arrival(1e6, turns)) for n in range(1000)]
    config = WorkerConfig(model="m", call={}, tag="t", epoch_s=0.0, start_s=1e6)
    await worker.start(config, plan)
    tracked = gc.get_objects()
    print(before, len(tracked), sum(isinstance(item, Arrival) for item in tracked))
    await worker.stop()

asyncio.run(go())
"""


def send(
    script: scripted.Choose | Script,
    arrivals: list[Arrival],
    *,
    stop_when: Callable[[ScriptedServer, list[RequestRecord]], bool] | None = None,
    **config: Any,
) -> tuple[list[RequestRecord], scripted.ScriptedServer, LoadWorker]:
    async def go() -> tuple[list[RequestRecord], scripted.ScriptedServer, LoadWorker]:
        async with serving(script) as server:
            worker = LoadWorker()
            await worker.connect(make_connection(server.base_url, "sk-test"))
            epoch = time.perf_counter()
            defaults: dict[str, Any] = {"model": "scripted", "call": {}, "tag": "t", "start_s": 0.0}
            await worker.start(
                WorkerConfig(epoch_s=epoch, **(defaults | config)), list(enumerate(arrivals))
            )
            kept: list[RequestRecord] = []
            while True:
                await asyncio.sleep(0.01)
                report = await worker.report()
                kept += report.records
                if report.done:
                    return kept, server, worker
                if stop_when is not None and stop_when(server, kept):
                    await worker.stop()

    return asyncio.run(go())


@pytest.mark.timing
def test_open_loop_does_not_wait_for_answers() -> None:
    arrivals = [Arrival(i * 0.02, (prompt_of(),)) for i in range(30)]
    script = tokens(8, ttft_s=0.4, chat=False)
    records, server, _ = undisturbed(lambda: send(script, arrivals))
    received = sorted(exchange.received_s for exchange in server.log)
    gaps = [b - a for a, b in itertools.pairwise(received)]
    assert server.most_open > 15  # It did not wait for answers.
    assert 0.015 < statistics.median(gaps) < 0.025
    late = [r.sent_s - r.scheduled_s for r in records if r.sent_s and r.scheduled_s is not None]
    assert min(late) >= 0
    assert statistics.median(late) < 0.010
    assert [round(r.scheduled_s or 0, 6) for r in sorted(records, key=lambda r: r.sent_s or 0)] == [
        round(arrival.at_s or 0, 6) for arrival in arrivals
    ]


def test_tools_of_a_chat_are_sent() -> None:
    chat = ({"role": "user", "content": "What time is it?"},)
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    prompts = (ToolPrompt(chat, 9, 8, tools=(tool,)), Prompt(chat, 9, 8))
    _, server, _ = send(tokens(2), [Arrival(0.0, (prompt,)) for prompt in prompts])
    assert {exchange.path for exchange in server.log} == {"/v1/chat/completions"}
    sent = [exchange.body.get("tools") for exchange in server.log]
    assert sorted(sent, key=bool) == [None, [tool]]
    assert all(exchange.body["messages"] == list(chat) for exchange in server.log)


@pytest.mark.parametrize("reads_sessions", [True, False])
def test_the_turns_of_a_conversation_are_one_session(reads_sessions: bool) -> None:
    def turns(number: int) -> tuple[Prompt, ...]:
        return tuple(prompt_of(4 + number, conversation=number, turn=turn) for turn in range(3))

    arrivals = [Arrival(0.0, turns(0)), Arrival(0.0, turns(1)), Arrival(0.0, (prompt_of(1),))]
    _, server, _ = send(tokens(1, chat=False), arrivals, sessions=reads_sessions)
    sent = Counter((len(exchange.body["prompt"]), exchange.session) for exchange in server.log)
    first, second = ("t-0", "t-1") if reads_sessions else (None, None)
    assert sent == {(4, first): 3, (5, second): 3, (1, None): 1}


def test_existing_objects_are_excluded_from_garbage_collection() -> None:
    """In a separate process, as there is one collector per process."""
    process = subprocess.run([sys.executable, "-c", GC_PROGRAM], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    before, at_start, plan = map(int, process.stdout.split())
    assert before > 10_000
    assert at_start < before / 10
    assert plan == 0


def test_closed_loop_limits_the_requests_in_progress() -> None:
    arrivals = [Arrival(None, (prompt_of(),)) for _ in range(12)]
    records, server, _ = send(tokens(3, ttft_s=0.02, chat=False), arrivals, max_concurrency=3)
    assert (len(records), server.most_open) == (12, 3)


def test_closed_loop_ends_with_its_duration() -> None:
    arrivals = [Arrival(None, (prompt_of(),)) for _ in range(1000)]
    script = tokens(1, ttft_s=0.05, chat=False)
    records, server, _ = send(script, arrivals, max_concurrency=2, duration_s=0.3)
    assert 2 <= len(records) == len(server.log) < 40


def test_users_think_before_each_request_and_stop_at_the_end() -> None:
    arrivals = [
        Arrival(None, (prompt_of(think_s=0.2), prompt_of(turn=1, think_s=0.3))) for _ in range(9)
    ]
    script = tokens(1, chat=False)
    records, server, _ = send(script, arrivals, max_concurrency=1, duration_s=1.1)
    waits = [0.2, 0.3, 0.2, 0.3]  # A fifth request would be due at 1.2 s or later.
    assert 1 <= len(records) == len(server.log) <= 4
    ends = [0.0, *(record.end_s for record in records)]
    for record, before, wait in zip(records, ends, waits, strict=False):
        assert record.sent_s - before >= wait


def test_turns_follow_after_the_think_time() -> None:
    turns = (prompt_of(4), prompt_of(9, turn=1, think_s=0.1), prompt_of(14, turn=2, think_s=0.05))
    records, server, _ = send(tokens(3, gap_s=0.01, chat=False), [Arrival(0.0, turns)])
    log = sorted(server.log, key=lambda exchange: exchange.received_s)
    assert [len(exchange.body["prompt"]) for exchange in log] == [4, 9, 14]
    for before, after, think in zip(log, log[1:], (0.1, 0.05), strict=False):
        assert after.received_s - before.sends_s[-1] >= think
    assert [r.request_id for r in records] == ["t-0-0", "t-0-1", "t-0-2"]


def test_failed_turn_ends_its_conversation() -> None:
    script = scripted.error(400, "no")
    records, server, _ = send(script, [Arrival(0.0, (prompt_of(), prompt_of(turn=1)))])
    assert (len(server.log), [r.status for r in records]) == (1, ["error"])


def test_stop_records_requests_in_progress_as_cancelled() -> None:
    def choose(body: dict[str, Any], n: int) -> Script:
        return tokens(3, chat=False) if n < 5 else tokens(3, ttft_s=100, chat=False)

    arrivals = [Arrival(i * 0.001, (prompt_of(),)) for i in range(8)] + [
        Arrival(60.0, (prompt_of(),))
    ]

    def all_are_there(server: ScriptedServer, kept: list[RequestRecord]) -> bool:
        return (len(server.log), len(kept)) == (8, 5)

    records, server, _ = send(choose, arrivals, stop_when=all_are_there)
    assert sorted(r.status for r in records) == ["cancelled"] * 3 + ["ok"] * 5
    assert len(server.log) == 8  # The one due in a minute was never sent.


def test_route_depends_on_the_kind_of_prompt() -> None:
    chat = Prompt(content=({"role": "user", "content": "hi"},), prompt_tokens=9, max_tokens=8)
    text = Prompt(content="hi", prompt_tokens=2, max_tokens=8)
    arrivals = [Arrival(0.1 * i, (prompt,)) for i, prompt in enumerate((chat, text, prompt_of()))]
    _, server, _ = send(lambda body, n: tokens(2, chat="messages" in body), arrivals)
    # After a pause of the machine all are sent at once, and may arrive in another order.
    sent = {str(e.body.get("prompt")): e.path.rpartition("/v1/")[2] for e in server.log}
    assert sent == {
        "None": "chat/completions",
        "hi": "completions",
        "[0, 1, 2, 3]": "completions",
    }
    assert len(server.log) == 3


def test_connections_are_not_limited() -> None:
    arrivals = [Arrival(0.0, (prompt_of(),)) for _ in range(150)]
    # Nothing is answered before all are open; a limit would hold some back until the first answer.
    script = tokens(1, ttft_s=60, chat=False)
    _, server, _ = send(script, arrivals, stop_when=lambda server, _: server.most_open == 150)
    assert server.most_open == 150
