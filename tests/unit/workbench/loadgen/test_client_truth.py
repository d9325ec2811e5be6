"""The records of a load worker against the log of a scripted server in another process.

The bounds are five times those of benchmarks/client.py, at the median, as the machine may be busy.
A load during which the machine paused one of the two processes is repeated.
"""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from statistics import median

import pytest
from support import scripted_server as scripted
from support.stalls import MOST_S, Stalls

from workbench.endpoints.connection import make_connection
from workbench.loadgen.senders import WorkerConfig
from workbench.loadgen.worker import LoadWorker
from workbench.metrics.summary import summarize
from workbench.records import RequestRecord
from workbench.workload.prompt import Prompt
from workbench.workload.spec import Arrival

REQUESTS, TOKENS, MS = 100, 8, 5.0
Answer = tuple[RequestRecord, scripted.Exchange]


async def load(base_url: str) -> list[RequestRecord]:
    """Send 100 requests at 100 a second, and collect records while others are in progress."""
    worker = LoadWorker()
    await worker.connect(make_connection(base_url, "sk-test"))
    prompt = Prompt(content=(1, 2, 3), prompt_tokens=3, max_tokens=TOKENS)
    arrivals = [Arrival(i / 100, (prompt,)) for i in range(REQUESTS)]
    config = WorkerConfig("scripted", {}, "t", epoch_s=0.0, start_s=time.perf_counter() + 0.2)
    await worker.start(config, list(enumerate(arrivals)))
    records: list[RequestRecord] = []
    while True:
        report = await worker.report()
        records += report.records
        if report.done:
            return records
        await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    """Each record with the server's log of that request."""
    options = ("--tokens", str(TOKENS), "--ttft", "0.05", "--gap", "0.01", "--log")
    for _ in range(5):
        with scripted.spawn(*options) as base_url, Stalls() as stalls:
            records = asyncio.run(load(base_url))
            log = {exchange.request_id: exchange for exchange in scripted.read_log(base_url)}
        # Requests are always in progress, so a pause of the server lengthens one of its answers.
        longest_s = max(exchange.sends_s[-1] - exchange.received_s for exchange in log.values())
        if stalls.lost_s < MOST_S and longest_s < 0.05 + TOKENS * 0.01 + MOST_S:
            break
    assert {record.request_id for record in records} == set(log)
    return [(record, log[record.request_id]) for record in records]


@pytest.mark.timing
def test_every_request_is_recorded_once_with_its_tokens(
    answers: list[Answer],
) -> None:
    assert len(answers) == REQUESTS
    for record, sent in answers:
        assert record.status == "ok"
        assert len(sent.token_sends_s) == TOKENS
        assert (record.output_tokens, len(record.token_times_s)) == (TOKENS, TOKENS)


@pytest.mark.timing
def test_latencies_match_the_server(answers: list[Answer]) -> None:
    off: dict[str, list[float]] = {"ttft": [], "e2el": [], "tpot": [], "itl": []}
    for record, sent in answers:
        measured, first, usage = summarize([record]), sent.token_sends_s[0], sent.sends_s[-2]
        truth = {
            "ttft": first - sent.received_s,
            "e2el": usage - sent.received_s,
            "tpot": (usage - first) / (TOKENS - 1),
        }
        for name, seconds in truth.items():
            off[name].append(abs(measured.figure(f"median_{name}_ms") - seconds * 1e3))
        gaps = zip(pairwise(record.token_times_s), pairwise(sent.token_sends_s), strict=True)
        off["itl"] += [abs((b - a) - (d - c)) * 1e3 for (a, b), (c, d) in gaps]
    assert {name: median(values) < MS for name, values in off.items()} == dict.fromkeys(off, True)


@pytest.mark.timing
def test_requests_are_sent_when_due(answers: list[Answer]) -> None:
    records = [record for record, _ in answers]
    late = [record.sent_s - record.scheduled_s for record in records]
    assert min(late) >= 0
    assert median(late) * 1e3 < 2 * MS
    arrived = [sent.received_s - record.scheduled_s for record, sent in answers]
    assert min(arrived) > 0
    assert median(arrived) * 1e3 < 3 * MS
