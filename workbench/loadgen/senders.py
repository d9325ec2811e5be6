"""The senders of a load worker: a share of a plan, or of a schedule that can be changed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from workbench.loadgen.outcome import UNREACHABLE
from workbench.workload.arrivals import OpenArrivals
from workbench.workload.schedule import LiveSchedule

if TYPE_CHECKING:
    from workbench.records import LoadChange, RequestRecord
    from workbench.workload.prompt import Prompt
    from workbench.workload.spec import Arrival, LoadSpec

UNREACHABLE_PAUSE_S = 0.25
"""Pause of a user of a closed loop after a refused connection, so that it does not spin."""

MAX_DELAY_S = 5.0
"""A request of a live load that is this late is dropped, and counted."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The common part of all requests of a load, without the key (see `LoadWorker.connect`).

    `epoch_s` is the zero of the run's clock on the worker's own clock, and `start_s` the start of
    the load on the run's clock. `call` has arguments for every request, `chat_call` and
    `completion_call` those for one route, which take precedence. With `sessions`, all turns of a
    conversation are sent with the same session.
    """

    model: str
    call: Mapping[str, Any]
    tag: str
    epoch_s: float
    start_s: float
    max_concurrency: int | None = None
    duration_s: float | None = None
    chat_call: Mapping[str, Any] = field(default_factory=dict)
    completion_call: Mapping[str, Any] = field(default_factory=dict)
    sessions: bool = False

    def session(self, conversation: int, prompt: Prompt) -> str | None:
        """Return the session to send with a turn of a conversation, if the endpoint reads it."""
        if not self.sessions or prompt.conversation is None:
            return None
        return f"{self.tag}-{conversation}"


def is_chat(content: Any) -> bool:
    """Return whether the content of a prompt is the messages of a chat."""
    return not isinstance(content, str) and not isinstance(content[0], int)


class Worker(Protocol):
    """The methods of a load worker that a sender uses."""

    async def send(
        self, request_id: str, prompt: Prompt, due_s: float, session: str | None = None
    ) -> RequestRecord:
        """Send one request now."""
        ...

    def now(self) -> float:
        """Return the time on the run's clock, in seconds."""
        ...

    async def sleep_until(self, due_s: float) -> None:
        """Sleep until `due_s` on the run's clock."""
        ...


class PlannedSender:
    """Sends the arrivals of a plan: when they are due, or in a closed loop."""

    def __init__(self, config: WorkerConfig, arrivals: Sequence[tuple[int, Arrival]]) -> None:
        self._config = config
        self._arrivals = list(arrivals)

    async def run(self, worker: Worker) -> None:
        """Send everything and wait for the answers."""
        if self._config.max_concurrency is None:
            await self._open_loop(worker)
        else:
            await self._closed_loop(worker, self._config.max_concurrency)

    async def _open_loop(self, worker: Worker) -> None:
        async with asyncio.TaskGroup() as group:
            for number, arrival in self._arrivals:
                due_s = self._config.start_s + (arrival.at_s or 0.0)
                await worker.sleep_until(due_s)
                group.create_task(self._send_turns(worker, number, arrival, due_s))

    async def _closed_loop(self, worker: Worker, users: int) -> None:
        pending = iter(self._arrivals)
        config = self._config
        end_s = config.start_s + (math.inf if config.duration_s is None else config.duration_s)

        async def user() -> None:
            for number, arrival in pending:
                due_s = worker.now() + arrival.turns[0].think_s
                if due_s >= end_s:
                    return
                await worker.sleep_until(due_s)
                await self._send_turns(worker, number, arrival, due_s, end_s)

        await worker.sleep_until(config.start_s)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(users, len(self._arrivals))):
                group.create_task(user())

    async def _send_turns(
        self, worker: Worker, number: int, arrival: Arrival, due_s: float, end_s: float = math.inf
    ) -> None:
        for turn, prompt in enumerate(arrival.turns):
            if turn:
                due_s = worker.now() + prompt.think_s
                if due_s >= end_s:
                    return
                await worker.sleep_until(due_s)
            request_id = f"{self._config.tag}-{number}-{turn}"
            session = self._config.session(number, prompt)
            record = await worker.send(request_id, prompt, due_s, session)
            if record.status != "ok":
                if self._config.max_concurrency and (record.error or "").startswith(UNREACHABLE):
                    await asyncio.sleep(UNREACHABLE_PAUSE_S)
                return  # The history of the next turn would lack this answer.


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """One worker's share of a live load: every `worker_count`-th arrival, starting at `first`.

    The prompts are drawn from `regular_token_ids`.
    """

    load: LoadSpec
    regular_token_ids: Sequence[int]
    first: int
    worker_count: int


class LiveSender:
    """Sends a share of the arrivals when they are due, and applies changes meanwhile.

    Every worker follows the whole schedule from the same seed and sends every `worker_count`-th
    arrival, so that all workers together send what one would, bursts included. A change is dated
    slightly ahead and reaches all workers before it acts.

    At the end of the plan it waits for further changes, because a person may set another rate while
    the last answers arrive. It ends when it is cancelled.
    """

    def __init__(self, config: WorkerConfig, share: WorkerShare) -> None:
        import numpy as np

        from workbench.workload.prompt_generator import generate_prompts

        load = share.load
        assert isinstance(load.arrivals, OpenArrivals)
        self._config, self._share = config, share
        rng = np.random.default_rng([load.seed, 1, share.first])
        tokenizer = _TokenIds(share.regular_token_ids)
        self._prompts = generate_prompts(load.prompts, tokenizer, rng)  # type: ignore[arg-type]
        self._schedule = LiveSchedule.from_arrivals(load.arrivals, load.seed, config.start_s)
        self._output_tokens: int | None = None
        self._changes: list[LoadChange] = []
        self._changed = asyncio.Event()
        self._sent_s: list[float] = []
        self._dropped = 0
        self._in_progress: set[asyncio.Task[RequestRecord]] = set()
        self._now_s, self._number = -math.inf, 0

    @property
    def finished(self) -> bool:
        """Whether the load is over, no change waits, and every request has been answered."""
        end_s = self._end_s()
        over = end_s is not None and self._now_s >= end_s
        return over and not self._changes and not self._in_progress

    def apply(self, change: LoadChange) -> None:
        """Apply `change` from its time on."""
        self._changes.append(change)
        self._changed.set()

    def take_counts(self) -> tuple[list[float], int]:
        """Return the times of requests sent since the last call, and the number dropped."""
        sent_s, self._sent_s = self._sent_s, []
        dropped, self._dropped = self._dropped, 0
        return sent_s, dropped

    async def run(self, worker: Worker) -> None:
        """Send, and follow changes, until this is cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._wait(worker)
                self._now_s = worker.now()
                for change in [c for c in self._changes if c.time_s <= self._now_s]:
                    self._send_until(worker, group, change.time_s)
                    self._skip_until(change.time_s)
                    self._apply(change)
                self._send_until(worker, group, self._now_s)

    def _send_until(self, worker: Worker, group: asyncio.TaskGroup, at_s: float) -> None:
        while (due_s := self._next(at_s)) is not None:
            if self._number % self._share.worker_count == self._share.first:
                self._send(worker, group, self._number, due_s)
            self._number += 1

    def _skip_until(self, at_s: float) -> None:
        """Leave out the arrivals between the end of the load's duration and `at_s`."""
        end_s = self._end_s()
        if end_s is not None and end_s < at_s:
            while self._schedule.next(at_s) is not None:
                pass

    def _next(self, at_s: float) -> float | None:
        """Take the next arrival that is due at `at_s` and not past the end."""
        end_s = self._end_s()
        return self._schedule.next(at_s if end_s is None else min(at_s, end_s))

    def _send(self, worker: Worker, group: asyncio.TaskGroup, number: int, due_s: float) -> None:
        if self._now_s - due_s > MAX_DELAY_S:
            self._dropped += 1
            return
        prompt: Prompt = next(self._prompts)
        if self._output_tokens is not None:
            prompt = replace(prompt, max_tokens=self._output_tokens)
        self._sent_s.append(self._now_s)
        task = group.create_task(worker.send(f"{self._config.tag}-{number}", prompt, due_s))
        self._in_progress.add(task)
        task.add_done_callback(self._in_progress.discard)

    def _end_s(self) -> float | None:
        """Return the end of the plan or of the load's duration, whichever is first.

        There is none after a person took over, or while the load is paused.
        """
        curve, duration_s = self._schedule.curve, self._share.load.duration_s
        if not curve.follows_plan:
            return None
        ends = [curve.ends_s, None if duration_s is None else self._config.start_s + duration_s]
        return min((end_s for end_s in ends if end_s is not None), default=None)

    async def _wait(self, worker: Worker) -> None:
        """Wait until a request, a change or the end is due, or a new change arrives."""
        end_s = self._end_s()
        if end_s is not None and self._now_s >= end_s:  # nothing more is due, only changes
            times: list[float | None] = []
        else:
            times = [self._schedule.due_s, end_s]
        times += [change.time_s for change in self._changes]
        due_s = min((at_s for at_s in times if at_s is not None), default=None)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if due_s is None else max(0.0, due_s - worker.now())):
                await self._changed.wait()
        self._changed.clear()

    def _apply(self, change: LoadChange) -> None:
        self._changes.remove(change)
        if change.what == "output_tokens" and change.value is not None:
            self._output_tokens = int(change.value)
        else:
            self._schedule.apply(change)


@dataclass(frozen=True, slots=True)
class _TokenIds:
    """The part of a tokenizer that random prompts need."""

    regular_token_ids: Sequence[int]
