"""Failures outside the service: a dead load worker, a killed kernel, a full disk.

The scripted server's log says which requests there were and which it answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from support import scripted_server as scripted
from support.paths import ROOT, TESTS
from support.processes import assert_gone
from support.scripted_server import Exchange, tokens

from serving.cluster.ports import free_port
from serving.cluster.supervisor import descendants
from workbench.endpoints.remote import remote
from workbench.errors import RunError
from workbench.loadgen import workers
from workbench.loadgen.handle import LoadResult
from workbench.loadgen.start import start_load
from workbench.records import RequestRecord
from workbench.runs.run import Run
from workbench.workload.arrivals import Constant
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("ray_alone")]

LOAD = LoadSpec(
    arrivals=Constant(rate=30), prompts=RandomPrompts(input=12, output=4), count=300, workers=2
)
SLOW = tokens(4, gap_s=0.1, chat=False)


def answered(log: list[Exchange], before_s: float = float("inf")) -> set[str]:
    """The requests that the server had answered completely before a time of its clock."""
    ends = {e.request_id: e.sends_s[-1] for e in log if len(e.sends_s) == len(SLOW.steps)}
    return {str(name) for name, at in ends.items() if at < before_s}


def worker_of(request_id: str | None) -> int:
    """Which of the two workers sends it: they take turns."""
    return int(str(request_id).split("-")[2]) % 2


def known(log: list[Exchange]) -> set[str]:
    """The requests whose answers the workers had read, however late the machine ran them.

    A worker that sends another request has read the answers that were complete before.
    """
    names: set[str] = set()
    for worker in (0, 1):
        own = [exchange for exchange in log if worker_of(exchange.request_id) == worker]
        *_, sent_s, _ = sorted(exchange.received_s for exchange in own)
        names |= answered(own, sent_s - 0.1)
    return names


def by_status(records: Sequence[RequestRecord]) -> dict[str, set[str]]:
    ids: dict[str, set[str]] = {}
    for record in records:
        ids.setdefault(record.status, set()).add(record.request_id)
    return ids


def load_workers(root: int) -> list[int]:
    """The process ids of the load workers below a process."""
    pids = []
    for pid in descendants(root):
        with contextlib.suppress(psutil.Error):
            if "ray::LoadWorker" in " ".join(psutil.Process(pid).cmdline()):
                pids.append(pid)
    return pids


def test_every_request_of_a_dead_worker_is_recorded(tmp_path: Path) -> None:
    run = Run.create(tmp_path, {})

    async def go(base_url: str) -> LoadResult:
        target = remote(base_url, model="scripted", tokenizer="tiny", api_key="sk-other")
        running = start_load(target, LOAD, run=run, progress=None)
        while len(running.records) < 1:
            await asyncio.sleep(0.05)
        victims = load_workers(os.getpid())
        assert len(victims) == 2
        while len(running.records) < 30:
            await asyncio.sleep(0.05)
        os.kill(victims[0], signal.SIGKILL)
        return await running

    with scripted.threaded(SLOW) as server:
        result = asyncio.run(go(server.base_url))
        log = list(server.log)
    recorded = by_status(result.records)
    assert set(recorded) == {"ok", "error"}
    arrived = {str(e.request_id) for e in log}
    assert arrived <= recorded["ok"] | recorded["error"], "every request has a record"
    # A request is in the journal before it is sent: the worker may be killed between the two.
    assert recorded["ok"] <= arrived
    assert len(recorded["error"] - arrived) <= 1
    # Answers that the worker had read were in the journal, reported or not.
    assert known(log) <= recorded["ok"] <= answered(log)
    assert len({worker_of(name) for name in recorded["error"]}) == 1, "the other worker's, too"
    assert {r.error for r in result.records if r.status == "error"} == {
        "the load worker that sent it died"
    }
    assert by_status(list(run.records())) == recorded
    assert "a load worker died" in (result.ended_early or "")
    # The other worker completed its half of 150 requests.
    assert len(recorded["ok"]) > 150
    assert not (run.path / "unsaved").exists()


def test_worker_on_a_lost_node_starts_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = NodeAffinitySchedulingStrategy("1" * 56, soft=False)
    monkeypatch.setattr(workers, "away_from_replicas", lambda number: [gone] * number)
    run = Run.create(tmp_path, {}, run_id="elsewhere")

    async def go(base_url: str) -> LoadResult:
        target = remote(base_url, model="scripted", tokenizer="tiny", api_key="sk-other")
        load = LOAD.model_copy(update={"count": 20})
        return await start_load(target, load, run=run, progress=None)

    with scripted.threaded(SLOW) as server:
        result = asyncio.run(go(server.base_url))
    assert {r.status for r in result.records} == {"ok"}
    assert len(result.records) == 20


KERNEL = """
import asyncio, sys
import workbench as wb
from integration.test_load_faults import LOAD
from workbench.endpoints.remote import remote
run = wb.Run.create(sys.argv[2], {}, run_id="cut")
target = remote(sys.argv[1], model="scripted", tokenizer="tiny", api_key="sk-other")
def on_record(record):
    print("ENDED", flush=True)
async def go():
    await wb.start_load(target, LOAD, run=run, progress=None, on_record=on_record)
asyncio.run(go())
"""


def test_run_of_a_killed_kernel_is_complete(tmp_path: Path) -> None:
    path = os.pathsep.join([str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with scripted.threaded(SLOW) as server:
        kernel = subprocess.Popen(
            [sys.executable, "-c", KERNEL, server.base_url, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert kernel.stdout is not None
        for _ in range(40):
            assert kernel.stdout.readline(), "the load ended before the kernel was killed"
        below = descendants(kernel.pid)
        kernel.kill()
        kernel.communicate()
        assert_gone(below, free_port())
        log = list(server.log)
    recorded = by_status(list(Run.open(tmp_path / "cut").records()))
    assert known(log) <= recorded["ok"] <= answered(log)
    arrived = {e.request_id for e in log}
    assert arrived <= recorded["ok"] | recorded["error"]
    assert recorded["ok"] <= arrived, "a request that did not reach the server has no answer"
    assert not recorded["ok"] & recorded["error"]


def test_full_disk_ends_the_run_and_keeps_its_records(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(disk)])
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        run = Run.create(disk, {}, run_id="full")

        async def go(base_url: str) -> None:
            target = remote(base_url, model="scripted", tokenizer="tiny", api_key="sk-other")
            load = LOAD.model_copy(update={"count": 1000})
            await start_load(target, load, run=run, progress=None)

        with scripted.threaded(SLOW) as server, pytest.raises(RunError) as caught:
            asyncio.run(go(server.base_url))
        message, file = str(caught.value), disk / "full" / "requests.jsonl"
        assert message.startswith(f"{file} cannot be written: No space left on device. ")
        assert message.count(". ") == 1
        kept = list(Run.open(disk / "full").records())
        assert 30 < len(kept) < 1000
        assert file.read_bytes().endswith(b"\n")
        assert {r.request_id for r in kept if r.status == "ok"} <= answered(list(server.log))
        assert len(server.log) < 1000, "the load must stop once records cannot be kept"
        with pytest.raises(RunError, match="No space left"):
            Run.open(disk / "full").finish({"note": "x" * 100_000})
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
