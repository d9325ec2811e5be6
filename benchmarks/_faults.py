"""Inject faults under load, and measure what each one costs.

A closed loop of load workers sends requests all the time. A fault kills or stops processes by their
ids. The service has recovered when Serve reports as many running replicas as before without the
broken one, and requests have succeeded for a while. A request is lost if its record is not `ok`;
`elsewhere` counts lost requests at replicas that the fault did not touch.
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
RECOVERY_LIMIT_S = 400.0
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
    """Return a service with two replicas of the embedded model and frequent health checks."""
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
    """One replica as Serve reports it, with the name of its node in this cluster."""

    id: str
    pid: int
    node: str


@dataclass
class Outcome:
    """The cost of one fault. Times are seconds since the fault, or None if that never happened.

    `answered_s` is the time until the last lost request had failed, and `recovered_s` until all
    replicas ran again. `left` names processes of the broken part that still existed at the end.
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
        """Return how often each cause of a loss was recorded."""
        return dict(Counter(f"{r.status}: {r.error}" for r in self.lost))


Inject = Callable[["Target"], list[int]]
"""Injects a fault, and returns the ids of the processes that must be gone after recovery."""


@dataclass
class Target:
    """The cluster and the service that faults are injected into."""

    cluster: Nodes
    endpoint: wb.Endpoint
    victim: Replica | None = None

    def replicas(self) -> list[Replica]:
        """Return the running replicas, as Serve reports them."""
        app = status.details()["applications"][self.endpoint.spec.name]
        return [
            Replica(r["replica_id"], r["pid"], self.cluster.name(r["node_id"]))
            for r in app["deployments"][self.endpoint.deployment]["replicas"]
            if str(getattr(r["state"], "value", r["state"])) == "RUNNING" and r.get("pid")
        ]

    def engine(self, name: str) -> list[int]:
        """Return descendants of the victim whose process name contains `name`."""
        assert self.victim is not None
        children = psutil.Process(self.victim.pid).children(recursive=True)
        return [process.pid for process in children if name in process.name()]


def _signal(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        os.kill(pid, number)


def _replica_pids(target: Target) -> list[int]:
    assert target.victim is not None
    return [target.victim.pid, *target.engine("VLLM")]


def engine_killed(target: Target) -> list[int]:
    """Kill the engine's core process while it streams."""
    gone = _replica_pids(target)
    _signal(target.engine("EngineCor"))
    return gone


def engine_stopped(target: Target) -> list[int]:
    """Stop the engine's core process, so that it hangs without an error."""
    gone = _replica_pids(target)
    _signal(target.engine("EngineCor"), signal.SIGSTOP)
    return gone


def replica_killed(target: Target) -> list[int]:
    """Kill the replica's own process."""
    gone = _replica_pids(target)
    _signal(gone[:1])
    return gone


def replica_stopped(target: Target) -> list[int]:
    """Stop the replica's own process, so that it hangs."""
    gone = _replica_pids(target)
    _signal(gone[:1], signal.SIGSTOP)
    return gone


def controller_killed(target: Target) -> list[int]:
    """Kill Ray Serve's controller."""
    return _kill(target, "ray::ServeController")


def proxy_killed(target: Target) -> list[int]:
    """Kill HAProxy."""
    return _kill(target, "haproxy")


def load_worker_killed(target: Target) -> list[int]:
    """Kill one of the two load workers."""
    return _kill(target, "ray::LoadWorker", count=1)


def node_killed(target: Target) -> list[int]:
    """Kill a node with everything that runs on it."""
    assert target.victim is not None
    gone = _replica_pids(target)
    target.cluster.kill(target.victim.node)
    return gone


def _kill(target: Target, name: str, count: int | None = None) -> list[int]:
    pids = [p.pid for p in target.cluster.processes(name)][:count]
    assert pids, f"no process {name!r}"
    _signal(pids)
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


async def inject(target: Target, fault: Inject, run: wb.Run | None = None) -> Outcome:
    """Inject a fault under load, wait for recovery, and return its cost."""
    before = target.replicas()
    broken = fault in REPLICA_FAULTS
    target.victim = before[0] if broken else None
    outcome = Outcome(fault.__name__, target.victim.id if target.victim else None)
    running = wb.start_load(target.endpoint, LOAD, run=run, progress=None)
    await wait_until(lambda: sum(r.status == "ok" for r in running.records) >= 2 * STREAMS)
    fault_s, started = running.clock(), time.monotonic()
    gone = await asyncio.to_thread(fault, target)
    steady: float | None = None
    while time.monotonic() - started < RECOVERY_LIMIT_S:
        await asyncio.sleep(0.25)
        now = running.clock()
        complete = await asyncio.to_thread(_has_recovered, target, len(before))
        failed = [r.end_s or now for r in running.records if _lost(r)]
        succeeded = any(r.status == "ok" and (r.sent_s or 0) > fault_s for r in running.records)
        if not complete or not succeeded:
            steady = None
        elif steady is None:
            steady = now
        elif now - max([steady, *failed]) > STEADY_S:
            outcome.recovered_s = round(steady - fault_s, 1)
            break
    running.stop("the fault is over")
    result = await running
    outcome.lost = [record for record in result.records if _lost(record)]
    outcome.finished = sum(record.status == "ok" for record in result.records)
    ends = [(record.end_s or fault_s) - fault_s for record in outcome.lost]
    outcome.answered_s = round(max(ends, default=0.0), 1)
    healthy = {replica.id for replica in before} - {outcome.victim}
    if broken:
        outcome.elsewhere = sum(record.replica in healthy for record in outcome.lost)
    outcome.left = await asyncio.to_thread(_remaining, gone)
    outcome.ended_early = "; ".join(result.incidents) or None
    return outcome


def _lost(record: RequestRecord) -> bool:
    return record.status not in ("ok", "cancelled")


def _has_recovered(target: Target, count: int) -> bool:
    try:
        now = target.replicas()
    except Exception:  # the controller does not answer
        return False
    victim = target.victim
    return len(now) == count and (victim is None or victim.id not in {r.id for r in now})


async def wait_until(done: Callable[[], bool], within_s: float = 300.0) -> None:
    deadline = time.monotonic() + within_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("no requests have succeeded; see the load workers' errors")
        await asyncio.sleep(0.1)


def _remaining(pids: list[int], within_s: float = 20.0) -> list[str]:
    """Return the names of the processes that still exist after a while."""
    deadline = time.monotonic() + within_s
    while (names := _alive(pids)) and time.monotonic() < deadline:
        time.sleep(0.25)
    return names


def _alive(pids: list[int]) -> list[str]:
    names = []
    for pid in pids:
        try:
            process: Any = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                names.append(process.name())
        except psutil.Error:
            continue
    return names
