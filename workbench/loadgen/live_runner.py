"""A live load from its first worker to its result: changes go out, records and counts come in."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from workbench.loadgen.handle import LiveLoad, LoadResult
from workbench.loadgen.runner import LEAD_S, LoadRunner
from workbench.records import LoadChange
from workbench.workload.live_schedule import RateCurve

if TYPE_CHECKING:
    from workbench.loadgen.live_worker import LiveReport
    from workbench.records import RequestRecord
    from workbench.runs.run import Run

AHEAD_S = 0.1
"""A change is dated so far ahead, so that every worker has it when it acts."""
RECENT = 1000
"""So many records stay in memory where a run keeps them all."""


class KeptRecords(Sequence["RequestRecord"]):
    """The records in a run's folder, read anew each time they are looked at."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __iter__(self) -> Iterator[RequestRecord]:
        return self._run.records()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


@dataclass
class LiveLoadRunner(LoadRunner):
    """A live load from its first worker to its result."""

    ordinary: Sequence[int] = ()
    needed: int = 1

    async def run(self) -> LoadResult:
        try:
            return await super().run()
        finally:
            self._live.state = "ended"
            why = self.running._stopped
            if self._live._curve is not None:
                self._keep_change(LoadChange(self.running.clock(), "end", note=why))

    @property
    def _live(self) -> LiveLoad:
        assert isinstance(self.running, LiveLoad)
        return self.running

    def _wanted(self) -> tuple[type, int]:
        from workbench.loadgen.live_worker import LiveWorker

        return LiveWorker, self.needed

    async def _begin(self, workers: list[Any]) -> float:
        from workbench.loadgen.live_worker import WorkerShare

        epochs = await asyncio.gather(*(self._epoch(worker) for worker in workers))
        start_s = self.running.clock() + LEAD_S
        starts = []
        for i, (worker, epoch) in enumerate(zip(workers, epochs, strict=True)):
            share = WorkerShare(self.load, self.ordinary, i, len(workers))
            starts.append(worker.follow.remote(self._job(epoch, start_s), share))
        await asyncio.gather(*starts)
        arrivals: Any = self.load.arrivals
        self._live._curve = RateCurve(arrivals.pieces(), start_s)
        self._live.state = "running"
        self._keep_change(LoadChange(start_s, "start", load=self.load.model_dump(mode="json")))
        return start_s

    async def _steer(self, workers: list[Any]) -> None:
        asked, self._live._asked = self._live._asked, []
        for one in asked:
            change = replace(one, time_s=max(one.time_s, self.running.clock()) + AHEAD_S)
            # A worker that has just died is found out, and recorded, with the next reports.
            await asyncio.gather(
                *(worker.change.remote(change) for worker in workers), return_exceptions=True
            )
            self._follow_change(change)
            self._keep_change(change)

    def _follow_change(self, change: LoadChange) -> None:
        curve = self._live._curve
        assert curve is not None
        curve.advance(change.time_s)
        if change.what == "rate" and change.value is not None:
            curve.set_rate(change.value)
        elif change.what in ("pause", "resume"):
            curve.paused = change.what == "pause"
        self._live.state = "paused" if curve.paused else "running"

    def _take(self, reports: Sequence[Any]) -> None:
        live: list[LiveReport] = list(reports)
        self._live.in_progress = sum(report.in_progress for report in live)
        sent = [at for report in live for at in report.sent_s]
        self.running.planned += len(sent)
        if sent and self._live.on_sent is not None:
            self._live.on_sent(sent)
        if left_out := sum(report.left_out for report in live):
            self._live.left_out += left_out
            self.running.planned += left_out
            why = "the client could not send as fast as asked"
            self._keep_change(LoadChange(self.running.clock(), "late", left_out, why))
        super()._take(list(reports))

    def _keep(self, record: RequestRecord) -> None:
        super()._keep(record)
        self._live.ended += 1
        self._live.not_well += record.status != "ok"
        if self.folder is not None:
            # All of them, for an hour or more, would fill the kernel; the folder has them.
            del self.running.records[:-RECENT]

    def _all_records(self) -> Sequence[RequestRecord]:
        return self.running.records if self.folder is None else KeptRecords(self.folder)

    def _keep_change(self, change: LoadChange) -> None:
        self._live.changes.append(change)
        if self.folder is not None:
            self.folder.append_change(change)

    def _result(self) -> LoadResult:
        result = super()._result()
        told = [(change.what, change.value) for change in self._live.changes]
        said = msgspec.json.encode([self.load.model_dump(mode="json"), told])
        result.digest = hashlib.sha256(said).hexdigest()
        return result
