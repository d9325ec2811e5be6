"""Run one load: start its workers, collect their records, and decide how it ends."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from serving.errors import EndpointGoneError
from workbench.errors import RunError
from workbench.loadgen.accepted import Calls
from workbench.loadgen.handle import LoadResult, LoadRun, StoredRecords, interrupted
from workbench.loadgen.outcome import UNREACHABLE
from workbench.loadgen.pool import WorkerPool
from workbench.metrics.health import ClientHealth
from workbench.runs import journal

if TYPE_CHECKING:
    from workbench.endpoints.remote import Remote
    from workbench.loadgen.progress import Progress
    from workbench.loadgen.sources import LoadSource
    from workbench.loadgen.worker import WorkerReport
    from workbench.loadgen.workers import WorkerHandle
    from workbench.records import LoadChange, RequestRecord
    from workbench.runs.run import Run
    from workbench.workload.spec import LoadSpec

REPORT_EVERY_S = 0.25
START_LEAD_S = 0.5
"""Seconds from the last call to a worker to the start of the load."""
CHANGE_LEAD_S = 0.1
"""Seconds ahead of now that a change is dated, so that every worker has it in time."""
GONE_AFTER = 5
"""Refused connections in a row, over `LoadSpec.patience_s`, after which the endpoint is gone."""


@dataclass
class LoadRunner:
    """One load from its first worker to its result."""

    target: Remote
    load: LoadSpec
    source: LoadSource
    running: LoadRun
    folder: Run | None
    progress: Progress
    on_record: Callable[[RequestRecord], None] | None
    calls: Calls = field(default_factory=Calls)
    health: dict[str, float] = field(default_factory=dict)
    refused: list[RequestRecord] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)
    noted: Counter[str] = field(default_factory=Counter)
    pool: WorkerPool = field(default_factory=WorkerPool)
    unwritten: RunError | None = None
    # vLLM refuses two requests with one id at a time, so the ids of two loads must differ.
    tag: str = field(default_factory=lambda: f"load-{secrets.token_hex(3)}")

    async def run(self) -> LoadResult:
        """Run the load and return its result.

        Raises:
            EndpointGoneError: Nothing was answered, because the endpoint does not exist.
            RunError: The run folder could not be written.
        """
        try:
            with self.progress:
                workload_notes = self.source.report.notes if self.source.report else ()
                for note in (*workload_notes, *self.calls.notes):
                    self.progress.show_line(note)
                await self._send_or_say_interrupted()
            if self.unwritten is not None:
                raise self.unwritten
            return self._result()
        finally:
            self._log(self.source.end(self.running._stopped))

    async def _send_or_say_interrupted(self) -> None:
        try:
            await self._send()
        except asyncio.CancelledError:
            elapsed_s = self.running.clock() - (self.running.start_s or 0.0)
            self.progress.show(self.running.records, 0, elapsed_s)
            self.progress.show_line(interrupted(self.running.cancelled))
            raise

    async def _send(self) -> None:
        folder = None if self.folder is None else self.folder.path
        await self.pool.start(self.target, self.source.workers, folder, self.tag)
        try:
            await self._start()
            await self._follow()
        finally:
            # The requests that ended are kept even if the kernel is interrupted.
            await asyncio.shield(self._end())

    async def _start(self) -> None:
        from workbench.loadgen.senders import WorkerConfig

        epochs_s = await self.pool.epochs_s(self.running.clock)
        start_s = self.running.start_s = self.running.clock() + START_LEAD_S
        config = WorkerConfig(
            model=self.target.model_id,
            call=_call_options(self.load) | {"extra_body": self.target.extra_body},
            chat_call=self.calls.chat,
            completion_call=self.calls.completion,
            tag=self.tag,
            epoch_s=0.0,
            start_s=start_s,
            duration_s=self.load.duration_s,
            sessions=self.target.sessions,
        )
        handles = self.pool.handles
        await asyncio.gather(
            *(
                self.source.start(handle, replace(config, epoch_s=epoch_s), index, len(handles))
                for index, (handle, epoch_s) in enumerate(zip(handles, epochs_s, strict=True))
            )
        )
        self._log(self.source.begin(start_s))

    async def _follow(self) -> None:
        start_s = self.running.start_s or 0.0
        done = False
        while not done and self.running._stopped is None:
            await self._apply_changes()
            await asyncio.sleep(REPORT_EVERY_S)
            over = self.running.clock() >= start_s + (self.load.duration_s or math.inf)
            reports = await self.pool.reports(self._recover)
            if over and self.running._at_most is None:
                self._limit_remaining(reports)
            # A person may have changed the load while the reports were on their way.
            done = all(report.done for report in reports) and not self.source.has_requested()
            self._take(reports)
            self.progress.show(
                self.running.records,
                sum(report.in_progress for report in reports),
                self.running.clock() - start_s,
            )
            if reason := self._gone():
                self.running.stop(reason)

    async def _apply_changes(self) -> None:
        for requested in self.source.take_requested():
            time_s = max(requested.time_s, self.running.clock()) + CHANGE_LEAD_S
            change = replace(requested, time_s=time_s)
            await self.pool.apply(change)
            self.source.apply(change)
            self._log([change])

    def _log(self, changes: Sequence[LoadChange]) -> None:
        for change in changes:
            if self.folder is not None:
                self.folder.append_change(change)

    def _limit_remaining(self, reports: list[WorkerReport]) -> None:
        """After the duration of a closed loop, each user waits for one more answer at most."""
        users = getattr(self.load.arrivals, "max_concurrency", None)
        if users and len(reports) == len(self.pool.handles):
            ended = len(self.running.records) + sum(len(report.records) for report in reports)
            at_most = ended + max(users, len(self.pool.handles))
            self.running._at_most = min(self.running.planned, at_most)

    async def _recover(self, handle: WorkerHandle) -> None:
        """Record what a dead worker had sent. The others continue with their shares."""
        now_s = self.running.clock()
        reason = "the load worker that sent it died"
        ended, cut = await handle.recover(self._records, now_s, reason)
        for record in [*ended, *cut]:
            self._keep(record)
        self.incidents.append(
            f"a load worker died {now_s:.1f} s into the run: the {len(cut)} requests it had in "
            "progress are recorded as failed, and the rest of its share is not sent"
        )
        self.progress.show_line(self.incidents[-1])

    def _take(self, reports: list[WorkerReport]) -> None:
        self._log(self.source.observe(reports))
        for report in reports:
            for name in ("loop_lag_p99_ms", "cpu_share"):
                if (value := getattr(report, name)) is not None:
                    self.health[name] = max(value, self.health.get(name, 0.0))
            for record in sorted(report.records, key=lambda record: record.end_s or 0):
                self._keep(record)

    def _keep(self, record: RequestRecord) -> None:
        self.running.add(record)
        if record.note:
            self.noted[record.note] += 1
        unreachable = record.status == "error" and (record.error or "").startswith(UNREACHABLE)
        self.refused = [*self.refused, record] if unreachable else []
        if self.folder is not None:
            try:
                self.folder.append_request(record)
            except RunError as problem:
                self.unwritten, self.folder = problem, None
                self.running.stop(str(problem))
        if self.on_record is not None:
            self.on_record(record)
        if self.folder is not None and self.source.recent_records is not None:
            # All records of an hour or more would fill the kernel's memory; the folder has them.
            del self.running.records[: -self.source.recent_records]

    def _gone(self) -> str | None:
        """Return why the endpoint counts as gone, after only refused connections for a while."""
        if len(self.refused) < GONE_AFTER:
            return None
        first_s, last_s = self.refused[0].end_s or 0.0, self.refused[-1].end_s or 0.0
        if last_s - first_s < self.load.patience_s:
            return None
        return (
            f"the endpoint stopped answering {first_s:.1f} s into the run: {self.refused[-1].error}"
        )

    async def _end(self) -> None:
        self.source.close()
        self._take(await self.pool.stop())
        await self.pool.close()
        if self.folder is not None:
            with suppress(OSError):  # Not empty: a worker's journal could not be read.
                (self.folder.path / journal.FOLDER).rmdir()

    def _result(self) -> LoadResult:
        from workbench.metrics.summary import summarize

        records = self._records()
        reason = self.running._stopped
        if reason is not None:
            self.progress.show_line(f"ended early: {reason}")
            if self.refused and not any(record.status == "ok" for record in records):
                raise EndpointGoneError(f"{self.target.base_url}: {reason}. Is it deployed?")
        irregular = [
            f"{count} requests count as complete although {note}"
            for note, count in self.noted.items()
        ]
        for line in irregular:
            self.progress.show_line(line)
        return LoadResult(
            records=records,
            health=ClientHealth.judge(
                send_lag_p99_ms=summarize(records).client_health.send_lag_p99_ms,
                loop_lag_p99_ms=self.health.get("loop_lag_p99_ms"),
                cpu_share=self.health.get("cpu_share"),
            ),
            planned=self.running.planned,
            digest=self.source.digest(),
            warmup_s=self.load.warmup_s,
            ended_early=reason or "; ".join(self.incidents) or None,
            incidents=self.incidents,
            workload=None if self.source.report is None else self.source.report.as_dict(),
            notes=[*self.calls.notes, *irregular],
        )

    def _records(self) -> Sequence[RequestRecord]:
        if self.folder is None or self.source.recent_records is None:
            return self.running.records
        return StoredRecords(self.folder)


def _call_options(load: LoadSpec) -> dict[str, Any]:
    return {
        "timeout_s": load.timeout_s,
        "temperature": load.temperature,
        "ignore_eos": load.ignore_eos,
        "tenant": load.tenant,
    }
