"""Which model gets a request, and which other model does while that one is down or full."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.engine.http_call import ResponseStart
from serving.guardrail.guard import RefusedError

HEALTH_MAX_AGE_S = 1.0
"""Age at which the health of the models is read again."""

StartCall = Callable[[str], Any]
"""Sends the request to a model; returns Serve's response generator, which can be cancelled."""


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
    """Which models have no running replica, according to Serve.

    A model that may sleep has no replica while it sleeps. It is not down: a request wakes it.

    Args:
        read_down: Returns for each model whether it is down; blocks meanwhile.
    """

    def __init__(self, read_down: Callable[[], dict[str, bool]]) -> None:
        self._read_down = read_down
        self._down: frozenset[str] = frozenset()
        self._read_at = -HEALTH_MAX_AGE_S
        self._reading: asyncio.Task[None] | None = None

    async def is_down(self, model: str) -> bool:
        """Return whether ``model`` was down when last read; read again in the background."""
        if time.monotonic() - self._read_at > HEALTH_MAX_AGE_S and self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(lambda _: setattr(self, "_reading", None))
            if self._read_at < 0:
                await self._reading
        return model in self._down

    async def _read(self) -> None:
        try:
            states = await asyncio.to_thread(self._read_down)
        except Exception:
            states = {}  # the controller restarts: no model is known to be down
        self._read_at = time.monotonic()
        self._down = frozenset(model for model, down in states.items() if down)


class Dispatcher:
    """Sends a request to the first of its candidates that accepts it.

    Args:
        capacity: Concurrent requests through this process, by model.
        health: Which models are down.
        retry_after_s: Seconds in the Retry-After header.
    """

    def __init__(self, capacity: dict[str, int], health: ModelHealth, retry_after_s: int) -> None:
        self._capacity, self._health = capacity, health
        self._retry_after_s = retry_after_s
        self.running: Counter[str] = Counter()

    async def send(self, candidates: Sequence[str], start: StartCall) -> StartedAnswer:
        """Return the start of an answer from the first candidate that gives one.

        The caller must call :meth:`finish` with its model. A failure is a reason to try the next
        candidate; the last one's failure is raised.

        Raises:
            RefusedError: No candidate accepts it: 429 if all are full, else 503.
        """
        skipped: list[str] = []
        for number, model in enumerate(candidates):
            is_last = number == len(candidates) - 1
            try:
                answer = await self._try(model, start, is_last=is_last)
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

    async def _try(self, model: str, start: StartCall, *, is_last: bool) -> StartedAnswer:
        if self.running[model] >= self._capacity[model]:
            raise ModelUnavailableError("saturated")
        if not is_last and await self._health.is_down(model):
            raise ModelUnavailableError("down")
        started = time.perf_counter()
        self.running[model] += 1
        try:
            first, rest = await self._first_packet(model, start, is_last)
        except BaseException:
            self.finish(model)
            raise
        return StartedAnswer(model, first, rest, started, (time.perf_counter() - started) * 1e3)

    async def _first_packet(
        self, model: str, start: StartCall, is_last: bool
    ) -> tuple[ResponseStart, Any]:
        """Wait for the first packet; unless it is the last candidate, only while it is up."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        response = start(model)
        task = asyncio.ensure_future(anext(response))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=None if is_last else HEALTH_MAX_AGE_S)
                if not task.done() and await self._health.is_down(model):
                    raise ModelUnavailableError("down")
            first: ResponseStart = task.result()
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
