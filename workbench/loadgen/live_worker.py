"""A load worker that is steered while it sends: its share of one schedule that all workers follow.

Every worker runs the whole schedule from the same seed and sends each so-many-th arrival of it, so
that together they send what one would, bursts included. A change is dated a moment ahead, and
reaches them all before it acts.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from workbench.loadgen.worker import LoadWorker, WorkerConfig, WorkerReport, leave_to_itself
from workbench.records import LoadChange
from workbench.workload.live_schedule import schedule, steer
from workbench.workload.spec import LoadSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workbench.workload.prompt_generator import Prompt

MOST_LATE_S = 5.0
"""What could not be sent within so long after it was due is left out, and counted."""


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """The load, and which of its arrivals are this worker's: each `of`-th, from `first`.

    `ordinary` has the tokens that prompts are drawn from.
    """

    load: LoadSpec
    ordinary: Sequence[int]
    first: int
    of: int


@dataclass(slots=True)
class LiveReport(WorkerReport):
    """And when requests were sent since the last report, and how many were left out."""

    sent_s: list[float] = field(default_factory=list)
    left_out: int = 0


class LiveWorker(LoadWorker):
    """Sends its share of the arrivals as they fall due, and takes changes meanwhile."""

    async def follow(self, job: WorkerConfig, share: WorkerShare) -> None:
        """Begin; returns at once."""
        import numpy as np

        from workbench.workload.prompt_generator import prompts

        load, tokenizer = share.load, _Ordinary(share.ordinary)
        rng = np.random.default_rng([load.seed, 1, share.first])
        self._job, self._share = job, share
        self._prompts = prompts(load.prompts, tokenizer, rng)  # type: ignore[arg-type]
        self._schedule = schedule(load, job.start_s)
        self._output_tokens: int | None = None
        self._changes: list[LoadChange] = []
        self._changed = asyncio.Event()
        self._sent: list[float] = []
        self._left_out = 0
        leave_to_itself()
        self._task = asyncio.create_task(self._run_live())

    async def change(self, change: LoadChange) -> None:
        """Do as `change` says from its time on."""
        self._changes.append(change)
        self._changed.set()

    async def report(self) -> LiveReport:
        """What happened since the last report. Raises what went wrong in the worker itself."""
        plain = await super().report()
        sent, self._sent = self._sent, []
        left_out, self._left_out = self._left_out, 0
        return LiveReport(
            plain.records,
            plain.in_progress,
            plain.done,
            plain.loop_lag_p99_ms,
            plain.cpu_share,
            sent,
            left_out,
        )

    async def _run_live(self) -> None:
        async with self._watch, self._client, asyncio.TaskGroup() as group:
            number, now = 0, float("-inf")
            while (end := self._end_s()) is None or now < end:
                await self._pass_time()
                self._apply()
                now = self._now()
                while (due := self._next(now)) is not None:
                    if number % self._share.of == self._share.first:
                        self._begin(group, number, due, now)
                    number += 1

    def _next(self, now_s: float) -> float | None:
        """The next arrival that is due and not past the end."""
        end = self._end_s()
        return self._schedule.next(now_s if end is None else min(now_s, end))

    def _begin(self, group: asyncio.TaskGroup, number: int, due: float, now: float) -> None:
        if now - due > MOST_LATE_S:
            self._left_out += 1
            return
        prompt: Prompt = next(self._prompts)
        if self._output_tokens is not None:
            prompt = replace(prompt, max_tokens=self._output_tokens)
        self._sent.append(now)
        group.create_task(self._send(f"{self._job.tag}-{number}", prompt, due))

    def _end_s(self) -> float | None:
        """Where the plan or the load's duration ends, whichever is first."""
        planned, lasts = self._schedule.curve.ends_s, self._share.load.duration_s
        ends = [planned, None if lasts is None else self._job.start_s + lasts]
        return min((end for end in ends if end is not None), default=None)

    async def _pass_time(self) -> None:
        """Until something is due: a request, a change, the end; or a change comes in."""
        times = [self._schedule.due_s, self._end_s(), *(one.time_s for one in self._changes)]
        due = min((at for at in times if at is not None), default=None)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if due is None else max(0.0, due - self._now())):
                await self._changed.wait()
        self._changed.clear()

    def _apply(self) -> None:
        now = self._now()
        for change in [one for one in self._changes if one.time_s <= now]:
            self._changes.remove(change)
            if change.what == "output_tokens" and change.value is not None:
                self._output_tokens = int(change.value)
            else:
                steer(self._schedule, change)


@dataclass(frozen=True, slots=True)
class _Ordinary:
    """All that random prompts need of a tokenizer."""

    ordinary: Sequence[int]
