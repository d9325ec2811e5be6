"""A load worker: an asyncio loop that sends its share of a load and keeps the records.

It runs as a Ray actor (`workbench.loadgen.runner` starts it), or in any event loop.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.loadgen.client import stream_chat, stream_completion
from workbench.loadgen.senders import (
    LiveSender,
    PlannedSender,
    WorkerConfig,
    WorkerShare,
    is_chat,
)
from workbench.metrics.health import LoopWatch
from workbench.runs.journal import Journal, Sent, open_first
from workbench.workload.prompt import ToolPrompt

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from workbench.endpoints.connection import Connection
    from workbench.records import LoadChange, RequestRecord
    from workbench.workload.prompt import Prompt
    from workbench.workload.spec import Arrival


@dataclass(slots=True)
class WorkerReport:
    """The events since the last report; event-loop lag and CPU share once the work is done.

    `done`: nothing is left to send or to answer. A live load may continue after that, if a person
    changes its rate. For a live load, `sent_s` has the times of the requests sent, and `dropped`
    counts those that could not be sent in time.
    """

    records: list[RequestRecord]
    in_progress: int
    done: bool
    loop_lag_p99_ms: float | None = None
    cpu_share: float | None = None
    sent_s: list[float] = field(default_factory=list)
    dropped: int = 0


def read_clock() -> tuple[str, float]:
    """Return this machine's boot id and `time.perf_counter`, which all its processes share."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), time.perf_counter()


class LoadWorker:
    """Sends its share of a load and hands the records over when asked."""

    def __init__(self) -> None:
        self._records: list[RequestRecord] = []
        self._in_progress = 0
        self._task: asyncio.Task[None] | None = None
        self._watch = LoopWatch()
        self._journal: Journal | None = None
        self._sender: PlannedSender | LiveSender | None = None

    async def open_journal(self, paths: Sequence[str]) -> str | None:
        """Write what is sent and what ends to the first of `paths` that can be written.

        Returns:
            The path of the journal, which survives this process.
        """
        self._journal = open_first(paths)
        return None if self._journal is None else str(self._journal.path)

    async def delete_journal(self) -> None:
        """Remove the journal, because all records have been handed over."""
        if self._journal is not None:
            self._journal.delete()

    async def node(self) -> str:
        """Return the id of the Ray node this worker is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    async def clock(self) -> tuple[str, float]:
        """Return `read_clock()` of this worker's machine."""
        return read_clock()

    async def connect(self, connection: Connection) -> None:
        """Create the client now, so that the first request does not pay for its imports."""
        from openai import AsyncOpenAI, DefaultAioHttpClient

        http = DefaultAioHttpClient(limits=_unlimited(), **connection.client_options())
        self._connection = connection
        self._client: AsyncOpenAI = AsyncOpenAI(
            **connection.openai_options(), http_client=http, max_retries=0
        )

    async def start(self, config: WorkerConfig, arrivals: Sequence[tuple[int, Arrival]]) -> None:
        """Start to send these numbered arrivals of a plan, and return at once."""
        self._start(config, PlannedSender(config, arrivals))

    async def start_live(self, config: WorkerConfig, share: WorkerShare) -> None:
        """Start to send a share of a live load, and return at once."""
        self._start(config, LiveSender(config, share))

    def _start(self, config: WorkerConfig, sender: PlannedSender | LiveSender) -> None:
        freeze_gc()
        self._config, self._sender = config, sender
        self._task = asyncio.create_task(self._run(sender))

    async def apply(self, change: LoadChange) -> None:
        """Apply `change` to a live load, from the time of the change on."""
        assert isinstance(self._sender, LiveSender)
        self._sender.apply(change)

    async def stop(self) -> None:
        """Send nothing more and cut the requests in progress, which are recorded as cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def report(self) -> WorkerReport:
        """Return what happened since the last report, or raise what failed in this worker."""
        records, self._records = self._records, []
        task = self._task
        done = task is not None and task.done()
        if task is not None and done and not task.cancelled():
            task.result()
        if isinstance(self._sender, LiveSender):
            done = done or self._sender.finished
        lag_ms, cpu_share = self._watch.loop_lag_p99_ms, self._watch.cpu_share
        report = WorkerReport(records, self._in_progress, done, lag_ms, cpu_share)
        if isinstance(self._sender, LiveSender):
            report.sent_s, report.dropped = self._sender.take_counts()
        return report

    async def _run(self, sender: PlannedSender | LiveSender) -> None:
        async with self._watch, self._client:
            await sender.run(self)

    async def send(
        self, request_id: str, prompt: Prompt, due_s: float, session: str | None = None
    ) -> RequestRecord:
        """Send one request now. `due_s` is when it should have been sent."""
        config = self._config
        timing: dict[str, Any] = {
            "clock": self.now,
            "scheduled_s": due_s,
            "request_id": request_id,
            "on_record": self._keep,
            "model": config.model,
            "max_tokens": prompt.max_tokens,
            "connection": self._connection,
            "session": session,
        }
        content: Any = prompt.content
        if self._journal is not None:
            tenant = config.call.get("tenant")
            self._journal.append(Sent(request_id, due_s, self.now(), config.model, tenant))
        self._in_progress += 1
        try:
            if is_chat(content):
                call = {**config.call, **config.chat_call}
                if isinstance(prompt, ToolPrompt):
                    call["extra_body"] = {
                        **(call.get("extra_body") or {}),
                        "tools": [*prompt.tools],
                    }
                return await stream_chat(self._client, messages=list(content), **timing, **call)
            text = content if isinstance(content, str) else list(content)
            call = {**config.call, **config.completion_call}
            return await stream_completion(self._client, prompt=text, **timing, **call)
        finally:
            self._in_progress -= 1

    def _keep(self, record: RequestRecord) -> None:
        # Not the list's own `append`: `report` replaces the list while requests are in progress.
        self._records.append(record)
        if self._journal is not None:
            self._journal.append(record)

    def now(self) -> float:
        """Return the time on the run's clock, in seconds."""
        return time.perf_counter() - self._config.epoch_s

    async def sleep_until(self, due_s: float) -> None:
        """Sleep until `due_s` on the run's clock."""
        # In a loop, as a timer may fire up to a millisecond early.
        while (wait_s := due_s - self.now()) > 0:
            await asyncio.sleep(wait_s)


def freeze_gc() -> None:
    """Exclude all existing objects from garbage collection: imports and the plan stay anyway.

    Scanning them every few seconds delayed all streams by a tenth of a second.
    """
    gc.freeze()


def _unlimited() -> Any:
    """Return limits without bound: a connection pool would delay requests unnoticed.

    aiohttp reads 0 as no limit, and None as its default of 100.
    """
    import httpx2

    return httpx2.Limits(max_connections=0)
