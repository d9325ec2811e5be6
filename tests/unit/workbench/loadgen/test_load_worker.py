"""Load workers against the scripted server, in one event loop; the truth is the server's log."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import subprocess
import sys
import time
from typing import Any

import pytest
from support import scripted_server as scripted
from support.scripted_server import Script, serving, tokens

from workbench.loadgen.worker import LoadWorker, WorkerConfig
from workbench.records import RequestRecord
from workbench.workload.prompt_generator import Prompt
from workbench.workload.spec import Arrival


def asked(tokens_in: int = 4, **fields: Any) -> Prompt:
    return Prompt(content=tuple(range(tokens_in)), prompt_tokens=tokens_in, max_tokens=8, **fields)


SEARCHED = """
import asyncio, gc
from workbench.workload.spec import Arrival
from workbench.loadgen.worker import WorkerConfig, LoadWorker
from workbench.workload.prompt_generator import Prompt

async def go():
    worker = LoadWorker()
    await worker.connect("http://127.0.0.1:9/v1", "sk-test")
    before = len(gc.get_objects())
    turns = (Prompt(content=("a",), prompt_tokens=1, max_tokens=8),)
    plan = [(n, Arrival(1e6, turns)) for n in range(1000)]
    job = WorkerConfig(model="m", call={}, tag="t", epoch_s=0.0, start_s=1e6)
    await worker.start(job, plan)
    seen = gc.get_objects()
    print(before, len(seen), sum(isinstance(one, Arrival) for one in seen))
    await worker.stop()

asyncio.run(go())
"""


def drive(
    script: scripted.Choose | Script,
    sessions: list[Arrival],
    *,
    stop_after_s: float | None = None,
    **job: Any,
) -> tuple[list[RequestRecord], scripted.ScriptedServer, LoadWorker]:
    async def go() -> tuple[list[RequestRecord], scripted.ScriptedServer, LoadWorker]:
        async with serving(script) as server:
            worker = LoadWorker()
            await worker.connect(server.base_url, "sk-test")
            epoch = time.perf_counter()
            fields = {"model": "scripted", "call": {}, "tag": "t", "start_s": 0.0} | job
            await worker.start(WorkerConfig(epoch_s=epoch, **fields), list(enumerate(sessions)))
            kept: list[RequestRecord] = []
            began = time.monotonic()
            while True:
                await asyncio.sleep(0.01)
                report = await worker.report()
                kept += report.records
                if report.done:
                    return kept, server, worker
                if stop_after_s is not None and time.monotonic() - began > stop_after_s:
                    await worker.stop()

    return asyncio.run(go())


@pytest.mark.timing
def test_open_loop_sends_on_time_whatever_the_answers_take() -> None:
    sessions = [Arrival(i * 0.02, (asked(),)) for i in range(30)]
    records, server, _ = drive(tokens(8, ttft_s=0.4, chat=False), sessions)
    received = sorted(exchange.received_s for exchange in server.log)
    gaps = [b - a for a, b in itertools.pairwise(received)]
    assert server.open_most > 15  # it did not wait for answers
    assert 0.015 < statistics.median(gaps) < 0.025
    late = [r.sent_s - r.scheduled_s for r in records if r.sent_s and r.scheduled_s is not None]
    assert min(late) >= 0
    assert statistics.median(late) < 0.010
    assert [round(r.scheduled_s or 0, 6) for r in sorted(records, key=lambda r: r.sent_s or 0)] == [
        round(session.at_s or 0, 6) for session in sessions
    ]


def test_what_is_there_at_the_start_is_never_searched_for_garbage() -> None:
    """In an interpreter of its own, as the collector is the whole process's."""
    told = subprocess.run([sys.executable, "-c", SEARCHED], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]
    before, at_start, plan = map(int, told.stdout.split())
    assert before > 10_000
    assert at_start < before / 10
    assert plan == 0


def test_a_closed_loop_keeps_just_so_many_in_progress() -> None:
    sessions = [Arrival(None, (asked(),)) for _ in range(12)]
    records, server, _ = drive(tokens(3, ttft_s=0.02, chat=False), sessions, max_concurrency=3)
    assert (len(records), server.open_most) == (12, 3)


def test_a_closed_loop_ends_with_its_duration() -> None:
    sessions = [Arrival(None, (asked(),)) for _ in range(1000)]
    script = tokens(1, ttft_s=0.05, chat=False)
    records, server, _ = drive(script, sessions, max_concurrency=2, duration_s=0.3)
    assert 2 <= len(records) == len(server.log) < 40


def test_users_think_before_each_request_and_send_none_after_the_end() -> None:
    sessions = [Arrival(None, (asked(think_s=0.2), asked(turn=1, think_s=0.3))) for _ in range(9)]
    script = tokens(1, chat=False)
    records, server, _ = drive(script, sessions, max_concurrency=1, duration_s=1.1)
    waits = [0.2, 0.3, 0.2, 0.3]  # a fifth request would be due at 1.2 at the earliest
    assert 1 <= len(records) == len(server.log) <= 4
    ends = [0.0, *(record.end_s for record in records)]
    for record, before, wait in zip(records, ends, waits, strict=False):
        assert record.sent_s - before >= wait


def test_the_turns_of_a_conversation_follow_each_other_after_the_think_time() -> None:
    turns = (asked(4), asked(9, turn=1, think_s=0.1), asked(14, turn=2, think_s=0.05))
    records, server, _ = drive(tokens(3, gap_s=0.01, chat=False), [Arrival(0.0, turns)])
    log = sorted(server.log, key=lambda exchange: exchange.received_s)
    assert [len(exchange.body["prompt"]) for exchange in log] == [4, 9, 14]
    for before, after, think in zip(log, log[1:], (0.1, 0.05), strict=False):
        assert after.received_s - before.sends_s[-1] >= think
    assert [r.request_id for r in records] == ["t-0-0", "t-0-1", "t-0-2"]


def test_a_broken_conversation_is_not_gone_on_with() -> None:
    script = scripted.error(400, "no")
    records, server, _ = drive(script, [Arrival(0.0, (asked(), asked(turn=1)))])
    assert (len(server.log), [r.status for r in records]) == (1, ["error"])


def test_stopping_keeps_what_ended_and_records_the_rest_as_cancelled() -> None:
    def choose(body: dict[str, Any], n: int) -> Script:
        return tokens(3, chat=False) if n < 5 else tokens(3, ttft_s=30, chat=False)

    sessions = [Arrival(i * 0.001, (asked(),)) for i in range(8)] + [Arrival(60.0, (asked(),))]
    records, server, _ = drive(choose, sessions, stop_after_s=0.5)
    assert sorted(r.status for r in records) == ["cancelled"] * 3 + ["ok"] * 5
    assert len(server.log) == 8  # the one due in a minute was never sent


def test_messages_go_to_chat_and_text_and_ids_to_completions() -> None:
    chat = Prompt(content=({"role": "user", "content": "hi"},), prompt_tokens=9, max_tokens=8)
    text = Prompt(content="hi", prompt_tokens=2, max_tokens=8)
    sessions = [Arrival(0.1 * i, (prompt,)) for i, prompt in enumerate((chat, text, asked()))]
    _, server, _ = drive(lambda body, n: tokens(2, chat="messages" in body), sessions)
    assert [e.path.rpartition("/v1/")[2] for e in server.log] == [
        "chat/completions",
        "completions",
        "completions",
    ]
    assert [e.body.get("prompt") for e in server.log[1:]] == ["hi", [0, 1, 2, 3]]


def test_more_at_once_than_a_client_pool_holds_by_default() -> None:
    sessions = [Arrival(0.0, (asked(),)) for _ in range(150)]
    _, server, _ = drive(tokens(1, ttft_s=1.0, chat=False), sessions)
    assert server.open_most == 150
