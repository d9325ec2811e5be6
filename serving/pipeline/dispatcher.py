"""Which model gets a request, and which one where that is down or full."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.guardrail.guard import RefusedError

STALE_S = 1.0
"""An account of the replicas is asked for anew when it is older."""

Start = Callable[[str], Any]
"""Sends the request to a model; returns Serve's response generator, which can be cancelled."""


class UnusableError(Exception):
    """A model gives no answer to this request; another may."""


@dataclass
class Answer:
    """An answer that has begun: its first packet, and the rest.

    ``began_s`` is when its replica was called (``time.perf_counter``), ``waited_ms`` until the
    first packet.
    """

    model: str
    first: Any
    rest: Any
    began_s: float
    waited_ms: float
    skipped: list[str] = field(default_factory=list)
    """Each model that was asked for or tried before, and why it did not answer."""


class Health:
    """Which models have no replica that runs, by Serve's own account.

    A model that may sleep has none when it sleeps, and is not down: a request wakes it.
    """

    def __init__(self, states: Callable[[], dict[str, bool]]) -> None:
        self._states = states
        self._down: frozenset[str] = frozenset()
        self._asked = -STALE_S
        self._asking: asyncio.Task[None] | None = None

    async def down(self, model: str) -> bool:
        """Whether ``model`` is down, as last heard; asks again in the background."""
        if time.monotonic() - self._asked > STALE_S and self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(lambda _: setattr(self, "_asking", None))
            if self._asked < 0:
                await self._asking
        return model in self._down

    async def _ask(self) -> None:
        try:
            states = await asyncio.to_thread(self._states)
        except Exception:
            states = {}  # the controller restarts: nothing is known to be down
        self._asked = time.monotonic()
        self._down = frozenset(model for model, down in states.items() if down)


class Dispatcher:
    """Sends a request to the first of its candidates that takes it.

    Each of ``capacity`` is how many requests a model may have at once through this process.
    """

    def __init__(self, capacity: dict[str, int], health: Health, retry_after_s: int) -> None:
        self._capacity, self._health = capacity, health
        self._retry_after_s = retry_after_s
        self.running: Counter[str] = Counter()

    async def send(self, candidates: Sequence[str], start: Start) -> Answer:
        """The answer's beginning, from the first candidate that gives one.

        Whoever has it must call :meth:`ended` with its model. Only with more than one candidate
        is a failure a reason to try another; the last one's is raised.

        Raises:
            RefusedError: no candidate takes it (429 where all are full, else 503).
        """
        skipped: list[str] = []
        for number, model in enumerate(candidates):
            last = number == len(candidates) - 1
            try:
                answer = await self._try(model, start, patient=last)
                answer.skipped = skipped
                return answer
            except UnusableError as error:
                skipped.append(f"{model}: {error}")
        full = all(reason.endswith(": saturated") for reason in skipped)
        raise RefusedError(
            f"No model takes this request now ({'; '.join(skipped)}). "
            f"Try again in {self._retry_after_s} s.",
            "rate_limit_exceeded" if full else "model_unavailable",
            429 if full else 503,
            {"retry-after": str(self._retry_after_s)},
        )

    def ended(self, model: str) -> None:
        """A request that ``model`` took has ended."""
        self.running[model] -= 1

    async def _try(self, model: str, start: Start, *, patient: bool) -> Answer:
        if self.running[model] >= self._capacity[model]:
            raise UnusableError("saturated")
        if not patient and await self._health.down(model):
            raise UnusableError("down")
        began = time.perf_counter()
        self.running[model] += 1
        try:
            first, rest = await self._first(model, start, patient)
        except BaseException:
            self.ended(model)
            raise
        return Answer(model, first, rest, began, (time.perf_counter() - began) * 1e3)

    async def _first(self, model: str, start: Start, patient: bool) -> tuple[Any, Any]:
        """The first packet; without patience, gives up on a model that goes down meanwhile."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        response = start(model)
        task = asyncio.ensure_future(anext(response))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=None if patient else STALE_S)
                if not task.done() and await self._health.down(model):
                    raise UnusableError("down")
            first = task.result()
        except BackPressureError:
            raise UnusableError("saturated") from None
        except (RayError, RayServeException) as error:
            if patient and isinstance(error, RayTaskError):
                raise  # the request may be what the model could not do
            raise UnusableError(f"failed ({type(error).__name__})") from None
        finally:
            if not task.done():
                task.cancel()
                response.cancel()
        if not patient and getattr(getattr(first, "error", None), "code", 0) >= 500:
            raise UnusableError("failed")
        return first, response
