"""Which model gets a request, and which other model does while that one is down or full."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from serving.engine.http_call import Progress, ResponseStart, read_start
from serving.guardrail.guard import RefusedError

HEALTH_MAX_AGE_S = 1.0
"""Age at which the health of the models is read again."""
LAST_POLL_S = 5.0
"""Longest time between two looks at the health of the last candidate."""

StartCall = Callable[[str], Any]
"""Sends the request to a model; returns Serve's response generator, which can be cancelled."""


class ModelState(Enum):
    """Whether a model can answer."""

    RUNNING = "a replica runs"
    STARTING = "no replica runs; one starts, or a request starts one"
    DOWN = "no replica runs, but one should"


class ModelUnavailableError(Exception):
    """A model does not answer this request; another one may."""


@dataclass
class StartedAnswer:
    """An answer whose first packet has arrived.

    Attributes:
        model: The model that answers.
        first: The start of the response.
        rest: Serve's response generator, for the packets that follow.
        started_s: When the replica was called (``time.perf_counter``).
        first_ms: Milliseconds from the call to the first packet.
        skipped: Each model that was tried before, and why it did not answer.
    """

    model: str
    first: ResponseStart
    rest: Any
    started_s: float
    first_ms: float
    skipped: list[str] = field(default_factory=list)


class ModelHealth:
    """Which models have a running replica, according to Serve.

    A model that may sleep has no replica while it sleeps. It is not down: a request wakes it.

    Args:
        read: Returns the state of each model; blocks meanwhile.
    """

    def __init__(self, read: Callable[[], dict[str, ModelState]]) -> None:
        self._read_states = read
        self._states: dict[str, ModelState] = {}
        self._read_at = -HEALTH_MAX_AGE_S
        self._reading: asyncio.Task[None] | None = None

    async def state(self, model: str) -> ModelState:
        """Return the state of a model when last read; read again in the background."""
        if time.monotonic() - self._read_at > HEALTH_MAX_AGE_S and self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(lambda _: setattr(self, "_reading", None))
            if self._read_at < 0:
                await self._reading
        return self._states.get(model, ModelState.RUNNING)

    async def is_down(self, model: str) -> bool:
        """Return whether a model is down."""
        return await self.state(model) is ModelState.DOWN

    async def _read(self) -> None:
        try:
            states = await asyncio.to_thread(self._read_states)
        except Exception:
            states = {}  # the controller restarts: no model is known to be down
        self._read_at = time.monotonic()
        self._states = states


class Dispatcher:
    """Sends a request to the first of its candidates that accepts it.

    Args:
        capacity: Concurrent requests through this process, by model.
        health: Which models are down.
        retry_after_s: Seconds in the Retry-After header.
        queue_timeout_s: Seconds that a request waits while its last candidate has no replica.
    """

    def __init__(
        self,
        capacity: dict[str, int],
        health: ModelHealth,
        retry_after_s: int,
        queue_timeout_s: float,
    ) -> None:
        self._capacity, self._health = capacity, health
        self._retry_after_s, self._queue_timeout_s = retry_after_s, queue_timeout_s
        self.running: Counter[str] = Counter()

    async def send(
        self,
        candidates: Sequence[str],
        start: StartCall,
        on_progress: Callable[[Progress], None],
    ) -> StartedAnswer:
        """Return the start of an answer from the first candidate that gives one.

        The caller must call :meth:`finish` with its model. A failure is a reason to try the next
        candidate; the last one's failure is raised. ``on_progress`` is called with what the model
        reports before its answer starts.

        Raises:
            RefusedError: No candidate accepts it: 429 if all are full, else 503.
        """
        skipped: list[str] = []
        for number, model in enumerate(candidates):
            is_last = number == len(candidates) - 1
            try:
                answer = await self._try(model, start, on_progress, is_last=is_last)
                answer.skipped = skipped
                return answer
            except ModelUnavailableError as error:
                skipped.append(f"{model}: {error}")
        full = all(reason.endswith(": saturated") for reason in skipped)
        raise RefusedError(
            f"No model accepts this request now ({'; '.join(skipped)}). "
            f"Try again in {self._retry_after_s} s.",
            "rate_limit_exceeded" if full else "model_unavailable",
            429 if full else 503,
            {"retry-after": str(self._retry_after_s)},
        )

    def finish(self, model: str) -> None:
        """Count a request that ``model`` accepted as ended."""
        self.running[model] -= 1

    async def _try(
        self,
        model: str,
        start: StartCall,
        on_progress: Callable[[Progress], None],
        *,
        is_last: bool,
    ) -> StartedAnswer:
        if self.running[model] >= self._capacity[model]:
            raise ModelUnavailableError("saturated")
        if not is_last and await self._health.is_down(model):
            raise ModelUnavailableError("down")
        started = time.perf_counter()
        self.running[model] += 1
        try:
            first, rest = await self._first_packet(model, start, on_progress, is_last)
        except BaseException:
            self.finish(model)
            raise
        return StartedAnswer(model, first, rest, started, (time.perf_counter() - started) * 1e3)

    async def _first_packet(
        self,
        model: str,
        start: StartCall,
        on_progress: Callable[[Progress], None],
        is_last: bool,
    ) -> tuple[ResponseStart, Any]:
        """Wait for the start of the response."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        response = start(model)
        task = asyncio.ensure_future(read_start(response, on_progress))
        try:
            await self._wait_while_up(model, task, is_last)
            first = task.result()
        except BackPressureError:
            raise ModelUnavailableError("saturated") from None
        except (RayError, RayServeException) as error:
            if is_last and isinstance(error, RayTaskError):
                raise  # the request itself may be the cause
            raise ModelUnavailableError(f"failed ({type(error).__name__})") from None
        finally:
            if not task.done():
                task.cancel()
                response.cancel()
        if not is_last and first.status >= 500:
            raise ModelUnavailableError("failed")
        return first, response

    async def _wait_while_up(self, model: str, task: asyncio.Future[Any], is_last: bool) -> None:
        """Wait for ``task`` while the model may still answer.

        The last candidate may be without a replica for a while, since there is no other one.

        Raises:
            ModelUnavailableError: It is down, or has had no running replica for too long.
        """
        poll_s = min(LAST_POLL_S, self._queue_timeout_s / 10) if is_last else HEALTH_MAX_AGE_S
        up_at = time.monotonic()
        while True:
            await asyncio.wait({task}, timeout=poll_s)
            if task.done():
                return
            state = await self._health.state(model)
            if state is ModelState.DOWN and not is_last:
                raise ModelUnavailableError("down")
            if state is ModelState.RUNNING:
                up_at = time.monotonic()
            elif time.monotonic() - up_at >= self._queue_timeout_s:
                raise ModelUnavailableError(f"no replica ran for {self._queue_timeout_s:g} s")
