"""One runner for planned and live loads, with load workers in this event loop instead of actors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError
from support import scripted_server as scripted
from support.scripted_server import tokens

from serving.cluster import connection
from workbench.endpoints.remote import Remote, remote
from workbench.errors import RunError, SettingError, WorkbenchError
from workbench.loadgen import pool
from workbench.loadgen.handle import LoadResult
from workbench.loadgen.start import start_live_load, start_load
from workbench.loadgen.worker import LoadWorker
from workbench.runs.run import Run
from workbench.workload.arrivals import ClosedLoop, Constant, TraceReplay
from workbench.workload.prompts import FromTrace, RandomPrompts
from workbench.workload.spec import LoadSpec

SMALL = RandomPrompts(input=4, output=3)


class Method:
    """A method of an actor."""

    def __init__(self, actor: LocalActor, method: Callable[..., Awaitable[Any]]) -> None:
        self._actor, self._method = actor, method

    async def remote(self, *arguments: Any) -> Any:
        if self._actor.dead:
            raise ActorDiedError
        return await self._method(*arguments)


class LocalActor:
    """A load worker in this event loop, called as Ray's actors are."""

    def __init__(self) -> None:
        self._worker = LoadWorker()
        self.dead = False

    def __getattr__(self, name: str) -> Method:
        method = self._node if name == "node" else getattr(self._worker, name)
        return Method(self, method)

    async def _node(self) -> str:
        return "this node"


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> list[LocalActor]:
    started: list[LocalActor] = []

    async def start_workers(actor: Any, number: int, prepare: Any) -> list[LocalActor]:
        new = [LocalActor() for _ in range(number)]
        started.extend(new)
        await asyncio.gather(*(prepare(actor) for actor in new))
        return new

    monkeypatch.setattr(pool, "start_workers", start_workers)
    monkeypatch.setattr(connection, "current", lambda: "connected")
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    return started


def target_of(server: scripted.ScriptedServer) -> Remote:
    return remote(server.base_url, model="scripted", tokenizer="tiny", api_key="sk-test")


def test_workers_share_a_plan(actors: list[LocalActor], tmp_path: Path) -> None:
    load = LoadSpec(arrivals=Constant(rate=100), prompts=SMALL, count=30, workers=3)
    run = Run.create(tmp_path, {})

    async def go() -> LoadResult:
        with scripted.threaded(tokens(3, chat=False)) as server:
            target = target_of(server)
            result = await start_load(target, load, run=run, progress=None)
            assert len({exchange.request_id for exchange in server.log}) == 30
        return result

    result = asyncio.run(go())
    assert len(actors) == 3
    assert {record.status for record in result.records} == {"ok"}
    assert len(list(run.records())) == len(result.records) == result.planned == 30
    times = sorted(record.due_s for record in result.records)
    assert [time - times[0] for time in times] == pytest.approx([n / 100 for n in range(30)])
    assert result.ended_early is None
    assert not (run.path / "unsaved").exists()
    assert run.changes() == []


def test_loads_are_awaited_together(actors: list[LocalActor]) -> None:
    load = LoadSpec(arrivals=Constant(rate=100), prompts=SMALL, count=5)

    async def go() -> list[LoadResult]:
        with scripted.threaded(tokens(3, chat=False)) as server:
            target = target_of(server)
            loads = [start_load(target, load, progress=None) for _ in range(2)]
            return await asyncio.gather(*loads)

    assert [len(result.records) for result in asyncio.run(go())] == [5, 5]


def test_requests_left_out_of_a_trace_are_in_the_summary(
    actors: list[LocalActor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    header = "Timestamp,Request tokens,Response tokens\n"
    trace.write_text(header + "5,9,3\n5.1,9,0\n5.05,8,3\n")
    load = LoadSpec(
        arrivals=TraceReplay(path=str(trace)),
        prompts=RandomPrompts(input=FromTrace(), output=FromTrace()),
        workers=1,
    )

    async def go() -> tuple[LoadResult, list[scripted.Exchange]]:
        with scripted.threaded(tokens(3, chat=False)) as server:
            return await start_load(target_of(server), load, progress="lines"), server.log

    result, log = asyncio.run(go())
    assert sorted(len(exchange.body["prompt"]) for exchange in log) == [8, 9]
    workload = result.summary().model_dump(mode="json")["workload"]
    assert workload["skipped"] == {"without output tokens": 1}
    assert workload["trace"]["out_of_order"] == 1
    assert "requests of the trace left out: 1 without output tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "unfit", "message"),
    [
        ("5.1,9", "skip", "line 3, column 'Response tokens'"),
        ("5.1,many,3", "skip", "line 3, column 'Request tokens': 'many' is not a number"),
        ("5.1,9,0", "reject", "request 2 of the trace does not fit"),
    ],
)
def test_nothing_is_sent_of_an_invalid_trace(
    actors: list[LocalActor], tmp_path: Path, row: str, unfit: Any, message: str
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(f"Timestamp,Request tokens,Response tokens\n5,9,3\n{row}\n")
    load = LoadSpec(
        arrivals=TraceReplay(path=str(trace), unfit=unfit),
        prompts=RandomPrompts(input=FromTrace(), output=FromTrace()),
    )

    async def go(server: scripted.ScriptedServer) -> None:
        await start_load(target_of(server), load, progress=None)

    with scripted.threaded(tokens(3, chat=False)) as server:
        with pytest.raises(WorkbenchError, match=message):
            asyncio.run(go(server))
        assert [exchange for exchange in server.log if "completions" in exchange.path] == []
    assert actors == []


def test_users_of_a_closed_loop_are_shared_by_the_workers(actors: list[LocalActor]) -> None:
    load = LoadSpec(arrivals=ClosedLoop(max_concurrency=5), prompts=SMALL, count=15, workers=2)

    async def go() -> tuple[LoadResult, int]:
        with scripted.threaded(tokens(2, ttft_s=0.2, chat=False)) as server:
            target = target_of(server)
            return await start_load(target, load, progress=None), server.most_open

    result, most = asyncio.run(go())
    assert (len(result.records), most) == (15, 5)


def test_the_journal_of_a_dead_worker_completes_the_records(
    actors: list[LocalActor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = LoadSpec(arrivals=Constant(rate=40), prompts=SMALL, count=120, workers=2)
    run = Run.create(tmp_path, {})

    async def go() -> LoadResult:
        with scripted.threaded(tokens(2, chat=False)) as server:
            target = target_of(server)
            running = start_load(target, load, run=run, progress=None)
            while not actors:
                await asyncio.sleep(0.01)
            worker = actors[0]._worker
            sleep_until = worker.sleep_until

            async def sleep_in_the_first_second(due_s: float) -> None:
                # However late it dies, it has not sent its whole share.
                if due_s > (running.start_s or 0.0) + 1:
                    await asyncio.Event().wait()
                await sleep_until(due_s)

            monkeypatch.setattr(worker, "sleep_until", sleep_in_the_first_second)
            while len(running.records) < 10:
                await asyncio.sleep(0.02)
            assert worker._journal is not None
            assert worker._journal._descriptor is not None
            await worker.stop()
            worker._journal._descriptor = None  # as the death of its process does
            actors[0].dead = True
            return await running

    result = asyncio.run(go())
    assert "a load worker died" in (result.ended_early or "")
    ids = [record.request_id for record in result.records]
    assert len(set(ids)) == len(ids)
    assert 60 < len(ids) < 120
    assert {record.request_id for record in run.records()} == set(ids)


def test_a_live_load_is_changed_and_logged(actors: list[LocalActor], tmp_path: Path) -> None:
    load = LoadSpec(arrivals=Constant(rate=20), prompts=SMALL)
    run = Run.create(tmp_path, {})
    states: list[str] = []
    sent: list[float] = []
    log: list[scripted.Exchange] = []

    async def go() -> tuple[LoadResult, Any]:
        with scripted.threaded(tokens(3, chat=False)) as server:
            target = target_of(server)
            running = start_live_load(
                target, load, run=run, max_rate=150, progress=None, on_sent=sent.extend
            )
            states.append(running.state)
            while len(running.records) < 10:
                await asyncio.sleep(0.02)
            running.set_output_tokens(7)
            running.pause()
            while running.state != "paused":
                await asyncio.sleep(0.02)
            states.append(running.state)
            assert running.rate == 0
            await asyncio.sleep(0.5)  # ten requests would be due
            paused = len(server.log)
            running.set_rate(1000)
            while len(server.log) < paused + 30:
                await asyncio.sleep(0.02)
            running.stop()
            result = await running
            states.append(running.state)
            log.extend(server.log)
            return result, running

    result, running = asyncio.run(go())
    assert states == ["starting", "paused", "ended"]
    assert len(actors) == 2
    assert [change.what for change in running.changes] == [c.what for c in run.changes()]
    # On a busy machine some requests cannot be sent in time; they are dropped and counted.
    made = [change for change in running.changes if change.what != "late"]
    assert [c.what for c in made] == ["start", "output_tokens", "pause", "rate", "end"]
    assert made[3].value == 150
    paused_s, resumed_s = (change.time_s for change in made[2:4])
    due_s = {record.request_id: record.due_s for record in result.records}
    assert not [at_s for at_s in due_s.values() if paused_s < at_s < resumed_s]
    asked = [exchange for exchange in log if due_s[exchange.request_id or ""] > paused_s]
    assert {exchange.body["max_tokens"] for exchange in asked} == {7}
    assert made[-1].note == result.ended_early == "stopped by the user"
    assert len(sent) == result.planned - running.dropped == running.ended
    assert len(list(run.records())) == len(result.records) == running.ended


@pytest.mark.slow
def test_rate_set_after_the_plan_is_sent_until_stop(
    actors: list[LocalActor], tmp_path: Path
) -> None:
    """While the last answers of the plan arrive, a person sets a rate, pauses, and sets another."""
    load = LoadSpec(arrivals=Constant(rate=20), prompts=SMALL, duration_s=0.5, workers=2)
    run = Run.create(tmp_path, {})

    def answer(body: dict[str, Any], n: int) -> scripted.Script:
        return tokens(3, ttft_s=7.0 if n < 10 else 0.1, chat=False)  # the plan has ten requests

    async def go() -> LoadResult:
        with scripted.threaded(answer) as server:
            running = start_live_load(target_of(server), load, run=run, max_rate=150, progress=None)
            while len(server.log) < 10:
                await asyncio.sleep(0.02)
            while running.clock() < (running.start_s or 0.0) + 0.9:
                await asyncio.sleep(0.02)
            running.set_rate(20)
            while len(server.log) < 30:
                await asyncio.sleep(0.02)
            running.pause()
            while (running.state, running.in_progress) != ("paused", 0):
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.6)  # everything is answered, and still the load is not over
            assert (running.state, running.in_progress) == ("paused", 0)
            answered = len(server.log)
            running.resume()
            while len(server.log) < answered + 5:
                await asyncio.sleep(0.02)
            running.stop()
            with pytest.raises(SettingError, match="has ended"):
                running.set_rate(5)
            return await running

    result = asyncio.run(go())
    assert result.ended_early == "stopped by the user"
    # On a busy machine some requests are late.
    changes = [change for change in run.changes() if change.what != "late"]
    assert [change.what for change in changes] == ["start", "rate", "pause", "resume", "end"]
    rate_s, paused_s, resumed_s = (change.time_s for change in changes[1:4])
    times = [record.due_s for record in result.records]
    assert len([at_s for at_s in times if at_s < rate_s]) == 10
    assert not [at_s for at_s in times if paused_s < at_s < resumed_s]
    assert len(list(run.records())) == result.planned


@pytest.mark.parametrize("live", [True, False])
def test_folder_takes_one_load(actors: list[LocalActor], tmp_path: Path, live: bool) -> None:
    start: Any = start_live_load if live else start_load
    load = LoadSpec(arrivals=Constant(rate=50), prompts=SMALL, duration_s=0.19)
    run = Run.create(tmp_path, {})

    async def go() -> int:
        with scripted.threaded(tokens(1, chat=False)) as server:
            running = start(target_of(server), load, run=run, progress=None)
            for again in (start_load, start_live_load):
                with pytest.raises(RunError, match=r"already has a load .*another folder"):
                    again(target_of(server), load, run=Run.open(run.path), progress=None)
            await running
            with pytest.raises(RunError, match="already has a load"):
                start(target_of(server), load, run=run, progress=None)
            return len(server.log)

    assert asyncio.run(go()) == len(list(run.records())) == 10


@pytest.mark.parametrize("live", [True, False])
def test_interrupted_load_says_what_was_cancelled(
    actors: list[LocalActor], tmp_path: Path, live: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    start: Any = start_live_load if live else start_load
    load = LoadSpec(arrivals=Constant(rate=50), prompts=SMALL, duration_s=0.2)
    run = Run.create(tmp_path, {})

    async def go() -> int:
        with scripted.threaded(tokens(1, ttft_s=60, chat=False)) as server:
            running = start(target_of(server), load, run=run, progress="lines")
            while len(server.log) < 10:
                await asyncio.sleep(0.02)
            running._task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            return len(server.log)

    assert asyncio.run(go()) == 10
    assert "interrupted: 10 requests cancelled" in capsys.readouterr().out
    assert [record.status for record in run.records()] == ["cancelled"] * 10
