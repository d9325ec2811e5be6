"""Faults brought about on purpose under load, and what each cost.

A closed loop of load workers sends all the time. A fault ends or stops processes by their ids; the
service has recovered when Serve counts as many running replicas as before, the broken one not among
them, and requests have succeeded for a while. A request is lost when its record is not `ok`;
`elsewhere` counts those that a replica failed which the fault did not touch.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
from _nodes import Nodes

import workbench as wb
from serving.deploy import status
from workbench.records import RequestRecord

STREAMS = 6
LIMIT_S = 400.0
STEADY_S = 3.0
LOAD = wb.LoadSpec(
    arrivals=wb.ClosedLoop(max_concurrency=STREAMS),
    prompts=wb.RandomPrompts(input=24, output=48),
    count=100_000,
    timeout_s=60,
    patience_s=600,
    workers=2,
)


def service_spec(name: str = "faults") -> wb.ServiceSpec:
    """Two replicas of the embedded model, looked at often."""
    model = wb.ModelSpec(
        max_model_len=256,
        kv_cache_gib=0.25,
        health_check_period_s=2,
        health_check_timeout_s=8,
        scaling=wb.ScalingSpec(min_replicas=2, max_replicas=2),
    )
    return wb.ServiceSpec(name=name, port=0, model=model, start_timeout_s=480)


@dataclass(frozen=True)
class Replica:
    """One replica by Serve's account, with its node by our name for it."""

    id: str
    pid: int
    node: str


@dataclass
class Outcome:
    """What one fault cost. Times are seconds since the fault; None where it did not come to that.

    `answered_s`: until the last request that failed had failed; `recovered_s`: until all replicas
    ran again. `left` names the processes of the broken part that were still there at the end.
    """

    fault: str
    victim: str | None
    lost: list[RequestRecord] = field(default_factory=list)
    finished: int = 0
    elsewhere: int = 0
    answered_s: float | None = None
    recovered_s: float | None = None
    left: list[str] = field(default_factory=list)
    ended_early: str | None = None

    def causes(self) -> dict[str, int]:
        """How often each cause of a loss was recorded."""
        return dict(Counter(f"{r.status}: {r.error}" for r in self.lost))


Inject = Callable[["Stage"], list[int]]
"""Brings the fault about; returns the process ids that must be gone once all is well again."""


@dataclass
class Stage:
    """The cluster and the service that faults are played on."""

    cluster: Nodes
    endpoint: wb.Endpoint
    victim: Replica | None = None

    def replicas(self) -> list[Replica]:
        """The replicas that run, by Serve's account."""
        app = status.details()["applications"][self.endpoint.spec.name]
        return [
            Replica(r["replica_id"], r["pid"], self.cluster.name(r["node_id"]))
            for r in app["deployments"][self.endpoint.deployment]["replicas"]
            if str(getattr(r["state"], "value", r["state"])) == "RUNNING" and r.get("pid")
        ]

    def engine(self, name: str) -> list[int]:
        """Processes below the victim's whose name holds `name`."""
        assert self.victim is not None
        below = psutil.Process(self.victim.pid).children(recursive=True)
        return [process.pid for process in below if name in process.name()]


def _end(pids: list[int], how: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        os.kill(pid, how)


def _whole(stage: Stage) -> list[int]:
    assert stage.victim is not None
    return [stage.victim.pid, *stage.engine("VLLM")]


def engine_killed(stage: Stage) -> list[int]:
    """The engine's core process, in the middle of its streams."""
    gone = _whole(stage)
    _end(stage.engine("EngineCor"))
    return gone


def engine_stopped(stage: Stage) -> list[int]:
    """The engine's core process stands still, and nothing says so."""
    gone = _whole(stage)
    _end(stage.engine("EngineCor"), signal.SIGSTOP)
    return gone


def replica_killed(stage: Stage) -> list[int]:
    """The replica's own process."""
    gone = _whole(stage)
    _end(gone[:1])
    return gone


def replica_stopped(stage: Stage) -> list[int]:
    """The replica's own process stands still."""
    gone = _whole(stage)
    _end(gone[:1], signal.SIGSTOP)
    return gone


def controller_killed(stage: Stage) -> list[int]:
    """Ray Serve's controller."""
    return _found(stage, "ray::ServeController")


def proxy_killed(stage: Stage) -> list[int]:
    """HAProxy."""
    return _found(stage, "haproxy")


def load_worker_killed(stage: Stage) -> list[int]:
    """One of the two load workers."""
    return _found(stage, "ray::LoadWorker", only=1)


def node_killed(stage: Stage) -> list[int]:
    """A node, with all that runs there."""
    assert stage.victim is not None
    gone = _whole(stage)
    stage.cluster.kill(stage.victim.node)
    return gone


def _found(stage: Stage, words: str, only: int | None = None) -> list[int]:
    pids = [p.pid for p in stage.cluster.processes(words)][:only]
    assert pids, f"no process {words!r}"
    _end(pids)
    return pids


REPLICA_FAULTS: tuple[Inject, ...] = (
    engine_killed,
    replica_killed,
    engine_stopped,
    replica_stopped,
    node_killed,
)
FAULTS: tuple[Inject, ...] = (
    controller_killed,
    proxy_killed,
    load_worker_killed,
    *REPLICA_FAULTS,
)


async def play(stage: Stage, fault: Inject, run: wb.Run | None = None) -> Outcome:
    """Bring `fault` about under load, wait until all is well again, and count."""
    before = stage.replicas()
    broken = fault in REPLICA_FAULTS
    stage.victim = before[0] if broken else None
    outcome = Outcome(fault.__name__, stage.victim.id if stage.victim else None)
    running = wb.start_load(stage.endpoint, LOAD, run=run, progress=None)
    await _until(lambda: sum(r.status == "ok" for r in running.records) >= 2 * STREAMS)
    at, began = running.clock(), time.monotonic()
    gone = await asyncio.to_thread(fault, stage)
    steady: float | None = None
    while time.monotonic() - began < LIMIT_S:
        await asyncio.sleep(0.25)
        now = running.clock()
        whole = await asyncio.to_thread(_whole_again, stage, len(before))
        bad = [r.end_s or now for r in running.records if _lost(r)]
        good = any(r.status == "ok" and (r.sent_s or 0) > at for r in running.records)
        if not whole or not good:
            steady = None
        elif steady is None:
            steady = now
        elif now - max([steady, *bad]) > STEADY_S:
            outcome.recovered_s = round(steady - at, 1)
            break
    running.stop("the fault is over")
    result = await running
    outcome.lost = [record for record in result.records if _lost(record)]
    outcome.finished = sum(record.status == "ok" for record in result.records)
    ends = [(record.end_s or at) - at for record in outcome.lost]
    outcome.answered_s = round(max(ends, default=0.0), 1)
    healthy = {replica.id for replica in before} - {outcome.victim}
    if broken:
        outcome.elsewhere = sum(record.replica in healthy for record in outcome.lost)
    outcome.left = await asyncio.to_thread(_left, gone)
    outcome.ended_early = "; ".join(result.incidents) or None
    return outcome


def _lost(record: RequestRecord) -> bool:
    return record.status not in ("ok", "cancelled")


def _whole_again(stage: Stage, wanted: int) -> bool:
    try:
        now = stage.replicas()
    except Exception:  # the controller is away
        return False
    victim = stage.victim
    return len(now) == wanted and (victim is None or victim.id not in {r.id for r in now})


async def _until(done: Callable[[], bool], within_s: float = 300.0) -> None:
    deadline = time.monotonic() + within_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("the load did not get going")
        await asyncio.sleep(0.1)


def _left(pids: list[int], within_s: float = 20.0) -> list[str]:
    """The names of those processes that are still there."""
    deadline = time.monotonic() + within_s
    while (left := _alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.25)
    return left


def _alive(pids: list[int]) -> list[str]:
    found = []
    for pid in pids:
        try:
            process: Any = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
        except psutil.Error:
            continue
    return found
