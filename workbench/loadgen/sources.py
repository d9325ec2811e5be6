"""Where a load comes from: a plan, or a rate that a person can change.

A source knows how the share of each worker starts, and how a change of the load applies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from workbench.loadgen.senders import WorkerShare
from workbench.records import LoadChange
from workbench.workload.arrivals import OpenArrivals
from workbench.workload.rate_curve import RateCurve
from workbench.workload.spec import plan_digest

if TYPE_CHECKING:
    from workbench.loadgen.handle import LiveLoad
    from workbench.loadgen.senders import WorkerConfig
    from workbench.loadgen.worker import WorkerReport
    from workbench.loadgen.workers import WorkerHandle
    from workbench.workload.report import WorkloadReport
    from workbench.workload.spec import Arrival, LoadSpec

RECENT_RECORDS = 1000
"""Records of a live load that stay in memory where a run folder keeps them all."""


class LoadSource:
    """Where a load comes from. The methods here are those of a load that cannot be changed."""

    workers: int
    recent_records: int | None = None
    """Records to keep in memory where a run folder keeps them all; None for all."""
    report: WorkloadReport | None = None
    """What is notable about the trace or the prompt file of the load."""

    def start(
        self, handle: WorkerHandle, config: WorkerConfig, index: int, worker_count: int
    ) -> Awaitable[None]:
        """Start the share of worker `index` of `worker_count`."""
        raise NotImplementedError

    def digest(self) -> str:
        """Return the SHA-256 of what is sent."""
        raise NotImplementedError

    def begin(self, start_s: float) -> list[LoadChange]:
        """Return what to log when all workers have started."""
        return []

    def take_requested(self) -> list[LoadChange]:
        """Return the changes that were requested since the last call."""
        return []

    def has_requested(self) -> bool:
        """Return whether a change was requested that the workers do not have yet."""
        return False

    def close(self) -> None:
        """Accept no further changes."""

    def apply(self, change: LoadChange) -> None:
        """Follow a change that the workers apply."""

    def observe(self, reports: Sequence[WorkerReport]) -> list[LoadChange]:
        """Count what workers report, and return what to log."""
        return []

    def end(self, reason: str | None) -> list[LoadChange]:
        """Return what to log at the end of the load."""
        return []


class PlannedSource(LoadSource):
    """A plan that is complete before the load starts."""

    def __init__(self, load: LoadSpec, plan: Sequence[Arrival]) -> None:
        self.report = getattr(plan, "report", None)
        self.workers = load.needed_workers
        self._users: int | None = getattr(load.arrivals, "max_concurrency", None)
        self._plan = plan
        self._numbered = list(enumerate(plan))

    def start(
        self, handle: WorkerHandle, config: WorkerConfig, index: int, worker_count: int
    ) -> Awaitable[None]:
        """Start to send every `worker_count`-th arrival, with a share of a closed loop's users."""
        users = self._users and max(1, len(range(index, self._users, worker_count)))
        handle.config = replace(config, max_concurrency=users)
        handle.share = self._numbered[index::worker_count]
        started: Awaitable[None] = handle.worker.start.remote(handle.config, handle.share)
        return started

    def digest(self) -> str:
        """Return the digest of the plan."""
        return plan_digest(self._plan)


class LiveSource(LoadSource):
    """A rate that starts with a plan and can be changed through a `LiveLoad`."""

    recent_records = RECENT_RECORDS

    def __init__(self, running: LiveLoad, regular_token_ids: Sequence[int], workers: int) -> None:
        self.workers = workers
        self._running = running
        self._regular_token_ids = regular_token_ids

    def start(
        self, handle: WorkerHandle, config: WorkerConfig, index: int, worker_count: int
    ) -> Awaitable[None]:
        """Start to send every `worker_count`-th arrival of the schedule that all workers follow."""
        share = WorkerShare(self._running.load, self._regular_token_ids, index, worker_count)
        started: Awaitable[None] = handle.worker.start_live.remote(config, share)
        return started

    def digest(self) -> str:
        """Return the digest of the load and its changes so far."""
        changes = [(change.what, change.value) for change in self._running.changes]
        content = msgspec.json.encode([self._plan(), changes])
        return hashlib.sha256(content).hexdigest()

    def begin(self, start_s: float) -> list[LoadChange]:
        """Follow the plan from `start_s` on."""
        arrivals = self._running.load.arrivals
        assert isinstance(arrivals, OpenArrivals)
        self._running._curve = RateCurve(arrivals.segments(), start_s)
        self._running.state = "running"
        return self._log(LoadChange(start_s, "start", load=self._plan()))

    def take_requested(self) -> list[LoadChange]:
        """Return the changes that were requested since the last call."""
        requested, self._running._requested = self._running._requested, []
        return requested

    def has_requested(self) -> bool:
        """Return whether a change was requested that the workers do not have yet."""
        return bool(self._running._requested)

    def close(self) -> None:
        """Accept no further changes."""
        self._running.state = "ended"

    def apply(self, change: LoadChange) -> None:
        """Apply `change` to the rate that the handle shows."""
        curve = self._running._curve
        assert curve is not None
        curve.apply(change)
        self._running.state = "paused" if curve.paused else "running"
        self._log(change)

    def observe(self, reports: Sequence[WorkerReport]) -> list[LoadChange]:
        """Count what was sent, and what the client could not send in time."""
        running = self._running
        running.in_progress = sum(report.in_progress for report in reports)
        sent_s = [at_s for report in reports for at_s in report.sent_s]
        dropped = sum(report.dropped for report in reports)
        running.planned += len(sent_s) + dropped
        running.dropped += dropped
        if sent_s and running.on_sent is not None:
            running.on_sent(sent_s)
        if not dropped:
            return []
        reason = "the client could not send as fast as requested"
        return self._log(LoadChange(running.clock(), "late", dropped, reason))

    def end(self, reason: str | None) -> list[LoadChange]:
        """End the load, if it has begun."""
        self.close()
        if self._running._curve is None:
            return []
        return self._log(LoadChange(self._running.clock(), "end", note=reason))

    def _log(self, change: LoadChange) -> list[LoadChange]:
        self._running.changes.append(change)
        return [change]

    def _plan(self) -> dict[str, Any]:
        return self._running.load.model_dump(mode="json")
