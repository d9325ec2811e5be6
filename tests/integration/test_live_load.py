"""A load that is changed while Ray actors send it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support import scripted_server as scripted
from support.scripted_server import tokens

from workbench.endpoints.remote import remote
from workbench.errors import SettingError
from workbench.loadgen.handle import LiveLoad
from workbench.loadgen.start import start_live_load
from workbench.runs.run import Run
from workbench.workload.arrivals import Constant
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec

pytestmark = pytest.mark.engine
SMALL = RandomPrompts(input=4, output=3)


def test_live_load_through_ray_actors(deployed: object, tmp_path: Path) -> None:
    async def go(run: Run) -> tuple[LiveLoad, Any, int]:
        load = LoadSpec(arrivals=Constant(rate=20), prompts=SMALL)
        target = remote(server.base_url, model="scripted", tokenizer="tiny", api_key="sk-other")
        running = start_live_load(target, load, run=run, max_rate=150, progress=None)
        while len(running.records) < 10:
            await asyncio.sleep(0.1)
        running.set_rate(0)
        running.set_output_tokens(7)
        while len(running.changes) < 3:  # The start, and the two changes that all workers have.
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        while running.in_progress:
            await asyncio.sleep(0.1)
        quiet = len(server.log)
        await asyncio.sleep(0.5)
        assert len(server.log) == quiet
        running.set_rate(1000)
        while len(server.log) < quiet + 60:
            await asyncio.sleep(0.05)
        running.stop()
        return running, await running, quiet

    with scripted.threaded(tokens(3, chat=False)) as server:
        run = Run.create(tmp_path, {})
        running, result, quiet = asyncio.run(go(run))
    assert running.state == "ended"
    assert result.ended_early == "stopped by the user"
    assert len(list(run.records())) == len(result.records) == result.planned - running.dropped
    assert len(server.log) <= result.planned  # The last ones may be cut before they are sent.
    assert {e.body["max_tokens"] for e in server.log[:quiet]} == {3}
    assert {e.body["max_tokens"] for e in server.log[quiet:]} == {7}
    kept = run.changes()
    assert [(c.what, c.value) for c in kept] == [(c.what, c.value) for c in running.changes]
    kept = [c for c in kept if c.what != "late"]  # On a busy machine some cannot be sent in time.
    assert LoadSpec(**(kept[0].load or {})) == running.load
    assert [c.what for c in kept] == ["start", "rate", "output_tokens", "rate", "end"]
    assert (kept[3].value, "1000" in (kept[3].note or "")) == (150, True)
    assert result.health.cpu_share is not None
    with pytest.raises(SettingError, match="has ended"):
        running.set_rate(3)
