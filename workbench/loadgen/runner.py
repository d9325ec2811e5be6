"""One load on its way: its workers, their records as they come, and how it ends."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from serving.errors import EndpointGoneError
from workbench.errors import RunError
from workbench.loadgen.handle import LoadResult, LoadRun
from workbench.loadgen.outcome import UNREACHABLE
from workbench.loadgen.workers import WorkerHandle, start_workers
from workbench.metrics.health import ClientHealth
from workbench.runs import journal
from workbench.workload.spec import LoadSpec, Session, digest

if TYPE_CHECKING:
    from workbench.endpoints.remote import Remote
    from workbench.loadgen.progress import Progress
    from workbench.loadgen.worker import WorkerConfig, WorkerReport
    from workbench.records import RequestRecord
    from workbench.runs.run import Run

POLL_S = 0.25
LEAD_S = 0.5
# So many refused connections in a row, over `LoadSpec.patience_s`: the endpoint is gone.
GONE_AFTER = 5
SETTLE_S = 5.0


@dataclass
class LoadRunner:
    """One load from its first worker to its result."""

    target: Remote
    load: LoadSpec
    sessions: list[Session]
    running: LoadRun
    folder: Run | None
    progress: Progress
    on_record: Callable[[RequestRecord], None] | None
    health: dict[str, float] = field(default_factory=dict)
    failures: list[RequestRecord] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)
    seats: list[WorkerHandle] = field(default_factory=list)
    unwritten: RunError | None = None
    # vLLM refuses two requests of one id at once, so that two runs must differ.
    tag: str = field(default_factory=lambda: f"load-{secrets.token_hex(3)}")

    async def run(self) -> LoadResult:
        with self.progress:
            workers = await self._workers()
            try:
                start_s = await self._begin(workers)
                await self._follow(start_s)
            except BaseException:
                # An interrupted kernel, too, keeps what ended.
                await asyncio.shield(self._end(workers))
                raise
            await self._end(workers)
        if self.unwritten is not None:
            raise self.unwritten
        return self._result()

    async def _workers(self) -> list[Any]:
        import ray

        from serving.cluster import connection

        if connection.current() is None:
            await asyncio.to_thread(connection.connect)
        kind, number = self._wanted()
        actor = ray.remote(num_cpus=0, max_concurrency=100_000)(kind)
        # By a call and not to the constructor, whose arguments the cluster keeps on record.
        key = self.target.api_key.get_secret_value()
        found = await start_workers(
            actor, number, lambda worker: worker.connect.remote(self.target.base_url, key)
        )
        self.seats = [WorkerHandle(worker) for worker in found]
        run = None if self.folder is None else self.folder.path
        names = (f"{self.tag}-{number}" for number in range(len(found)))
        await asyncio.gather(*(s.keep(run, n) for s, n in zip(self.seats, names, strict=True)))
        return found

    def _wanted(self) -> tuple[type, int]:
        """Which workers, and how many."""
        from workbench.loadgen.worker import LoadWorker

        return LoadWorker, self.load.needed_workers

    async def _begin(self, workers: list[Any]) -> float:
        epochs = await asyncio.gather(*(self._epoch(worker) for worker in workers))
        start_s = self.running.start_s = self.running.clock() + LEAD_S
        slots = getattr(self.load.arrivals, "max_concurrency", None)
        numbered = list(enumerate(self.sessions))
        starts = []
        for i, (worker, epoch) in enumerate(zip(workers, epochs, strict=True)):
            share = slots and max(1, len(range(i, slots, len(workers))))
            seat = self.seats[i]
            seat.job, seat.share = self._job(epoch, start_s, share), numbered[i :: len(workers)]
            starts.append(worker.start.remote(seat.job, seat.share))
        await asyncio.gather(*starts)
        return start_s

    def _job(self, epoch_s: float, start_s: float, slots: int | None = None) -> WorkerConfig:
        from workbench.loadgen.worker import WorkerConfig

        return WorkerConfig(
            model=self.target.model_id,
            call=_call(self.load),
            tag=self.tag,
            epoch_s=epoch_s,
            start_s=start_s,
            max_concurrency=slots,
            duration_s=self.load.duration_s,
        )

    async def _epoch(self, worker: Any) -> float:
        """The zero of the run's clock, on the worker's own."""
        from workbench.loadgen.worker import read_clock

        best: tuple[float, float] | None = None
        for _ in range(5):
            before = time.perf_counter()
            boot, theirs = await worker.clock.remote()
            after = time.perf_counter()
            if boot == read_clock()[0]:
                return time.perf_counter() - self.running.clock()
            middle = (before + after) / 2
            best = min(best or (after - before, theirs - middle), (after - before, theirs - middle))
        assert best is not None
        return time.perf_counter() - self.running.clock() + best[1]

    async def _follow(self, start_s: float) -> None:
        done = False
        while not done and self.running._stopped is None:
            await self._steer([seat.worker for seat in self.seats if not seat.died])
            await asyncio.sleep(POLL_S)
            over = self.running.clock() >= start_s + (self.load.duration_s or math.inf)
            reports = await self._reports()
            if over and self.running._most is None:
                self._bound(reports)
            done = all(report.done for report in reports)
            self._take(reports)
            self.progress.show(
                self.running.records,
                sum(report.in_progress for report in reports),
                self.running.clock() - start_s,
            )
            if why := self._gone():
                self.running.stop(why)

    def _bound(self, reports: list[WorkerReport]) -> None:
        """Each user of a closed loop whose time is over waits for one more answer, if at all."""
        slots = getattr(self.load.arrivals, "max_concurrency", None)
        if slots and len(reports) == len(self.seats):
            ended = len(self.running.records) + sum(len(report.records) for report in reports)
            most = ended + max(slots, len(self.seats))
            self.running._most = min(self.running.planned, most)

    async def _steer(self, workers: list[Any]) -> None:
        """Nothing here: a planned load is not changed while it runs."""

    async def _reports(self) -> list[WorkerReport]:
        from ray.exceptions import ActorDiedError, ActorUnavailableError

        alive = [seat for seat in self.seats if not seat.died]
        calls = (seat.worker.report.remote() for seat in alive)
        found = await asyncio.gather(*calls, return_exceptions=True)
        for seat, answer in zip(alive, found, strict=True):
            if isinstance(answer, ActorDiedError):
                await self._lose(seat)
            elif isinstance(answer, ActorUnavailableError):
                continue  # not known to be dead: asked again
            elif isinstance(answer, BaseException):
                raise answer
        return [report for report in found if not isinstance(report, BaseException)]

    async def _lose(self, seat: WorkerHandle) -> None:
        """Record what a dead worker had sent; the others go on with their shares."""
        seat.died, now = True, self.running.clock()
        why = "the load worker that sent it died"
        ended, cut = await seat.left(self._all_records, now, why)
        for record in [*ended, *cut]:
            self._keep(record)
        self.incidents.append(
            f"a load worker died {now:.1f} s into the run: the {len(cut)} requests it had in "
            "progress are recorded as failed, and the rest of its share is not sent"
        )
        self.progress.say(self.incidents[-1])

    def _take(self, reports: list[WorkerReport]) -> None:
        for report in reports:
            for name in ("loop_lag_p99_ms", "cpu_share"):
                if (value := getattr(report, name)) is not None:
                    self.health[name] = max(value, self.health.get(name, 0.0))
            for record in sorted(report.records, key=lambda r: r.end_s or 0):
                self._keep(record)

    def _keep(self, record: RequestRecord) -> None:
        self.running.records.append(record)
        unreachable = record.status == "error" and (record.error or "").startswith(UNREACHABLE)
        self.failures = [*self.failures, record] if unreachable else []
        if self.folder is not None:
            try:
                self.folder.append_request(record)
            except RunError as problem:
                self.unwritten, self.folder = problem, None
                self.running.stop(str(problem))
        if self.on_record is not None:
            self.on_record(record)

    def _gone(self) -> str | None:
        """Why the endpoint counts as gone: nothing but refused connections for a while."""
        if len(self.failures) < GONE_AFTER:
            return None
        first, last = self.failures[0].end_s or 0.0, self.failures[-1].end_s or 0.0
        if last - first < self.load.patience_s:
            return None
        return (
            f"the endpoint stopped answering {first:.1f} s into the run: {self.failures[-1].error}"
        )

    async def _end(self, workers: list[Any]) -> None:
        import ray

        await asyncio.wait_for(
            asyncio.gather(*(w.stop.remote() for w in workers), return_exceptions=True), SETTLE_S
        )
        last = await asyncio.gather(*(w.report.remote() for w in workers), return_exceptions=True)
        self._take([report for report in last if not isinstance(report, BaseException)])
        await asyncio.gather(*(w.forget.remote() for w in workers), return_exceptions=True)
        for worker in workers:
            ray.kill(worker)
        if self.folder is not None:
            with suppress(OSError):  # not empty: a worker's file could not be read
                (self.folder.path / journal.FOLDER).rmdir()

    def _result(self) -> LoadResult:
        from workbench.metrics.summary import summarize

        records = self._all_records()
        lag = summarize(records).client_health.send_lag_p99_ms
        why = self.running._stopped
        if why is not None:
            self.progress.say(f"ended early: {why}")
        if why is not None and not any(r.status == "ok" for r in records) and (self.failures):
            raise EndpointGoneError(f"{self.target.base_url}: {why}. Is it deployed?")
        return LoadResult(
            records=records,
            health=ClientHealth.judge(
                send_lag_p99_ms=lag,
                loop_lag_p99_ms=self.health.get("loop_lag_p99_ms"),
                cpu_share=self.health.get("cpu_share"),
            ),
            planned=self.running.planned,
            digest=digest(self.sessions),
            warmup_s=self.load.warmup_s,
            ended_early=why or "; ".join(self.incidents) or None,
            incidents=self.incidents,
        )

    def _all_records(self) -> Sequence[RequestRecord]:
        return self.running.records


def _call(load: LoadSpec) -> dict[str, Any]:
    return {
        "timeout_s": load.timeout_s,
        "temperature": load.temperature,
        "ignore_eos": load.ignore_eos,
        "tenant": load.tenant,
    }
