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
from workbench.loadgen import pool
from workbench.loadgen.handle import LoadResult
from workbench.loadgen.start import start_live_load, start_load
from workbench.loadgen.worker import LoadWorker
from workbench.runs.run import Run
from workbench.workload.arrivals import ClosedLoop, Constant
from workbench.workload.prompts import RandomPrompts
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
        started.extend(LocalActor() for _ in range(number))
        await asyncio.gather(*(prepare(actor) for actor in started))
        return started

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


def test_users_of_a_closed_loop_are_shared_by_the_workers(actors: list[LocalActor]) -> None:
    load = LoadSpec(arrivals=ClosedLoop(max_concurrency=5), prompts=SMALL, count=15, workers=2)

    async def go() -> tuple[LoadResult, int]:
        with scripted.threaded(tokens(2, ttft_s=0.05, chat=False)) as server:
            target = target_of(server)
            return await start_load(target, load, progress=None), server.most_open

    result, most = asyncio.run(go())
    assert (len(result.records), most) == (15, 5)


def test_the_journal_of_a_dead_worker_completes_the_records(
    actors: list[LocalActor], tmp_path: Path
) -> None:
    load = LoadSpec(arrivals=Constant(rate=40), prompts=SMALL, count=120, workers=2)
    run = Run.create(tmp_path, {})

    async def go() -> LoadResult:
        with scripted.threaded(tokens(2, chat=False)) as server:
            target = target_of(server)
            running = start_load(target, load, run=run, progress=None)
            while len(running.records) < 10:
                await asyncio.sleep(0.02)
            worker = actors[0]._worker
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
            await asyncio.sleep(0.6)
            states.append(running.state)
            paused, quiet = len(server.log), running.rate
            await asyncio.sleep(0.3)
            assert (len(server.log), quiet) == (paused, 0)
            running.set_rate(1000)
            while len(server.log) < paused + 30:
                await asyncio.sleep(0.02)
            running.stop()
            result = await running
            states.append(running.state)
            assert {exchange.body["max_tokens"] for exchange in server.log[paused:]} == {7}
            return result, running

    result, running = asyncio.run(go())
    assert states == ["starting", "paused", "ended"]
    assert len(actors) == 2
    assert [change.what for change in run.changes()] == [
        "start",
        "output_tokens",
        "pause",
        "rate",
        "end",
    ]
    assert [change.what for change in running.changes] == [c.what for c in run.changes()]
    assert running.changes[3].value == 150
    assert running.changes[-1].note == result.ended_early == "stopped by the user"
    assert len(sent) == result.planned == running.ended
    assert len(list(run.records())) == len(result.records) == result.planned
