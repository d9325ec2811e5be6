"""One load worker: an asyncio loop that sends its share of a plan and keeps the records.

It runs as a Ray actor (`workbench.loadgen.start` makes it one), or in any event loop.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.loadgen.client import stream_chat, stream_completion
from workbench.loadgen.outcome import UNREACHABLE
from workbench.metrics.health import LoopWatch
from workbench.records import RequestRecord
from workbench.runs.journal import Journal, Sent, open_first
from workbench.workload.spec import Session

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from workbench.workload.prompt_generator import Prompt

REFUSED_S = 0.25
"""Before a slot of a closed loop tries again where nobody answers: it would only spin."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What every request of a load has in common. It holds no key: `LoadWorker.connect` gets it.

    `epoch_s` is the zero of the run's clock and `start_s` the start of the load on it.
    """

    model: str
    call: Mapping[str, Any]
    tag: str
    epoch_s: float
    start_s: float
    max_concurrency: int | None = None
    duration_s: float | None = None


@dataclass(slots=True)
class WorkerReport:
    """What has happened since the last report; lag and CPU share once the work is done."""

    records: list[RequestRecord]
    in_progress: int
    done: bool
    loop_lag_p99_ms: float | None = None
    cpu_share: float | None = None


def read_clock() -> tuple[str, float]:
    """Which clock `time.perf_counter` is here (one a boot, for all processes), and its reading."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), time.perf_counter()


class LoadWorker:
    """Sends its share of a plan, when it is due, and hands the records over when asked."""

    def __init__(self) -> None:
        self._records: list[RequestRecord] = []
        self._in_progress = 0
        self._task: asyncio.Task[None] | None = None
        self._watch = LoopWatch()
        self._spool: Journal | None = None

    async def keep(self, places: Sequence[str]) -> str | None:
        """Write what is sent and what ends to the first of these files that can be written.

        Its path is returned: what it has survives this process.
        """
        self._spool = open_first(places)
        return None if self._spool is None else str(self._spool.path)

    async def node(self) -> str:
        """The Ray node this worker is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    async def forget(self) -> None:
        """Remove that file: all records have been handed over."""
        if self._spool is not None:
            self._spool.forget()

    async def clock(self) -> tuple[str, float]:
        return read_clock()

    async def connect(self, base_url: str, api_key: str) -> None:
        """Make the client, and pay for its imports now rather than at the first request."""
        from openai import AsyncOpenAI, DefaultAioHttpClient

        http = DefaultAioHttpClient(limits=_no_limits())
        self._client: AsyncOpenAI = AsyncOpenAI(
            base_url=base_url, api_key=api_key, http_client=http, max_retries=0
        )

    async def start(self, job: WorkerConfig, numbered: Sequence[tuple[int, Session]]) -> None:
        """Begin; returns at once."""
        leave_to_itself()
        self._job = job
        self._task = asyncio.create_task(self._run(list(numbered)))

    async def stop(self) -> None:
        """Send nothing more and cut what is in progress; it is recorded as cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def report(self) -> WorkerReport:
        """What ended since the last report. Raises what went wrong in the worker itself."""
        records, self._records = self._records, []
        task = self._task
        done = task is not None and task.done()
        if task is not None and done and not task.cancelled():
            task.result()
        watch = self._watch
        return WorkerReport(
            records, self._in_progress, done, watch.loop_lag_p99_ms, watch.cpu_share
        )

    async def _run(self, numbered: list[tuple[int, Session]]) -> None:
        async with self._watch, self._client:
            if self._job.max_concurrency is None:
                await self._open_loop(numbered)
            else:
                await self._closed_loop(numbered, self._job.max_concurrency)

    async def _open_loop(self, numbered: list[tuple[int, Session]]) -> None:
        async with asyncio.TaskGroup() as group:
            for number, session in numbered:
                due = self._job.start_s + (session.at_s or 0.0)
                await self._until(due)
                group.create_task(self._session(number, session, due))

    async def _closed_loop(self, numbered: list[tuple[int, Session]], slots: int) -> None:
        work = iter(numbered)
        duration = math.inf if self._job.duration_s is None else self._job.duration_s
        end = self._job.start_s + duration

        async def slot() -> None:
            for number, session in work:
                due = self._now() + session.turns[0].think_s
                if due >= end:
                    return
                await self._until(due)
                await self._session(number, session, due, end)

        await self._until(self._job.start_s)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(slots, len(numbered))):
                group.create_task(slot())

    async def _session(
        self, number: int, session: Session, due: float, end: float = math.inf
    ) -> None:
        for turn, prompt in enumerate(session.turns):
            if turn:
                due = self._now() + prompt.think_s
                if due >= end:
                    return
                await self._until(due)
            record = await self._send(f"{self._job.tag}-{number}-{turn}", prompt, due)
            if record.status != "ok":
                if self._job.max_concurrency and (record.error or "").startswith(UNREACHABLE):
                    await asyncio.sleep(REFUSED_S)
                return  # the conversation is broken: its next turn would follow on nothing

    async def _send(self, request_id: str, prompt: Prompt, due: float) -> RequestRecord:
        timing: dict[str, Any] = {
            "clock": self._now,
            "scheduled_s": due,
            "request_id": request_id,
            "on_record": self._keep,
            "model": self._job.model,
            "max_tokens": prompt.max_tokens,
        }
        content = prompt.content
        if self._spool is not None:
            call = self._job.call
            sent = Sent(request_id, due, self._now(), self._job.model, call.get("tenant"))
            self._spool.note(sent)
        self._in_progress += 1
        try:
            if isinstance(content, str) or isinstance(content[0], int):
                text = content if isinstance(content, str) else list(content)
                return await stream_completion(
                    self._client, prompt=text, **timing, **self._job.call
                )
            return await stream_chat(
                self._client, messages=list(content), **timing, **self._job.call
            )
        finally:
            self._in_progress -= 1

    def _keep(self, record: RequestRecord) -> None:
        # Not the list's own `append`: a report takes the list away while requests are in progress.
        self._records.append(record)
        if self._spool is not None:
            self._spool.note(record)

    def _now(self) -> float:
        return time.perf_counter() - self._job.epoch_s

    async def _until(self, due_s: float) -> None:
        # Again, as timers may ring up to a millisecond early.
        while (wait := due_s - self._now()) > 0:
            await asyncio.sleep(wait)


def leave_to_itself() -> None:
    """Take all that is there out of the garbage collector's sight: imports and plan stay anyhow.

    Every few seconds a look through them held all streams up for a tenth of a second.
    """
    gc.freeze()


def _no_limits() -> Any:
    """As many connections as requests: a pool's limit would hold requests back unseen.

    0 is aiohttp's word for no limit; None would be taken for its default of 100.
    """
    import httpx2

    return httpx2.Limits(max_connections=0)
