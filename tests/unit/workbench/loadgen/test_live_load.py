"""A load that is changed while it runs, against a scripted server's own log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import scripted_server as scripted
from support.scripted_server import serving, tokens

from workbench.endpoints.connection import make_connection
from workbench.errors import SettingError
from workbench.loadgen.handle import LiveLoad
from workbench.loadgen.senders import WorkerConfig, WorkerShare
from workbench.loadgen.start import start_live_load
from workbench.loadgen.worker import LoadWorker
from workbench.records import LoadChange, RequestRecord
from workbench.workload.arrivals import ClosedLoop, Constant, Poisson, Stages
from workbench.workload.prompts import RandomPrompts
from workbench.workload.rate_curve import change_times, offered_rates
from workbench.workload.schedule import offsets
from workbench.workload.spec import LoadSpec

SMALL = RandomPrompts(input=4, output=3)
Sent = tuple[list[RequestRecord], list[float], scripted.ScriptedServer]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is dropped because the machine paused this process for some seconds."""
    monkeypatch.setattr("workbench.loadgen.senders.MAX_DELAY_S", 100.0)


def send(
    load: LoadSpec,
    *changes: LoadChange,
    workers: int = 1,
    stop_s: float | None = None,
    answer: scripted.Script | None = None,
) -> Sent:
    """Send `load` from workers in this event loop, with changes.

    With `stop_s` it is stopped once every worker has sent what was due until then, at the earliest.
    """

    async def go() -> Sent:
        async with serving(answer or tokens(3, chat=False)) as server:
            senders = [LoadWorker() for _ in range(workers)]
            there = make_connection(server.base_url, "sk-test")
            await asyncio.gather(*(w.connect(there) for w in senders))
            epoch = time.perf_counter() + 0.1
            for first, worker in enumerate(senders):
                config = WorkerConfig("scripted", {}, "t", epoch_s=epoch, start_s=0.0)
                await worker.start_live(config, WorkerShare(load, range(20), first, workers))
                for change in changes:
                    await worker.apply(change)
            return *(await collect(senders, stop_s)), server

    return asyncio.run(go())


async def collect(
    workers: list[LoadWorker], stop_s: float | None
) -> tuple[list[RequestRecord], list[float]]:
    records, sent, done = [], [], False
    latest_s = [0.0] * len(workers)
    while not done:
        await asyncio.sleep(0.02)
        # Not by the clock: after a pause of the machine, what was due meanwhile is still unsent.
        if stop_s is not None and min(latest_s) >= stop_s:
            await asyncio.gather(*(worker.stop() for worker in workers))
        reports = [await worker.report() for worker in workers]
        latest_s = [
            max(before_s, *report.sent_s) if report.sent_s else before_s
            for before_s, report in zip(latest_s, reports, strict=True)
        ]
        done = all(report.done for report in reports)
        records += [record for report in reports for record in report.records]
        sent += [at for report in reports for at in report.sent_s]
    return records, sent


def due(records: list[RequestRecord]) -> list[float]:
    return sorted(record.scheduled_s or 0.0 for record in records)


@pytest.mark.parametrize("workers", [1, 3])
def test_without_changes_the_plan_is_sent(workers: int) -> None:
    plan = Stages(stages=[(60, 0.5), (0, 0), (0, 0.1)])
    load = LoadSpec(arrivals=plan, prompts=SMALL, seed=7)
    records, sent, server = send(load, workers=workers)
    expected = list(offsets(plan, np.random.default_rng([7, 0])))
    np.testing.assert_allclose(due(records), expected, atol=1e-6)
    assert len(server.log) == len(sent) == len(expected) > 5


def test_changes_apply_at_their_time() -> None:
    load = LoadSpec(arrivals=Constant(rate=20), prompts=SMALL)
    records, _, server = send(
        load,
        LoadChange(0.2, "pause"),
        LoadChange(0.5, "resume"),
        LoadChange(0.6, "rate", 100),
        LoadChange(0.7, "output_tokens", 9),
        stop_s=1.2,
    )
    times = np.array(due(records))
    np.testing.assert_allclose(times[:5], [0, 0.05, 0.1, 0.15, 0.2], atol=1e-6)
    assert not ((times > 0.201) & (times < 0.5)).any()
    assert ((times > 0.6) & (times < 0.9)).sum() == pytest.approx(30, abs=1)
    due_s = {record.request_id: record.scheduled_s or 0.0 for record in records}
    asked = [(due_s[e.request_id or ""], e.body["max_tokens"]) for e in server.log]
    assert {tokens for at_s, tokens in asked if at_s < 0.699} == {3}
    assert {tokens for at_s, tokens in asked if at_s > 0.701} == {9}


def test_rate_goes_on_after_the_end_of_the_plan() -> None:
    load = LoadSpec(arrivals=Stages(stages=[(0.1, 0.2)]), prompts=SMALL)
    records, _, _ = send(load, LoadChange(0.1, "rate", 20), stop_s=0.6)
    times = due(records)
    assert times[-1] > 0.4
    assert len([at_s for at_s in times if at_s < 0.6]) == pytest.approx(10, abs=6)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("stage_s", "duration_s"), [(0.2, None), (60, 0.2)])
def test_rate_set_while_the_last_answers_arrive_is_sent(
    workers: int, stage_s: float, duration_s: float | None
) -> None:
    stages = Stages(stages=[(40, stage_s)], from_rate=40)
    load = LoadSpec(arrivals=stages, prompts=SMALL, duration_s=duration_s)
    slow = tokens(3, ttft_s=0.8, chat=False)
    records, _, _ = send(
        load, LoadChange(0.5, "rate", 40), workers=workers, stop_s=1.0, answer=slow
    )
    times = np.array(due(records))
    assert not ((times > 0.21) & (times < 0.49)).any()
    assert ((times > 0.5) & (times < 1.0)).sum() == pytest.approx(0.5 * 40, abs=8)


def test_paused_load_does_not_end_with_its_plan() -> None:
    load = LoadSpec(arrivals=Constant(rate=40), prompts=SMALL, duration_s=0.2)
    changes = (LoadChange(0.1, "pause"), LoadChange(0.6, "rate", 40))
    records, _, _ = send(load, *changes, stop_s=0.9)
    times = np.array(due(records))
    assert not ((times > 0.11) & (times < 0.59)).any()
    assert (times > 0.6).sum() >= 4


def test_workers_share_bursts() -> None:
    load = LoadSpec(arrivals=Poisson(rate=60), prompts=SMALL, seed=3)
    changes = (LoadChange(0.1, "burstiness", 0.1), LoadChange(0.3, "rate", 100.0))
    single, shared = (
        [at_s for at_s in due(send(load, *changes, workers=workers, stop_s=0.8)[0]) if at_s < 0.5]
        for workers in (1, 2)
    )
    assert len(single) > 10
    np.testing.assert_allclose(single, shared, atol=1e-6)


def test_late_requests_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workbench.loadgen.senders.MAX_DELAY_S", 0.05)

    async def go() -> tuple[int, int]:
        async with serving(tokens(1, chat=False)) as server:
            worker = LoadWorker()
            await worker.connect(make_connection(server.base_url, "sk-test"))
            load = LoadSpec(arrivals=Constant(rate=100), prompts=SMALL, duration_s=0.5)
            config = WorkerConfig(
                "scripted", {}, "t", epoch_s=time.perf_counter() + 0.05, start_s=0.0
            )
            await worker.start_live(config, WorkerShare(load, range(20), 0, 1))
            await asyncio.sleep(0.1)
            time.sleep(0.3)  # Block the event loop of the worker.
            dropped = sent = 0
            while True:
                await asyncio.sleep(0.02)
                report = await worker.report()
                dropped, sent = dropped + report.dropped, sent + len(report.sent_s)
                if report.done:
                    return dropped, sent

    dropped, sent = asyncio.run(go())
    assert dropped >= 20
    assert dropped + sent == 50


def test_offered_rates_follow_the_changes() -> None:
    load = LoadSpec(arrivals=Stages(stages=[(10, 10), (10, 10)]), prompts=SMALL)
    changes = [
        LoadChange(1.0, "start", load=load.model_dump(mode="json")),
        LoadChange(3.0, "pause"),
        LoadChange(5.0, "resume"),
        LoadChange(14.0, "rate", 4.0),
        LoadChange(20.0, "end", note="stopped by the user"),
    ]
    times = [0.0, 2.0, 4.0, 6.0, 13.5, 15.0, 21.0]
    assert offered_rates(changes, times) == pytest.approx([0, 1, 0, 3, 10, 4, 0])


def test_change_times_are_those_of_the_plan_and_of_changes() -> None:
    load = LoadSpec(arrivals=Stages(stages=[(10, 10), (10, 10), (0, 0), (0, 5)]), prompts=SMALL)
    start = LoadChange(1.0, "start", load=load.model_dump(mode="json"))
    assert change_times([start, LoadChange(30.0, "end")]) == [1, 11, 21, 26]
    paused = [start, LoadChange(3.0, "pause"), LoadChange(5.0, "resume"), LoadChange(40.0, "end")]
    assert change_times(paused) == [1, 3, 5, 13, 23, 28]
    by_hand = [start, LoadChange(12.0, "rate", 4.0), LoadChange(40.0, "end")]
    assert change_times(by_hand) == [1, 11, 12]


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (LoadSpec(arrivals=ClosedLoop(max_concurrency=2), prompts=SMALL, count=3), "have no rate"),
        (LoadSpec(arrivals=Poisson(rate=1), prompts=SMALL, count=3), "count = 3"),
    ],
)
def test_load_that_cannot_be_changed_is_rejected(load: LoadSpec, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        start_live_load(None, load)  # type: ignore[arg-type]


def handle(**fields: Any) -> LiveLoad:
    load = LoadSpec(prompts=RandomPrompts(input=100, output=3))
    return LiveLoad(planned=0, clock=lambda: 5.0, load=load, max_model_len=128, **fields)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda load: load.set_rate(-1), "got -1"),
        (lambda load: load.set_burstiness(0), "got 0"),
        (lambda load: load.set_output_tokens(0), "at least 1"),
        (lambda load: load.set_output_tokens(29), "beyond max_model_len = 128"),
    ],
)
def test_invalid_value_changes_nothing(wrong: Callable[[LiveLoad], Any], message: str) -> None:
    running = handle()
    with pytest.raises(SettingError, match=message):
        wrong(running)
    assert running._requested == []


def test_rate_beyond_the_maximum_is_capped_and_noted() -> None:
    running = handle(max_rate=50)
    assert running.set_rate(400) == 50
    (change,) = running._requested
    assert (change.value, change.note) == (
        50,
        "400 requests/s requested, capped to what the load workers reach",
    )


def test_rate_of_a_program_is_not_set_by_a_person() -> None:
    running = LiveLoad(planned=0, clock=lambda: 5.0, max_rate=50)
    assert running.follow_rate(400) == 50
    assert not running.manual_rate
    assert running.set_rate(40) == 40
    assert running.manual_rate
    assert [(change.what, change.value) for change in running._requested] == [
        ("rate", 50),
        ("rate", 40),
    ]
